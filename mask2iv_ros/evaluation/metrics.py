"""Scores of predicted masks and videos against what really happened, one number a clip."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from mask2iv_ros import labels as lb

#: A pixel moves if a channel differs from frame 0 by more than this (of 255).
MOTION_THRESHOLD = 20


def mask_iou(predicted: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Mean IoU of one label over frames 1.. of (T, H, W) labels; frames where both are empty do not count."""
    scores = [lb.iou(p == label, t == label) for p, t in zip(predicted[1:], truth[1:], strict=True)]
    return float(np.nanmean(scores)) if not np.isnan(scores).all() else float('nan')


def centroid_error(predicted: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Mean pixel distance of the label's centroids over frames 1..; frames without either do not count."""
    pairs = [
        (lb.centroid(p == label), lb.centroid(t == label))
        for p, t in zip(predicted[1:], truth[1:], strict=True)
    ]
    distances = [np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in pairs if a and b]
    return float(np.mean(distances)) if distances else float('nan')


def kept_frames(predicted: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Share of frames 1.. with the label in truth where the prediction has it too; nan if there is none."""
    seen = (truth[1:] == label).any(axis=(1, 2))
    return float((predicted[1:] == label).any(axis=(1, 2))[seen].mean()) if seen.any() else float('nan')


def psnr(predicted: np.ndarray, truth: np.ndarray, pixels: np.ndarray | None = None) -> float:
    """PSNR in dB over frames 1.. of (T, H, W, 3) uint8 videos, of the (T, H, W) bool `pixels` if given.

    nan where `pixels` is empty. An error below that of rounding to whole numbers (variance 1/12) counts as
    that: equal videos have 58.9 dB.
    """
    error = (predicted[1:].astype(np.float64) - truth[1:]) ** 2
    if pixels is not None:
        error = error[pixels[1:]]
    if not error.size:
        return float('nan')
    return float(10 * np.log10(255**2 / max(error.mean(), 1 / 12)))


def ssim(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean SSIM (11 x 11 Gaussian, torchmetrics) over frames 1.. of (T, H, W, 3) uint8 videos."""
    as_tensor = [torch.from_numpy(video[1:]).movedim(-1, 1).float() for video in (predicted, truth)]
    return structural_similarity_index_measure(*as_tensor, data_range=255.0).item()


def moving_pixels(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: pixels of a (T, H, W, 3) video that differ from frame 0 (`MOTION_THRESHOLD`)."""
    return (np.abs(frames.astype(np.int16) - frames[:1]) > MOTION_THRESHOLD).any(axis=-1)


def released_miou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mask score of the code that Mask2IV's authors released; not comparable with `mask_iou`.

    IoU of each mask colour of (T, H, W) labels over the whole clip, frame 0 included, averaged over the three
    colours. A colour that neither clip has counts 1, so where there are no second parts a third is given.
    Their threshold of 0.5 a channel changes nothing here, because labels are pure colours.
    """
    scores = [lb.iou(predicted == label, truth == label) for label in (lb.OBJECT, lb.ACTOR, lb.PART)]
    return float(np.mean(np.nan_to_num(scores, nan=1.0)))


def mask_scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All scores of predicted (T, H, W) label images; nan where a clip has none.

    Contact is judged with the paper's kernel at this height, in truth and prediction alike.
    """
    size = lb.paper_kernel(7, truth.shape[1])
    frames = [lb.contact_frame(labels, size) for labels in (predicted, truth)]
    return {
        'object_iou': mask_iou(predicted, truth, lb.OBJECT),
        'actor_iou': mask_iou(predicted, truth, lb.ACTOR),
        'object_kept': kept_frames(predicted, truth, lb.OBJECT),
        'object_centroid_px': centroid_error(predicted, truth, lb.OBJECT),
        'contact_agrees': float((frames[0] >= 0) == (frames[1] >= 0)),
        'contact_frame_error': float(abs(frames[0] - frames[1])) if min(frames) >= 0 else float('nan'),
        'released_miou': released_miou(predicted, truth),
    }


def flicker(video: np.ndarray, truth: np.ndarray) -> float:
    """Mean change (of 255) from frame to frame where the true video stands still; nan if it never does."""
    still = ~moving_pixels(truth).any(axis=0)
    changes = np.abs(np.diff(video[:, still].astype(np.int16), axis=0))
    return float(changes.mean()) if changes.size else float('nan')


def video_scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All scores of a predicted (T, H, W, 3) uint8 video that need no trained network."""
    return {
        'psnr': psnr(predicted, truth),
        'psnr_moving_pixels': psnr(predicted, truth, moving_pixels(truth)),
        'ssim': ssim(predicted, truth),
        'flicker': flicker(predicted, truth),
    }


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of Gaussians fitted to (N, D) and (M, D) features, as FID (arXiv 1706.08500) has it.

    The trace of the root of the product of the covariances is the sum of the singular values of the product
    of the centred features: exact, and without a root of a singular matrix where clips are few.

    Raises:
        ValueError: fewer than two rows.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f'expected at least 2 rows of features each, got {len(first)} and {len(second)}')
    a, b = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second))
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(
        ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * root
    )


def frechet_and_interval(predicted: np.ndarray, truth: np.ndarray, groups: int = 32) -> dict[str, float]:
    """`frechet_distance` of N predicted and the N true clips with a 95 % interval.

    The interval is from a jackknife over at most `groups` groups of clips: a bootstrap draws clips twice,
    which alone makes the distance larger. It does not hold the bias of few clips, so compare equal numbers.
    Raises ValueError for fewer than three clips.
    """
    parts = np.array_split(np.arange(len(truth)), min(groups, len(truth)))
    value = frechet_distance(predicted, truth)
    without = [frechet_distance(*(np.delete(x, part, axis=0) for x in (predicted, truth))) for part in parts]
    error = 1.96 * np.sqrt((len(parts) - 1) * np.var(without))
    return {'mean': value, 'low': max(0.0, value - error), 'high': value + error, 'clips': len(truth)}


def mean_and_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Mean over clips with a 95 % bootstrap interval; values that are not finite do not count."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return {'mean': float('nan'), 'low': float('nan'), 'high': float('nan'), 'clips': 0}
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return {'mean': float(values.mean()), 'low': float(low), 'high': float(high), 'clips': len(values)}


def wilson_interval(solved: int, count: int) -> tuple[float, float]:
    """95 % interval of the share `solved` of `count` (Wilson 1927), in per cent."""
    z = 1.96
    centre = (solved + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(solved * (count - solved) / count + z**2 / 4)
    return max(0.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))
