"""Masks between key frames: a short mask trajectory stretched to more frames."""

from __future__ import annotations

import cv2
import numpy as np

from mask2iv_ros import labels as lb


def stretch_labels(labels: np.ndarray, num_frames: int) -> np.ndarray:
    """(T, H, W) uint8 labels as (num_frames, H, W) over the same time; first and last frame stay.

    Between two key frames a mask's centroid goes on a straight line, and its shape is where the blend of the
    two signed distance maps is positive (shape-based interpolation, Raya and Udupa 1990). A mask that one of
    the two does not have lasts for the half that is nearer to the other.
    """
    times = np.linspace(0, len(labels) - 1, num_frames)
    stretched = np.empty((num_frames, *labels.shape[1:]), np.uint8)
    for i, time in enumerate(times):
        before = min(int(time), len(labels) - 2)
        masks = {
            label: _between(labels[before] == label, labels[before + 1] == label, time - before)
            for label in (lb.OBJECT, lb.ACTOR, lb.PART)
        }
        stretched[i] = lb.combine_masks(masks[lb.OBJECT], masks[lb.ACTOR], masks[lb.PART])
    return stretched


def _between(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """The mask at `share` (0 to 1) of the way from one boolean (H, W) mask to another."""
    if share == 0 or share == 1 or not first.any() or not second.any():
        return first if share < 0.5 else second
    start, end = np.array(lb.centroid(first)), np.array(lb.centroid(second))
    centre = (1 - share) * start + share * end
    height, width = first.shape
    blend = np.zeros((height, width), np.float32)
    for mask, origin, weight in ((first, start, 1 - share), (second, end, share)):
        shift = np.float32([[1, 0, centre[0] - origin[0]], [0, 1, centre[1] - origin[1]]])
        distance = _signed_distance(mask)
        blend += weight * cv2.warpAffine(distance, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return blend > 0


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """(H, W) float32 pixels to the outline of a boolean mask, positive inside."""
    inside = mask.astype(np.uint8)
    return cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
