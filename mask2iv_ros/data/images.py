"""Picture files of a dataset, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from mask2iv_ros.data.episodes import BadEpisode


def read_image(path: Path, mode: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """The picture as OpenCV's `mode` gives it, but colours as RGB."""
    if not path.is_file():
        raise BadEpisode(f'{path}: missing')
    image = cv2.imread(str(path), mode)
    if image is None:
        raise BadEpisode(f'{path}: damaged, not an image')
    return image[..., 2::-1] if image.ndim == 3 else image


def stack_images(images: Iterable[np.ndarray], source: Path) -> np.ndarray:
    """One array of images of one size; `source` is named where a size differs."""
    images = list(images)
    for position, image in enumerate(images):
        if image.shape != images[0].shape:
            raise BadEpisode(f'{source}: picture {position} is {image.shape}, the first {images[0].shape}')
    return np.stack(images)
