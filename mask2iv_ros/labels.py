"""Label images: ids, colours, and the mask geometry that training, planning and metrics share.

A label image is an (..., H, W) uint8 array: 0 background, 1 object, 2 actor, 3 second object part. Colours
exist only inside the model and in pictures. This module needs numpy alone.
"""

from __future__ import annotations

import numpy as np

BACKGROUND = 0
OBJECT = 1
ACTOR = 2
PART = 3

LABEL_NAMES = {BACKGROUND: 'background', OBJECT: 'object', ACTOR: 'actor', PART: 'part'}

#: RGB colour of each label id, (4, 3) uint8. Each label owns one pure channel, so a decoded colour image can
#: be thresholded channel by channel (Mask2IV, arXiv 2510.03135).
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)

#: Pixel rows at which the paper's kernels are meant (Mask2IV, arXiv 2510.03135).
PAPER_HEIGHT = 320


def check_labels(labels: np.ndarray, name: str = 'labels') -> np.ndarray:
    """Return `labels` if it is a uint8 array whose values are label ids, else raise ValueError."""
    if labels.dtype != np.uint8:
        raise ValueError(f'{name}: expected dtype uint8, got {labels.dtype}')
    if labels.size and labels.max() > PART:
        raise ValueError(f'{name}: expected label ids 0..{PART}, got a value of {labels.max()}')
    return labels


def combine_masks(
    object_mask: np.ndarray, actor_mask: np.ndarray | None = None, part_mask: np.ndarray | None = None
) -> np.ndarray:
    """Merge boolean (..., H, W) masks into one label image; the actor is in front of part and object."""
    labels = np.where(object_mask, OBJECT, BACKGROUND).astype(np.uint8)
    if part_mask is not None:
        labels[part_mask.astype(bool)] = PART
    if actor_mask is not None:
        labels[actor_mask.astype(bool)] = ACTOR
    return labels


def labels_to_rgb(labels: np.ndarray) -> np.ndarray:
    """Paint an (..., H, W) label image as (..., H, W, 3) uint8 colours on black."""
    return COLOURS[check_labels(labels)]


def rgb_to_labels(colours: np.ndarray, threshold: float = 127.5) -> np.ndarray:
    """Read (..., H, W, 3) mask colours in 0..255 as a label image.

    Each pixel takes the label of its strongest channel if that channel is above `threshold`, so colours that
    a decoder blurred still give exactly one label a pixel.
    """
    red, green, blue = np.moveaxis(colours, -1, 0)
    labels = np.where(green >= blue, np.uint8(ACTOR), np.uint8(PART))
    labels[(red >= green) & (red >= blue)] = OBJECT
    labels[(red <= threshold) & (green <= threshold) & (blue <= threshold)] = BACKGROUND
    return labels


def object_mask(labels: np.ndarray) -> np.ndarray:
    """Boolean mask of the object and its second part in (..., H, W) label images."""
    return (labels == OBJECT) | (labels == PART)


def without_actor(labels: np.ndarray) -> np.ndarray:
    """The (..., H, W) label images with the actor painted over by background."""
    return np.where(labels == ACTOR, BACKGROUND, labels).astype(np.uint8)


def goal_labels(labels: np.ndarray) -> np.ndarray:
    """The goal of a (..., T, H, W) clip: its last label image without the actor."""
    return without_actor(labels[..., -1, :, :])


def dilate(mask: np.ndarray, size: int) -> np.ndarray:
    """Dilate a boolean (..., H, W) mask with a `size` x `size` square (odd `size`), one iteration."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f'size: expected an odd positive number of pixels, got {size}')
    out = mask.astype(bool)
    for axis in (-2, -1):  # a square structuring element is separable
        grown = out.copy()
        for shift in range(1, size // 2 + 1):
            src = np.moveaxis(out, axis, 0)
            dst = np.moveaxis(grown, axis, 0)
            dst[shift:] |= src[:-shift]
            dst[:-shift] |= src[shift:]
        out = grown
    return out


def erode(mask: np.ndarray, size: int) -> np.ndarray:
    """Erode a boolean (..., H, W) mask with a `size` x `size` square; the image border does not erode."""
    return ~dilate(~mask.astype(bool), size)


def close_holes(mask: np.ndarray, size: int = 5) -> np.ndarray:
    """Morphological closing: fills the thin seams between a robot's meshes."""
    return erode(dilate(mask, size), size)


def contact_band(labels: np.ndarray, size: int = 7) -> np.ndarray:
    """Boolean (..., H, W) band where actor and object touch.

    `(dilate(actor) & object) | (actor & dilate(object))`, the contact map of Mask2IV (arXiv 2510.03135) with
    its 7 x 7 kernel at 320 x 512. Parts count as object.
    """
    actor = labels == ACTOR
    target = object_mask(labels)
    return (dilate(actor, size) & target) | (actor & dilate(target, size))


def paper_kernel(size: int, height: int) -> int:
    """A kernel of `size` pixels at `PAPER_HEIGHT`, in proportion at `height`: odd, and never below 3."""
    return max(3, 2 * round((size * height / PAPER_HEIGHT - 1) / 2) + 1)


def contact_frame(labels: np.ndarray, size: int = 7) -> int:
    """Index of the first frame of (T, H, W) labels in which actor and object touch, -1 if none does."""
    touching = contact_band(labels, size).any(axis=(-2, -1))
    return int(touching.argmax()) if touching.any() else -1


def centroid(mask: np.ndarray) -> tuple[float, float] | None:
    """Mean (x, y) pixel of a boolean (H, W) mask; None if it is empty."""
    ys, xs = np.nonzero(mask)
    return (float(xs.mean()), float(ys.mean())) if len(xs) else None


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean masks of one shape; nan if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else float('nan')


def overlay(frames: np.ndarray, labels: np.ndarray, alpha: float = 0.45) -> np.ndarray:
    """Blend label colours over (..., H, W, 3) uint8 frames; background pixels stay as they are."""
    blended = frames.copy()
    check_labels(labels)
    for label in (OBJECT, ACTOR, PART):
        painted = labels == label
        blended[painted] = frames[painted] * (1 - alpha) + COLOURS[label] * alpha
    return blended
