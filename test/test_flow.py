"""Promises of `follow_labels`."""

import numpy as np
import pytest

from mask2iv_ros.planning.flow import follow_labels


def _sliding_square(steps: int, stride: int):
    """A textured square over a textured ground, `stride` pixels to the right a frame."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 90, (12, 16, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    square = rng.integers(120, 255, (6, 6, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    frames, labels = [], []
    for t in range(steps):
        frame, label, x = ground.copy(), np.zeros(ground.shape[:2], np.uint8), 20 + stride * t
        frame[30:54, x : x + 24], label[30:54, x : x + 24] = square, 1
        frames.append(frame)
        labels.append(label)
    return np.stack(frames), np.stack(labels)


@pytest.mark.parametrize('stride', [0, 2])
def test_masks_go_along_with_what_they_cover(stride):
    frames, truth = _sliding_square(12, stride)
    followed = follow_labels(frames, truth[0])
    assert followed.shape == truth.shape
    assert followed.dtype == np.uint8
    assert np.array_equal(followed[0], truth[0])
    for found, wanted in zip(followed, truth, strict=True):
        both = ((found == 1) & (wanted == 1)).sum()
        assert both / ((found == 1) | (wanted == 1)).sum() > 0.75


def test_a_mask_of_another_size_is_refused():
    frames, labels = _sliding_square(3, 1)
    with pytest.raises(ValueError, match=r'expected \(96, 128\).*got \(96, 96\)'):
        follow_labels(frames, labels[0, :, :96])
