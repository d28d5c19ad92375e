"""Where the diffusion losses look: the weight maps of both stages."""

from __future__ import annotations

import numpy as np

from mask2iv_ros import labels as lb


def foreground_cells(labels: np.ndarray, cell: int) -> np.ndarray:
    """Latent cells (..., h, w) bool of `cell` x `cell` pixels in which (..., H, W) labels have any mask."""
    return _pool(labels != lb.BACKGROUND, cell)


def object_cells(labels: np.ndarray, cell: int) -> np.ndarray:
    """Latent cells (..., h, w) bool in which (..., H, W) labels have a pixel of the object."""
    return _pool(lb.object_mask(labels), cell)


def contact_cells(labels: np.ndarray, cell: int, size: int = 7) -> np.ndarray:
    """Latent cells (..., h, w) bool in which the contact band of (..., H, W) labels has a pixel.

    `size` is the kernel of `labels.contact_band` in pixels; the paper has 7 at 320 x 512.
    """
    return _pool(lb.contact_band(labels, size), cell)


def loss_weights(
    foreground: np.ndarray,
    contact: np.ndarray | None,
    foreground_weight: float,
    contact_weight: float = 1.0,
    vacated: bool = False,
    objects: np.ndarray | None = None,
    object_weight: float = 1.0,
) -> np.ndarray:
    """Weights (B, T, h, w) float32 of the squared error; 1 where no map is set, else the largest weight.

    The paper weights the contact band by 5 in stage 2. Its released loaders overwrite the band with the whole
    foreground, which is `foreground_weight` 5 and `contact_weight` 1; stage 1 of the released code is so too.

    Args:
        foreground, contact, objects: (B, T, h, w) bool, see `foreground_cells`, `contact_cells` and
            `object_cells`; the last, and their weight, are ours.
        vacated: foreground and object of a frame are also where frame 0 has them, so that leaving a place
            counts as much as arriving. Ours, not the paper's.
    """
    if vacated:
        foreground = foreground | foreground[:, :1]
        objects = None if objects is None else objects | objects[:, :1]
    weights = 1 + (foreground_weight - 1) * foreground.astype(np.float32)
    for cells, weight in ((contact, contact_weight), (objects, object_weight)):
        if cells is not None:
            weights = np.maximum(weights, 1 + (weight - 1) * cells.astype(np.float32))
    return weights


def _pool(mask: np.ndarray, cell: int) -> np.ndarray:
    height, width = mask.shape[-2:]
    return mask.reshape(*mask.shape[:-2], height // cell, cell, width // cell, cell).any(axis=(-3, -1))
