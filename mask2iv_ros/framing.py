"""Fitting an image of any size into the model's frame, and mapping results back exactly.

The image keeps its aspect ratio, is scaled to fit, and is centred; the rest is padded. Training data, the
command line and the node all go through this one class, so a model sees at run time what it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2iv_ros.labels import BACKGROUND, PART


@dataclass(frozen=True)
class Framing:
    """The letterbox between a `source` and a `model` image size, both (height, width) in pixels."""

    source: tuple[int, int]
    model: tuple[int, int]

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) of the scaled source inside the model frame."""
        scale = min(self.model[0] / self.source[0], self.model[1] / self.source[1])
        return tuple(max(1, round(size * scale)) for size in self.source)

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) pixel of the scaled source inside the model frame."""
        return tuple((model - inner) // 2 for model, inner in zip(self.model, self.inner, strict=True))

    def fit_frames(self, frames: np.ndarray) -> np.ndarray:
        """Map (..., H, W, 3) uint8 frames of the source size into the model frame; edges are repeated."""
        return self._map(frames, self._resize_to_inner, mode='edge')

    def fit_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map (..., H, W) uint8 label images of the source size into the model frame; padded with 0."""
        return self._map(labels, lambda image: resize_labels(image, self.inner), mode='constant')

    def restore_frames(self, frames: np.ndarray) -> np.ndarray:
        """Map (..., h, w, 3) uint8 frames of the model size back to the source size."""
        return self._restore(frames, 3, lambda image: _resize(image, self.source))

    def restore_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map (..., h, w) uint8 label images of the model size back to the source size, outlines smooth."""
        return self._restore(labels, 2, lambda image: resize_labels(image, self.source))

    def _resize_to_inner(self, image: np.ndarray) -> np.ndarray:
        return _resize(image, self.inner)

    def _map(self, images: np.ndarray, resize, mode: str) -> np.ndarray:
        channels = images.ndim - 2 if mode == 'constant' else images.ndim - 3
        if images.shape[channels : channels + 2] != self.source:
            raise ValueError(f'expected images of {self.source}, got {images.shape[channels : channels + 2]}')
        (top, left), (height, width) = self.offset, self.inner
        pad = [(top, self.model[0] - height - top), (left, self.model[1] - width - left)]
        trailing = images.shape[channels + 2 :]
        flat = images.reshape(-1, *self.source, *trailing)
        mapped = [np.pad(resize(image), pad + [(0, 0)] * len(trailing), mode=mode) for image in flat]
        return np.stack(mapped).reshape(*images.shape[:channels], *self.model, *trailing)

    def _restore(self, images: np.ndarray, image_dims: int, resize) -> np.ndarray:
        lead, tail = images.shape[: images.ndim - image_dims], images.shape[images.ndim - image_dims + 2 :]
        (top, left), (height, width) = self.offset, self.inner
        flat = images.reshape(-1, *self.model, *tail)[:, top : top + height, left : left + width]
        return np.stack([resize(image) for image in flat]).reshape(*lead, *self.source, *tail)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one (H, W) uint8 label image to `size` (height, width); each pixel takes its largest share."""
    if labels.shape == size:
        return labels
    resized = np.zeros(size, np.uint8)
    largest = _resize((labels == BACKGROUND).astype(np.uint8) * 255, size)
    for label in range(1, PART + 1):
        mask = labels == label
        if mask.any():
            share = _resize(mask.astype(np.uint8) * 255, size)
            resized[share > largest] = label
            np.maximum(largest, share, out=largest)
    return resized


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=interpolation)
