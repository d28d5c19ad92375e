"""Which frames of an episode make a clip, and which part of the picture is seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mask2iv_ros.data.episodes import Episode
from mask2iv_ros.framing import Framing
from mask2iv_ros.labels import object_mask


def spread_frames(length: int, count: int) -> np.ndarray:
    """(count,) indices spread evenly from the first to the last of `length` frames.

    As Mask2IV (arXiv 2510.03135) samples events. Frames repeat where there are fewer than `count`.
    """
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def window_frames(length: int, count: int, stride: int = 1, overlap: int = 0) -> list[np.ndarray]:
    """Windows of `count` frames, `stride` apart, that together hold the whole of `length` frames.

    Neighbours share `overlap` frames; the last is moved back to end with the episode, so it may share more.
    An episode that is shorter than one window gives one window of spread frames.

    Raises:
        ValueError: `stride` below 1, or `overlap` not in 0 .. count - 1.
    """
    if stride < 1 or not 0 <= overlap < count:
        raise ValueError(
            f'expected stride >= 1 and 0 <= overlap < {count}, got stride {stride}, overlap {overlap}'
        )
    span = (count - 1) * stride + 1
    if length < span:
        return [spread_frames(length, count)]
    starts = list(range(0, length - span + 1, (count - overlap) * stride))
    if starts[-1] != length - span:
        starts.append(length - span)
    return [np.arange(start, start + span, stride) for start in starts]


def spread(count: int) -> Callable[[Episode], list[np.ndarray]]:
    """Sampler for `read_clips`: one clip of `count` frames spread over the episode."""
    return lambda episode: [spread_frames(episode.length, count)]


def windows(count: int, stride: int = 1, overlap: int = 0) -> Callable[[Episode], list[np.ndarray]]:
    """Sampler for `read_clips`: `window_frames` of each episode."""
    return lambda episode: window_frames(episode.length, count, stride, overlap)


def centre_crop(source: tuple[int, int], model: tuple[int, int]) -> Framing:
    """The largest crop of `source` with the aspect of `model` (both height, width), in the middle."""
    height, width = _largest(source, model)
    crop = (source[0] - height) // 2, (source[1] - width) // 2, height, width
    return Framing(source, model, crop)


def random_crop(
    labels: np.ndarray, model: tuple[int, int], rng: np.random.Generator, min_scale: float = 0.8
) -> Framing:
    """A random crop with the aspect of `model` that keeps the object of (T, H, W) `labels` in view.

    Its side is `min_scale` to 1 of the largest possible, more where the object needs it; of an object that is
    too large for any crop, it holds the middle. Beside every object pixel it shows one of background, except
    at the border of the picture itself. (Mask2IV draws up to ten crops and takes the last if none fits.)

    Raises:
        ValueError: there is no object.
    """
    source = labels.shape[1:]
    target = object_mask(labels).any(axis=0)
    if not target.any():
        raise ValueError('labels: expected an object to keep in view, got none')
    spans = []  # (first, end) of the object and one pixel around it, along each axis
    for axis in (0, 1):
        found = np.flatnonzero(target.any(axis=1 - axis))
        spans.append((max(found[0] - 1, 0), min(found[-1] + 2, source[axis])))
    largest = _largest(source, model)
    needed = max((end - first) / side for (first, end), side in zip(spans, largest, strict=True))
    scale = min(1.0, max(rng.uniform(min_scale, 1), needed))
    sizes = [min(side, int(np.ceil(side * scale))) for side in largest]
    starts = []
    for (first, end), size, limit in zip(spans, sizes, source, strict=True):
        low, high = max(0, end - size), min(first, limit - size)
        if low > high:  # the object is larger than any crop
            low = high = min(max((first + end - size) // 2, 0), limit - size)
        starts.append(int(rng.integers(low, high + 1)))
    return Framing(source, model, (*starts, *sizes))


def _largest(source: tuple[int, int], model: tuple[int, int]) -> tuple[int, int]:
    scale = min(source[0] / model[0], source[1] / model[1])
    return min(source[0], round(model[0] * scale)), min(source[1], round(model[1] * scale))
