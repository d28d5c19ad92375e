"""Where the diffusion losses look: the weight maps of both stages."""

from __future__ import annotations

import numpy as np

from mask2iv_ros import labels as lb


def foreground_weight(labels: np.ndarray, cell: int, weight: float) -> np.ndarray:
    """Stage 1 weights (T, h, w) float32 of (T, H, W) labels: `weight` on the foreground, 1 elsewhere.

    Foreground of a frame is where it or the first frame has a mask, so leaving a place counts as much as
    arriving. A latent cell of `cell` pixels counts if any pixel in it does. Mask2IV weights the masks of the
    target frame by 5; the union with frame 0 is ours.
    """
    foreground = (labels != lb.BACKGROUND) | (labels[:1] != lb.BACKGROUND)
    return 1 + (weight - 1) * _pool(foreground, cell)


def contact_weight(
    labels: np.ndarray, cell: int, weight: float, foreground: float = 1.0, size: int = 7
) -> np.ndarray:
    """Stage 2 weights (T, h, w) float32: `weight` on the contact band, `foreground` on the other masks.

    The paper weights the contact band by 5 and nothing else (`foreground` 1); its released loaders weight
    every mask (see doc/decisions.md).
    """
    band = _pool(lb.contact_band(labels, size), cell)
    return np.maximum(foreground_weight(labels, cell, foreground), 1 + (weight - 1) * band)


def _pool(mask: np.ndarray, cell: int) -> np.ndarray:
    frames, height, width = mask.shape
    cells = mask.reshape(frames, height // cell, cell, width // cell, cell)
    return cells.any(axis=(2, 4)).astype(np.float32)
