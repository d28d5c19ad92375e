"""Masks as they come at run time: stage 2 trains on true masks damaged in the ways of predicted ones.

Every damage takes (T, H, W) label images and a random generator, and returns label images of the same shape.
Frame 0 is observed at run time, so all but the paper's leave it alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cv2
import numpy as np

from mask2iv_ros import labels as lb

#: An object up to this share of the picture is small enough to be lost by a predictor.
SMALL_OBJECT = 0.03
#: Drift reaches up to this share of the picture's height in the last frame.
MAX_DRIFT = 0.06


@dataclass
class DamageShares:
    """Share of samples with each damage, together at most 1; the others see true masks.

    Attributes:
        dilate_erode: see `dilate_or_erode`; the paper has 0.2 and nothing else.
        jitter, dropped_frames, lost_object, drift: see the functions of these names.
        predicted: the masks are those that stage 1 predicts for the clip.
    """

    dilate_erode: float = 0.2
    jitter: float = 0.0
    dropped_frames: float = 0.0
    lost_object: float = 0.0
    drift: float = 0.0
    predicted: float = 0.0

    def __post_init__(self):
        if min(asdict(self).values()) < 0 or sum(asdict(self).values()) > 1 + 1e-9:
            raise ValueError(f'damage: expected shares of at least 0 and together at most 1, got {self}')

    @property
    def drawn(self) -> dict[str, float]:
        """Shares of the damages in `DAMAGES`."""
        return {name: share for name, share in asdict(self).items() if name in DAMAGES}


def dilate_or_erode(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dilate or erode all masks of the clip by one kernel (Mask2IV, arXiv 2510.03135).

    The kernel is 3, 5 or 7 pixels at `labels.PAPER_HEIGHT`, in proportion at others, but never below 3.
    """
    size = lb.paper_kernel(int(rng.choice((3, 5, 7))), labels.shape[1])
    operation = lb.dilate if rng.random() < 0.5 else lb.erode
    return lb.combine_masks(
        operation(labels == lb.OBJECT, size),
        operation(labels == lb.ACTOR, size),
        operation(labels == lb.PART, size),
    )


def jitter(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each frame but the first shows the masks of itself, the frame before or the frame after."""
    times = np.arange(len(labels))
    times[1:] += rng.integers(-1, 2, len(labels) - 1)
    return labels[np.clip(times, 0, len(labels) - 1)]


def dropped_frames(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One frame to a quarter of all are without masks, or repeat the masks of the frame before."""
    damaged = labels.copy()
    count = int(rng.integers(1, max(2, len(labels) // 4 + 1)))
    empty = rng.random() < 0.5
    for t in sorted(1 + rng.permutation(len(labels) - 1)[:count]):
        damaged[t] = lb.BACKGROUND if empty else damaged[t - 1]
    return damaged


def lost_object(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object is gone for two frames or more after the first, wherever it is small (`SMALL_OBJECT`)."""
    start = int(rng.integers(1, len(labels) - 1))
    end = int(rng.integers(start + 2, len(labels) + 1))
    target = lb.object_mask(labels)
    small = target.mean(axis=(1, 2)) <= SMALL_OBJECT
    lost = small & (np.arange(len(labels)) >= start) & (np.arange(len(labels)) < end)
    return np.where(target & lost[:, None, None], lb.BACKGROUND, labels).astype(np.uint8)


def drift(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All masks move away evenly, in one direction, by up to `MAX_DRIFT` in the last frame.

    A mask that the border cuts goes on up to the border.
    """
    height, width = labels.shape[1:]
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1) * MAX_DRIFT * height
    drifted = []
    for t, image in enumerate(labels):
        grown = distance * t / (len(labels) - 1)
        shift = np.float32([[1, 0, round(grown * np.cos(angle))], [0, 1, round(grown * np.sin(angle))]])
        drifted.append(
            cv2.warpAffine(
                image, shift, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
            )
        )
    return np.stack(drifted)


#: Damages that are drawn for a clip, by the name of their share.
DAMAGES = {
    'dilate_erode': dilate_or_erode,
    'jitter': jitter,
    'dropped_frames': dropped_frames,
    'lost_object': lost_object,
    'drift': drift,
}


def damage_labels(labels: np.ndarray, shares: DamageShares, rng: np.random.Generator) -> np.ndarray:
    """One of `DAMAGES`, drawn by the shares among those that have one; ValueError if none has."""
    drawn = shares.drawn
    total = sum(drawn.values())
    if total == 0:
        raise ValueError(f'damage: expected a share of at least one of {list(drawn)}, got none')
    name = rng.choice(list(drawn), p=np.array(list(drawn.values())) / total)
    return DAMAGES[name](labels, rng)
