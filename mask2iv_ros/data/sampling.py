"""Which frames of an episode make a clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mask2iv_ros.data.episodes import Episode


def spread_frames(length: int, count: int) -> np.ndarray:
    """(count,) indices spread evenly from the first to the last of `length` frames.

    As Mask2IV (arXiv 2510.03135) samples events. Frames repeat where there are fewer than `count`.
    """
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def spread(count: int) -> Callable[[Episode], list[np.ndarray]]:
    """Sampler for `read_clips`: one clip of `count` frames spread over the episode."""
    return lambda episode: [spread_frames(episode.length, count)]
