"""Seen by a static camera, background needs no model: it is in the first frame, or in the recorded ones."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.evaluation.metrics import MOTION_THRESHOLD
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

#: Width of the band around actor and object that the model draws, in picture heights.
BAND = 0.02
#: A camera stands still if at most this share of the background differs from frame 0.
STATIC_SHARE = 0.05


def film(pipeline: Mask2IVPipeline, first: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """(T, H, W, 3) uint8 frames by stage 2, from a first frame (H, W, 3) along label images (T, H, W)."""
    framing = Framing(first.shape[:2], tuple(pipeline.config.sample_size))
    fitted = framing.fit_labels(labels)
    missing = max(0, pipeline.config.num_frames - len(fitted))
    fitted = np.concatenate((fitted, fitted[-1:].repeat(missing, axis=0)))  # the end stands still
    frames = pipeline.video(
        framing.fit_frames(first)[None], fitted[None], generator=torch.Generator().manual_seed(seed)
    ).frames[0]
    return framing.restore_frames(frames[: len(labels)])


def background_change(frames: np.ndarray, labels: np.ndarray) -> float:
    """How much of what stays background changes in a recorded clip: about 0 if the camera stands still.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        labels: (T, H, W) uint8 label ids.

    Returns:
        The median, over frames 1.., of the share of `still_background` that differs from frame 0 by more than
        `MOTION_THRESHOLD` after a slight blur; nan if there is none.
    """
    kept = still_background(labels)
    first = cv2.blur(frames[0], (3, 3)).astype(np.int16)
    shares = [
        (np.abs(cv2.blur(frame, (3, 3)).astype(np.int16) - first).max(axis=-1) > MOTION_THRESHOLD)[k].mean()
        for frame, k in zip(frames[1:], kept[1:], strict=True)
        if k.any()
    ]
    return float(np.median(shares)) if shares else float('nan')


def background(labels: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: background outside the band around masks, of (T, H, W) uint8 label ids."""
    return ~lb.dilate(labels != lb.BACKGROUND, round(BAND * labels.shape[1]) * 2 + 1)


def still_background(labels: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: `background` of both this frame and frame 0."""
    kept = background(labels)
    return kept & kept[:1]


def compose(frames: np.ndarray, backdrop: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What a model drew, in front of a backdrop.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        backdrop: (T, H, W, 3) uint8 RGB.
        kept: (T, H, W) bool, where the backdrop is seen; it fades in from the edge.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    sigma = BAND / 4 * frames.shape[1]
    composed = np.empty_like(frames)
    for t, (frame, still, mask) in enumerate(zip(frames, backdrop, kept, strict=True)):
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
        share = np.where(mask, (2 * share - 1).clip(0, 1), 0)[..., None]
        composed[t] = frame + share * (still.astype(np.float32) - frame) + 0.5
    return composed


def still_backdrop(first: np.ndarray, source: np.ndarray) -> np.ndarray:
    """One picture as the backdrop of a recorded motion, (T, H, W, 3) uint8 RGB.

    The changes of brightness in the (T, H, W, 3) uint8 `source`, such as the arm's shadow, are put onto the
    (H, W, 3) uint8 picture `first`.
    """
    grey = [cv2.GaussianBlur(image.mean(axis=-1, dtype=np.float32), (0, 0), 1.5) + 4 for image in source]
    factors = [(now / grey[0]).clip(0.3, 2)[..., None] for now in grey]
    return np.stack([(first * factor + 0.5).clip(0, 255).astype(np.uint8) for factor in factors])
