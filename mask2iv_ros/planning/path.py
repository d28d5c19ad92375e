"""Mask trajectories to 3-D object paths, with one depth image and the camera's intrinsics."""

from __future__ import annotations

import numpy as np

from mask2iv_ros import labels as lb

#: Depths outside this open interval, in metres, are invalid (0 and 10 m are common codes for "none").
DEPTH_RANGE = (0.01, 10.0)


def object_depth(depth: np.ndarray, mask: np.ndarray) -> float | None:
    """Median of the valid depths in a mask.

    Args:
        depth: (H, W) metres along the optical axis; NaN and values outside `DEPTH_RANGE` are invalid.
        mask: (H, W), not 0 on the object.
    """
    inside = depth[mask != 0]
    inside = inside[(inside > DEPTH_RANGE[0]) & (inside < DEPTH_RANGE[1])]
    return float(np.median(inside)) if inside.size else None


def lift_path(labels: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray | None:
    """Lift the object's centroids to a 3-D path.

    The object keeps the depth that the observed frame shows in its mask (see `object_depth`), since one
    depth image says nothing about later frames. A frame in which the object is hidden repeats the last
    position.

    Args:
        labels: (T, H, W) uint8 label images.
        depth: (H, W) metres along the optical axis, of the frame of labels[0].
        intrinsics: (3, 3) pinhole matrix of that frame, in pixels.

    Returns:
        (T, 3) float64 metres in the camera optical frame, or None if no pixel of the object has valid depth.

    Raises:
        ValueError: sizes that do not fit.
    """
    if depth.shape != labels.shape[1:]:
        raise ValueError(f'depth: expected {labels.shape[1:]}, got {depth.shape}')
    if intrinsics.shape != (3, 3):
        raise ValueError(f'intrinsics: expected (3, 3), got {intrinsics.shape}')
    objects = (labels == lb.OBJECT) | (labels == lb.PART)
    z = object_depth(depth, objects[0])
    if z is None:
        return None
    path, pixel = [], lb.centroid(objects[0])
    for mask in objects:
        pixel = lb.centroid(mask) or pixel
        x = (pixel[0] - intrinsics[0, 2]) * z / intrinsics[0, 0]
        y = (pixel[1] - intrinsics[1, 2]) * z / intrinsics[1, 1]
        path.append((x, y, z))
    return np.array(path)
