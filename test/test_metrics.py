"""Metrics: known answers for known inputs."""

import numpy as np
import pytest
import scipy.linalg

from mask2iv_ros.evaluation import metrics


def square(x: int) -> np.ndarray:
    labels = np.zeros((4, 20, 30), np.uint8)
    labels[:, 5:10, x : x + 5] = 1
    return labels


def test_iou_of_known_overlap():
    assert metrics.mask_iou(square(3), square(3), 1) == 1
    assert metrics.mask_iou(square(3), square(20), 1) == 0
    assert metrics.mask_iou(square(3), square(4), 1) == pytest.approx(20 / 30)


def test_iou_ignores_frame_0_and_frames_that_are_empty_in_both():
    predicted, truth = square(3), square(3)
    predicted[0] = 0
    predicted[2] = truth[2] = 0
    assert metrics.mask_iou(predicted, truth, 1) == 1
    assert np.isnan(metrics.mask_iou(predicted, truth, 2))


def test_centroid_error_in_pixels():
    assert metrics.centroid_error(square(3), square(7), 1) == 4


def test_kept_frames_counts_frames_that_lost_the_object():
    predicted, truth = square(3), square(3)
    predicted[1] = 0
    truth[3] = 0
    assert metrics.kept_frames(predicted, truth, 1) == 0.5
    assert np.isnan(metrics.kept_frames(predicted, truth, 2))


def test_psnr_of_known_error_and_on_chosen_pixels():
    truth = np.full((3, 8, 8, 3), 100, np.uint8)
    predicted = truth.copy()
    predicted[1:, :, :4] = 110
    assert metrics.psnr(truth, truth) == pytest.approx(58.92, abs=0.01)  # what rounding leaves
    assert metrics.psnr(predicted, truth) == pytest.approx(20 * np.log10(255 / 10) + 10 * np.log10(2))
    left = np.zeros((3, 8, 8), bool)
    left[:, :, :4] = True
    assert metrics.psnr(predicted, truth, left) == pytest.approx(20 * np.log10(255 / 10))
    assert np.isnan(metrics.psnr(predicted, truth, np.zeros_like(left)))


def test_ssim_is_one_for_equal_videos_and_falls_with_noise():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    noisy = np.clip(truth.astype(int) + rng.integers(-60, 60, truth.shape), 0, 255).astype(np.uint8)
    assert metrics.ssim(truth, truth) == pytest.approx(1)
    assert metrics.ssim(noisy, truth) < 0.95


def test_moving_pixels_are_those_that_left_frame_0():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1, 1, 2, 0] = 200
    assert np.argwhere(metrics.moving_pixels(frames)).tolist() == [[1, 1, 2]]


def test_interval_holds_the_mean_and_counts_clips():
    values = np.r_[np.random.default_rng(0).normal(5, 1, 100), np.nan]
    result = metrics.mean_and_interval(values)
    assert result['low'] < result['mean'] < result['high']
    assert result['clips'] == 100
    assert np.isnan(metrics.mean_and_interval(np.array([np.nan]))['mean'])


def test_released_miou_gives_a_third_for_a_colour_that_nobody_has():
    truth = square(3)
    truth[:, 15:18, 3:8] = 2
    predicted = truth.copy()
    assert metrics.released_miou(predicted, truth) == 1
    predicted[predicted == 2] = 0
    predicted[:, 5:10, 3:8], predicted[:, 5:10, 4:9] = 0, 1
    assert metrics.released_miou(predicted, truth) == pytest.approx((20 / 30 + 0 + 1) / 3)


def test_contact_scores_of_a_touch_that_comes_late_or_never():
    def reach(columns: list[int]) -> np.ndarray:
        labels = square(10)
        for t, column in enumerate(columns):
            labels[t, 5:10, :column] = 2
        return labels

    truth = reach([3, 6, 10, 10])
    late, never = metrics.mask_scores(reach([3, 3, 6, 10]), truth), metrics.mask_scores(reach([3] * 4), truth)
    assert (late['contact_agrees'], late['contact_frame_error']) == (1, 1)
    assert never['contact_agrees'] == 0
    assert np.isnan(never['contact_frame_error'])


def test_flicker_is_seen_where_the_truth_stands_still():
    truth = np.zeros((3, 4, 4, 3), np.uint8)
    truth[1:, 0] = 200
    video = truth.copy()
    video[1, 1:] = 6
    assert metrics.flicker(truth, truth) == 0
    assert metrics.flicker(video, truth) == 6
    video[1:, 0] = 0
    assert metrics.flicker(video, truth) == 6


class TestFrechetDistance:
    def features(self, shift: float, seed: int, count: int = 40) -> np.ndarray:
        return np.random.default_rng(seed).normal(shift, 1 + shift, (count, 6))

    def test_is_that_of_the_formula(self):
        a, b = self.features(0, 0), self.features(0.5, 1)
        covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert metrics.frechet_distance(a, b) == pytest.approx(expected)
        assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)

    def test_of_fewer_clips_than_dimensions_is_finite(self):
        assert metrics.frechet_distance(self.features(0, 0, 4), self.features(0, 1, 4)) > 0
        with pytest.raises(ValueError, match='at least 2 rows'):
            metrics.frechet_distance(self.features(0, 0, 1), self.features(0, 1, 4))

    def test_interval_is_that_of_many_draws(self):
        pairs = [(self.features(0.5, seed, 50), self.features(0, seed + 60, 50)) for seed in range(40)]
        draws = [metrics.frechet_and_interval(*pair, groups=10) for pair in pairs]
        centre = np.mean([draw['mean'] for draw in draws])
        assert 0.8 < np.mean([draw['low'] <= centre <= draw['high'] for draw in draws]) <= 1
