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

    nan where `pixels` is empty, inf where the videos are equal.
    """
    error = (predicted[1:].astype(np.float64) - truth[1:]) ** 2
    if pixels is not None:
        error = error[pixels[1:]]
    if not error.size:
        return float('nan')
    with np.errstate(divide='ignore'):
        return float(10 * np.log10(255**2 / error.mean()))


def ssim(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean SSIM (11 x 11 Gaussian, torchmetrics) over frames 1.. of (T, H, W, 3) uint8 videos."""
    as_tensor = [torch.from_numpy(video[1:]).movedim(-1, 1).float() for video in (predicted, truth)]
    return structural_similarity_index_measure(*as_tensor, data_range=255.0).item()


def moving_pixels(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: pixels of a (T, H, W, 3) video that differ from frame 0 (`MOTION_THRESHOLD`)."""
    return (np.abs(frames.astype(np.int16) - frames[:1]) > MOTION_THRESHOLD).any(axis=-1)


def mean_and_interval(values: np.ndarray, seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """Mean over clips with a 95 % bootstrap interval; values that are not finite do not count."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return {'mean': float('nan'), 'low': float('nan'), 'high': float('nan'), 'clips': 0}
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return {'mean': float(values.mean()), 'low': float(low), 'high': float(high), 'clips': len(values)}
