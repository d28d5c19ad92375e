"""What training sees: conditions of stage 1, damaged masks of stage 2, loss weights, and arrays on disk."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.training.arrays import build_arrays
from mask2iv_ros.training.conditions import (
    STOPS,
    ConditionShares,
    draw_conditions,
    goal_variants,
    stop_frames,
)
from mask2iv_ros.training.damage import (
    DAMAGES,
    MAX_DRIFT,
    SMALL_OBJECT,
    DamageShares,
    damage_labels,
    dilate_or_erode,
    drift,
    dropped_frames,
    jitter,
    lost_object,
)
from mask2iv_ros.training.latents import cached_rows, encode_images, weights_id
from mask2iv_ros.training.losses import contact_cells, foreground_cells, loss_weights, object_cells

SEEDS = range(8)


def moving_labels(height: int = 64, width: int = 80, frames: int = 8) -> np.ndarray:
    """A small L-shaped object that an actor pushes to the right."""
    labels = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        x = 16 + 4 * t
        labels[t, 30:38, x : x + 3] = labels[t, 35:38, x : x + 9] = lb.OBJECT
        labels[t, 10:34, x - 8 : x - 1] = lb.ACTOR
    return labels


LABELS = moving_labels()


class TestDamage:
    @pytest.mark.parametrize('name', DAMAGES)
    def test_shape_labels_and_input_stay(self, name):
        before = LABELS.copy()
        for seed in SEEDS:
            damaged = DAMAGES[name](LABELS, np.random.default_rng(seed))
            assert (damaged.shape, damaged.dtype) == (LABELS.shape, np.uint8)
            assert set(np.unique(damaged)) <= {0, 1, 2}
        np.testing.assert_array_equal(LABELS, before)

    @pytest.mark.parametrize('name', sorted(set(DAMAGES) - {'dilate_erode'}))
    def test_the_observed_frame_is_not_damaged_but_others_are(self, name):
        damaged = [DAMAGES[name](LABELS, np.random.default_rng(seed)) for seed in SEEDS]
        assert all((clip[0] == LABELS[0]).all() for clip in damaged)
        assert sum((clip != LABELS).any() for clip in damaged) >= 6

    def test_every_mask_of_the_clip_is_dilated_or_every_one_eroded(self):
        grown = set()
        for seed in SEEDS:
            damaged = dilate_or_erode(LABELS, np.random.default_rng(seed))
            change = (damaged == lb.ACTOR).sum(axis=(1, 2)) - (LABELS == lb.ACTOR).sum(axis=(1, 2))
            assert len(set(np.sign(change))) == 1
            grown.add(int(np.sign(change[0])))
        assert grown == {-1, 1}

    def test_the_papers_kernels_keep_their_share_of_the_picture(self):
        widths = {}
        for height in (64, 320):
            labels = np.zeros((1, height, 64), np.uint8)
            labels[:, 20:40, 20:40] = lb.OBJECT
            damaged = [dilate_or_erode(labels, np.random.default_rng(seed)) for seed in range(40)]
            widths[height] = {int(clip.any(axis=(0, 1)).sum()) for clip in damaged}
        assert widths == {64: {18, 22}, 320: {14, 16, 18, 22, 24, 26}}

    def test_kernels_are_odd_and_in_proportion_to_the_height(self):
        assert [lb.paper_kernel(7, height) for height in (32, 128, 320, 640)] == [3, 3, 7, 13]

    def test_jitter_shows_a_neighbouring_frame(self):
        shifts = set()
        for seed in SEEDS:
            for t, image in enumerate(jitter(LABELS, np.random.default_rng(seed))):
                (source,) = np.flatnonzero((image == LABELS).all(axis=(1, 2)))
                shifts.add(int(source) - t)
        assert shifts == {-1, 0, 1}

    def test_dropped_frames_are_empty_or_repeat_the_one_before(self):
        kinds = set()
        for seed in SEEDS:
            damaged = dropped_frames(LABELS, np.random.default_rng(seed))
            dropped = np.flatnonzero((damaged != LABELS).any(axis=(1, 2)))
            assert 1 <= len(dropped) <= 2  # a quarter of 8
            empty = [not damaged[t].any() for t in dropped]
            assert all(empty) or all((damaged[t] == damaged[t - 1]).all() for t in dropped)
            kinds.add(empty[0])
        assert kinds == {True, False}

    def test_the_object_is_lost_for_a_while_and_the_actor_stays(self):
        for seed in SEEDS:
            damaged = lost_object(LABELS, np.random.default_rng(seed))
            lost = ~(damaged == lb.OBJECT).any(axis=(1, 2))
            assert 2 <= lost.sum() <= 7
            assert np.ptp(np.flatnonzero(lost)) == lost.sum() - 1  # without a gap
            np.testing.assert_array_equal(damaged == lb.ACTOR, LABELS == lb.ACTOR)

    def test_a_large_object_is_not_lost(self):
        large = LABELS.copy()
        large[:, 40:] = lb.OBJECT
        assert (large == lb.OBJECT).mean() > SMALL_OBJECT
        np.testing.assert_array_equal(lost_object(large, np.random.default_rng(0)), large)

    def test_drift_grows_evenly_and_stays_within_its_limit(self):
        for seed in SEEDS:
            damaged = drift(LABELS, np.random.default_rng(seed))
            centres = [[lb.centroid(clip[t] == lb.OBJECT) for t in range(8)] for clip in (LABELS, damaged)]
            offset = np.hypot(*(np.array(centres[1]) - centres[0]).T)
            assert 0.3 * MAX_DRIFT * 64 - 1 < offset[-1] < MAX_DRIFT * 64 + 1
            assert np.abs(np.diff(offset) - offset[-1] / 7).max() < 1.5  # whole pixels

    def test_drift_leaves_no_gap_at_the_border(self):
        labels = np.zeros_like(LABELS)
        labels[:, :30] = lb.ACTOR
        for seed in SEEDS:
            assert (drift(labels, np.random.default_rng(seed))[:, 0] == lb.ACTOR).all()

    def test_damages_are_drawn_by_their_shares(self):
        only = DamageShares(dilate_erode=0, drift=0.1, predicted=0.5)
        rng, expected = np.random.default_rng(5), np.random.default_rng(5)
        expected.choice(list(DAMAGES), p=[0, 0, 0, 0, 1])
        np.testing.assert_array_equal(damage_labels(LABELS, only, rng), drift(LABELS, expected))
        with pytest.raises(ValueError, match='a share of at least one'):
            damage_labels(LABELS, DamageShares(dilate_erode=0), rng)

    def test_the_papers_damage_is_the_default(self):
        assert DamageShares().drawn == dict.fromkeys(DAMAGES, 0.0) | {'dilate_erode': 0.2}

    @pytest.mark.parametrize('shares', [{'jitter': -0.1}, {'jitter': 0.5, 'predicted': 0.4}])
    def test_impossible_shares_are_refused(self, shares):
        with pytest.raises(ValueError, match='together at most 1'):
            DamageShares(**shares)


def variants_of(labels: np.ndarray) -> np.ndarray:
    return goal_variants(lb.goal_labels(labels), labels[0])


class TestGoal:
    def test_mask_is_the_last_object_without_the_actor(self):
        mask, _, _ = variants_of(LABELS)
        assert set(np.unique(mask)) == {lb.BACKGROUND, lb.OBJECT}
        np.testing.assert_array_equal(mask == lb.OBJECT, LABELS[-1] == lb.OBJECT)
        np.testing.assert_array_equal(mask, lb.goal_labels(LABELS))

    def test_box_is_the_filled_rectangle_around_it(self):
        mask, box, _ = variants_of(LABELS)
        rows, columns = np.nonzero(mask)
        assert (box == lb.OBJECT).sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()

    def test_point_is_the_first_mask_at_the_goals_centroid(self):
        turned = LABELS.copy()
        turned[-1] = turned[-1, ::-1]  # the object ends in another shape
        mask, _, point = variants_of(turned)
        assert (point == lb.OBJECT).sum() == (LABELS[0] == lb.OBJECT).sum()
        assert np.abs(np.subtract(lb.centroid(point == 1), lb.centroid(mask == 1))).max() < 1
        assert (point != mask).any()

    def test_a_clip_that_ends_without_object_has_no_goal(self):
        gone = LABELS.copy()
        gone[-1] = 0
        assert not variants_of(gone).any()

    def test_an_object_that_appears_later_is_its_own_point(self):
        late = LABELS.copy()
        late[0] = 0
        mask, _, point = variants_of(late)
        np.testing.assert_array_equal(mask, point)


class TestConditions:
    def draw(self, **shares):
        has_goal = torch.ones(20_000, dtype=torch.bool)
        return draw_conditions(ConditionShares(**shares), has_goal, torch.Generator().manual_seed(0))

    def test_shares_are_kept_and_independent(self):
        drawn = self.draw(text_only=0.3, goal_only=0.2, goal_box=0.25, goal_point=0.5, no_actor=0.1)
        forms = torch.bincount(drawn.goal_form[drawn.goal]) / drawn.goal.sum()
        torch.testing.assert_close(forms, torch.tensor([0.25, 0.25, 0.5]), atol=0.02, rtol=0)
        shares = [~drawn.goal, ~drawn.text, ~drawn.actor, ~drawn.actor & ~drawn.text]
        torch.testing.assert_close(
            torch.stack(shares).float().mean(dim=1),
            torch.tensor([0.3, 0.2, 0.1, 0.02]),
            atol=0.02,
            rtol=0,
        )
        assert (drawn.text | drawn.goal).all()
        neither = self.draw(text_only=0.3, goal_only=0.2, neither=0.1)
        shares = [~neither.goal, ~neither.text, ~neither.goal & ~neither.text]
        means = torch.stack(shares).float().mean(dim=1)
        torch.testing.assert_close(means, torch.tensor([0.4, 0.3, 0.1]), atol=0.02, rtol=0)

    def test_the_papers_two_modes(self):
        text = self.draw(text_only=1, goal_only=0)
        assert text.text.all()
        assert not text.goal.any()
        position = self.draw(text_only=0, goal_only=1, goal_box=0, goal_point=0, no_actor=0)
        assert position.goal.all()
        assert not position.text.any()
        assert position.actor.all()
        assert not position.goal_form.any()

    def test_a_clip_without_goal_is_told_by_text(self):
        shares = ConditionShares(text_only=0, goal_only=1)
        drawn = draw_conditions(shares, torch.tensor([True, False] * 8), torch.Generator().manual_seed(0))
        assert drawn.goal.tolist() == [True, False] * 8
        assert drawn.text.tolist() == [False, True] * 8

    def test_a_clip_stops_only_for_a_goal(self):
        drawn = self.draw(text_only=0.3, goal_only=0.2, neither=0.1, stopped=0.5)
        assert not drawn.stop[~drawn.goal].any()
        shares = torch.bincount(drawn.stop[drawn.goal]) / drawn.goal.sum()
        torch.testing.assert_close(shares, torch.tensor([0.5, *[0.5 / STOPS] * STOPS]), atol=0.02, rtol=0)
        unstopped = self.draw(text_only=0.3, goal_only=0.2, neither=0.1)
        assert torch.equal(drawn.goal, unstopped.goal)

    def test_a_clip_stops_where_its_object_has_moved_and_is_seen(self):
        labels = np.zeros((8, 20, 40), np.uint8)
        for t, column in enumerate((0, 0, 0, 0, 0, 10, 20, 30)):
            labels[t, 5:15, column : column + 10] = lb.OBJECT
        drawn = {int(t) for seed in range(20) for t in stop_frames(labels, np.random.default_rng(seed))}
        assert drawn == {5, 6}
        labels[6, 5:15, 22:30] = lb.ACTOR
        drawn = {int(t) for seed in range(20) for t in stop_frames(labels, np.random.default_rng(seed))}
        assert drawn == {5}
        assert set(stop_frames(labels[:5], np.random.default_rng(0))) == {4}

    def test_impossible_shares_are_refused(self):
        with pytest.raises(ValueError, match='stopped'):
            ConditionShares(stopped=1.5)
        with pytest.raises(ValueError, match='goal_box'):
            ConditionShares(goal_box=0.7, goal_point=0.4)

    def test_without_actor_keeps_the_object(self):
        np.testing.assert_array_equal(lb.without_actor(LABELS), np.where(LABELS == lb.OBJECT, lb.OBJECT, 0))


class TestLossWeights:
    def test_foreground_is_where_a_mask_is(self):
        labels = np.zeros((1, 2, 16, 16), np.uint8)
        labels[0, 0, 0:4, 0:4] = lb.OBJECT
        labels[0, 1, 12, 12] = lb.ACTOR
        cells = foreground_cells(labels, 4)
        weights = loss_weights(cells, None, 5.0)
        assert weights.shape == (1, 2, 4, 4)
        assert weights[0, 0].tolist() == [[5, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
        assert (weights[0, 1, 0, 0], weights[0, 1, 3, 3]) == (1, 5)

    def test_a_vacated_place_counts_too_if_wanted(self):
        labels = np.zeros((1, 2, 16, 16), np.uint8)
        labels[0, 0, 0:4, 0:4] = lb.OBJECT
        weights = loss_weights(foreground_cells(labels, 4), None, 5.0, vacated=True)
        assert weights[0, 1, 0, 0] == 5
        assert weights[0, 1].sum() == 15 + 5

    def test_contact_band_has_the_papers_weight_and_nothing_else(self):
        labels = np.zeros((1, 1, 16, 16), np.uint8)
        labels[0, 0, 4:12, 0:8] = lb.OBJECT
        labels[0, 0, 4:12, 8:16] = lb.ACTOR
        weights = loss_weights(foreground_cells(labels, 4), contact_cells(labels, 4, 3), 1.0, 5.0)[0, 0]
        assert (weights[1:3, 1:3] == 5).all()
        assert (weights[:, [0, 3]] == 1).all()
        assert (weights[[0, 3]] == 1).all()

    def test_an_object_weighs_more_than_the_rest_of_the_foreground(self):
        labels = np.zeros((1, 2, 16, 16), np.uint8)
        labels[0, 0, 0:4, 0:4] = labels[0, 1, 4:8, 0:4] = lb.OBJECT
        labels[0, :, 12:16] = lb.ACTOR
        weights = loss_weights(
            foreground_cells(labels, 4), None, 5.0, 1.0, True, object_cells(labels, 4), 25.0
        )[0]
        assert weights[0].tolist() == [[25, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [5, 5, 5, 5]]
        assert weights[1].tolist() == [[25, 1, 1, 1], [25, 1, 1, 1], [1, 1, 1, 1], [5, 5, 5, 5]]

    def test_the_released_codes_variant_weighs_the_whole_foreground(self):
        cells = foreground_cells(LABELS[None], 8)
        weights = loss_weights(cells, contact_cells(LABELS[None], 8), 5.0, 1.0)
        np.testing.assert_array_equal(weights, np.where(cells, 5, 1))


class TestCachedRows:
    @staticmethod
    def rows(start: int):
        for i in range(start, 40):
            yield np.full((2, 3), i, np.float16)

    def test_rows_are_mapped_from_disk_and_made_once(self, tmp_path):
        array = cached_rows(tmp_path / 'a', 40, self.rows, 'x')
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        np.testing.assert_array_equal(array[:, 0, 0], np.arange(40))
        again = cached_rows(tmp_path / 'a', 40, lambda start: pytest.fail('made again'), 'x')
        np.testing.assert_array_equal(again, array)

    def test_a_killed_run_goes_on_where_it_was(self, tmp_path):
        def dying(start):
            for row in self.rows(start):
                if row[0, 0] == 35:
                    raise KeyboardInterrupt
                yield row

        with pytest.raises(KeyboardInterrupt):
            cached_rows(tmp_path / 'a', 40, dying, 'x')
        starts = []
        array = cached_rows(tmp_path / 'a', 40, lambda start: starts.append(start) or self.rows(start), 'x')
        assert starts == [32]
        np.testing.assert_array_equal(array[:, 0, 0], np.arange(40))

    def test_another_stamp_or_count_makes_them_anew(self, tmp_path):
        cached_rows(tmp_path / 'a', 40, self.rows, 'x')
        other = cached_rows(tmp_path / 'a', 40, lambda start: (row + 1 for row in self.rows(start)), 'y')
        assert other[0, 0, 0] == 1
        assert len(cached_rows(tmp_path / 'a', 3, lambda start: list(self.rows(start))[:3], 'y')) == 3

    def test_too_few_rows_are_not_a_complete_array(self, tmp_path):
        with pytest.raises(ValueError, match='expected 41 rows, got 40'):
            cached_rows(tmp_path / 'a', 41, self.rows, 'x')

    def test_a_full_disk_is_named_before_anything_is_written(self, tmp_path):
        huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), (10**9, 10**6), (0, 0))
        with pytest.raises(OSError, match=r'needs 2000000\.0 GB'):
            cached_rows(tmp_path / 'a', 1, lambda start: iter([huge]), 'x')
        assert not list(tmp_path.glob('*.npy'))


def test_arrays_that_do_not_fit_the_disk_are_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(OSError, match=r'frames\.npy: needs 0\.1 GB, the disk has 0\.0 GB'):
        build_arrays(iter(()), 10, tmp_path / 'arrays', (256, 256), 32)
    assert not list((tmp_path / 'arrays').iterdir())


def test_images_are_encoded_frame_by_frame_in_any_shape():
    torch.manual_seed(0)
    vae = PatchAutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4).eval()
    images = np.random.default_rng(0).integers(0, 255, (3, 7, 32, 48, 3), dtype=np.uint8)
    latents = encode_images(vae, images)
    assert (latents.shape, latents.dtype) == ((3, 7, 4, 4, 6), np.float16)
    np.testing.assert_allclose(latents[2, 6], encode_images(vae, images[2, 6]), atol=0.02)


def test_a_weights_id_depends_on_every_weight():
    model = torch.nn.Linear(2, 2)
    before = weights_id(model, None)
    assert before == weights_id(model)
    with torch.no_grad():
        model.bias[1] += 1
    assert weights_id(model) != before
    assert json.dumps(before)
