"""Masks between key frames go straight, keep their shape, and never leave the key frames untouched out."""

import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.interpolation import stretch_labels


def square(x: int, y: int, label: int = lb.OBJECT, size: int = 8) -> np.ndarray:
    labels = np.zeros((48, 64), np.uint8)
    labels[y : y + size, x : x + size] = label
    return labels


def test_key_frames_stay_and_the_mask_goes_straight_between_them():
    keys = np.stack([square(4, 4), square(24, 14), square(44, 4)])
    stretched = stretch_labels(keys, 9)
    assert stretched.shape == (9, 48, 64)
    np.testing.assert_array_equal(stretched[::4], keys)
    for i in range(5):
        x, y = lb.centroid(stretched[i] == lb.OBJECT)
        assert (x, y) == pytest.approx((7.5 + 5 * i, 7.5 + 2.5 * i), abs=0.6)
        assert (stretched[i] == lb.OBJECT).sum() == pytest.approx(64, abs=12)


def test_the_shape_is_between_two_shapes():
    small, large = square(28, 20, size=6), square(20, 12, size=22)
    middle = stretch_labels(np.stack([small, large]), 3)[1]
    assert (small > 0).sum() < (middle > 0).sum() < (large > 0).sum()


def test_labels_move_on_their_own_and_a_mask_that_comes_appears_halfway():
    first = square(4, 4)
    second = np.maximum(square(12, 4), square(40, 30, lb.ACTOR))
    stretched = stretch_labels(np.stack([first, second]), 5)
    has_actor = [(labels == lb.ACTOR).any() for labels in stretched]
    assert has_actor == [False, False, True, True, True]
    assert lb.centroid(stretched[2] == lb.OBJECT) == pytest.approx((11.5, 7.5), abs=0.6)
