"""Clip sampling: every frame is where it should be, and what a crop did is undone exactly."""

from itertools import pairwise

import numpy as np
import pytest

from mask2iv_ros.data.sampling import centre_crop, random_crop, spread_frames, window_frames
from mask2iv_ros.framing import Framing


def test_spread_frames_reach_both_ends_evenly():
    assert spread_frames(31, 16).tolist() == list(range(0, 31, 2))
    frames = spread_frames(100, 16)
    assert (frames[0], frames[-1]) == (0, 99)
    assert set(np.diff(frames)) <= {6, 7}


def test_short_episodes_repeat_frames():
    assert spread_frames(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert spread_frames(1, 4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(('length', 'stride', 'overlap'), [(16, 1, 0), (40, 1, 4), (100, 3, 2), (47, 1, 15)])
def test_windows_hold_every_strided_frame_and_share_the_overlap(length, stride, overlap):
    windows = window_frames(length, 16, stride, overlap)
    assert windows[0][0] == 0
    assert windows[-1][-1] == length - 1
    for window in windows:
        assert len(window) == 16
        assert set(np.diff(window)) == {stride}
    for before, after in pairwise(windows[:-1]):
        assert len(set(before) & set(after)) == overlap
    if stride == 1:
        assert set(np.concatenate(windows)) == set(range(length))


def test_an_episode_shorter_than_a_window_is_one_window():
    (window,) = window_frames(10, 16)
    assert window.tolist() == spread_frames(10, 16).tolist()


@pytest.mark.parametrize(('stride', 'overlap'), [(0, 0), (1, 16), (1, -1)])
def test_impossible_windows_are_refused(stride, overlap):
    with pytest.raises(ValueError, match='expected stride >= 1 and 0 <= overlap < 16'):
        window_frames(100, 16, stride, overlap)


def test_centre_crop_has_the_models_aspect():
    framing = centre_crop((480, 640), (320, 512))
    assert framing.crop == (40, 0, 400, 640)
    assert framing.inner == (320, 512)
    assert framing.offset == (0, 0)


def labels_with_object(top: int, left: int) -> np.ndarray:
    labels = np.zeros((4, 120, 160), np.uint8)
    labels[:, top : top + 20, left : left + 20] = 1
    return labels


def test_random_crops_differ_and_keep_the_object_off_the_border():
    labels = labels_with_object(50, 70)
    crops = {random_crop(labels, (64, 80), np.random.default_rng(seed)).crop for seed in range(20)}
    assert len(crops) > 15
    for top, left, height, width in crops:
        assert abs(height / width - 64 / 80) < 0.02
        assert (top < 50, left < 70, top + height > 70, left + width > 90) == (True,) * 4


def test_random_crop_keeps_an_object_at_the_border_of_the_picture():
    labels = labels_with_object(0, 140)
    for seed in range(20):
        framing = random_crop(labels, (64, 80), np.random.default_rng(seed))
        top, left, _, width = framing.crop
        assert (top, left + width) == (0, 160)


def test_random_crop_grows_for_a_large_object():
    labels = np.zeros((1, 120, 160), np.uint8)
    labels[:, 2:118, 40:60] = 1
    assert random_crop(labels, (64, 80), np.random.default_rng(0), 0.5).crop[2] >= 118


def test_random_crop_that_cannot_hold_the_object_keeps_most_of_it():
    labels = np.ones((1, 120, 160), np.uint8)
    assert random_crop(labels, (64, 80), np.random.default_rng(0)).crop == (0, 5, 120, 150)


def test_random_crop_needs_an_object():
    with pytest.raises(ValueError, match='expected an object'):
        random_crop(np.zeros((1, 20, 20), np.uint8), (8, 8), np.random.default_rng(0))


def test_what_a_crop_saw_goes_back_to_its_place_and_the_rest_stays():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 60, 80, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, (2, 60, 80)).astype(np.uint8)
    framing = Framing((60, 80), (30, 40), (12, 20, 30, 40))
    np.testing.assert_array_equal(framing.fit_frames(frames), frames[:, 12:42, 20:60])
    np.testing.assert_array_equal(framing.restore_frames(framing.fit_frames(frames), frames), frames)
    np.testing.assert_array_equal(framing.restore_labels(framing.fit_labels(labels), labels), labels)
    alone = framing.restore_labels(framing.fit_labels(labels))
    assert not alone[:, :12].any()
    assert tuple(framing.restore_points((0, 0))) == (20, 12)


def test_a_crop_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match='expected a part of'):
        Framing((60, 80), (30, 40), (40, 0, 30, 40))
