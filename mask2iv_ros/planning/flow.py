"""Masks read from a video: those of its first frame follow the optical flow, as AVDC reads motion."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from mask2iv_ros import labels as lb


def follow_labels(frames: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(T, H, W) uint8 label images of a video whose first frame has `labels`.

    A pixel of frame t looks back along the dense flow from t to t - 1 (DIS, Kroeger et al. 2016), and so on
    to frame 0, whose label it takes. What was hidden in frame 0 stays background, so does what comes into
    view.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        labels: (H, W) uint8.

    Raises:
        ValueError: the sizes differ.
    """
    if frames.shape[1:3] != labels.shape:
        raise ValueError(f'labels: expected {frames.shape[1:3]} as the frames have, got {labels.shape}')
    flow_of = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = labels.shape
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    origin = pixels  # where each pixel of the frame was in frame 0, x and y
    followed = [labels]
    for before, now in itertools.pairwise(grey):
        back = pixels + flow_of.calc(now, before, None)
        origin = cv2.remap(origin, back, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        followed.append(cv2.remap(labels, origin, None, cv2.INTER_NEAREST, borderValue=lb.BACKGROUND))
    return np.stack(followed)
