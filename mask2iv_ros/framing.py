"""Fitting an image of any size into the model's frame, and mapping results back exactly.

The image keeps its aspect ratio, is scaled to fit, and is centred; the rest is padded. Training data, the
command line and the node all go through this one class, so a model sees at run time what it was trained on;
but for the paper's recipes, whose crop (`with_short_side`) training and evaluation alone know.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2iv_ros.labels import BACKGROUND, PART


@dataclass(frozen=True)
class Framing:
    """The letterbox between a `source` and a `model` image size, both (height, width) in pixels.

    `crop` (top, left, height, width) in source pixels is the part that the model sees; None is all of it.
    """

    source: tuple[int, int]
    model: tuple[int, int]
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self):
        top, left, height, width = self.region
        if min(top, left) < 0 or min(height, width) < 1 or (
            top + height > self.source[0] or left + width > self.source[1]
        ):  # fmt: skip
            raise ValueError(f'crop: expected a part of {self.source} pixels, got {self.crop}')

    @classmethod
    def with_short_side(
        cls,
        source: tuple[int, int],
        model: tuple[int, int],
        short_side: int | None,
        shown: np.ndarray | None = None,
    ) -> Framing:
        """The paper's crop: scaled until the shorter side has `short_side` pixels, the middle is seen.

        A side that is smaller than the model's is seen whole, and padded. None for `short_side`: no crop.

        Args:
            shown: (H, W), not 0 where something is that the crop has to show: it moves no farther from the
                middle than that needs.
        """
        if short_side is None:
            return cls(source, model)
        if short_side < 1:
            raise ValueError(f'short_side: expected at least 1 pixel, got {short_side}')
        scale = min(source) / short_side
        size = [min(side, round(wanted * scale)) for side, wanted in zip(source, model, strict=True)]
        corner = [(side - seen) // 2 for side, seen in zip(source, size, strict=True)]
        if shown is not None and shown.any():
            for axis, pixels in enumerate(np.nonzero(shown)):
                low, high = pixels.max() + 1 - size[axis], pixels.min()
                if low <= high:  # else it is larger than the crop, whose middle shows as much as any part
                    corner[axis] = int(np.clip(corner[axis], low, high))
                corner[axis] = int(np.clip(corner[axis], 0, source[axis] - size[axis]))
        return cls(source, model, (*corner, *size))

    @property
    def region(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) in source pixels of what the model sees."""
        return self.crop or (0, 0, *self.source)

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) of the scaled region inside the model frame."""
        height, width = self.region[2:]
        scale = min(self.model[0] / height, self.model[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    @property
    def offset(self) -> tuple[int, int]:
        """(top, left) pixel of the scaled region inside the model frame."""
        return tuple((model - inner) // 2 for model, inner in zip(self.model, self.inner, strict=True))

    def fit_frames(self, frames: np.ndarray) -> np.ndarray:
        """Map (..., H, W, 3) uint8 frames of the source size into the model frame; edges are repeated."""
        return self._map(frames, self._resize_to_inner, mode='edge')

    def fit_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map (..., H, W) uint8 label images of the source size into the model frame; padded with 0."""
        return self._map(labels, lambda image: resize_labels(image, self.inner), mode='constant')

    def restore_frames(self, frames: np.ndarray) -> np.ndarray:
        """Map (..., h, w, 3) uint8 frames of the model size back to the source size.

        What the crop left out is black.
        """
        return self._restore(frames, 3, lambda image: _resize(image, self.region[2:]))

    def restore_labels(self, labels: np.ndarray) -> np.ndarray:
        """Map (..., h, w) uint8 label images of the model size back to the source size, outlines smooth.

        What the crop left out is background.
        """
        return self._restore(labels, 2, lambda image: resize_labels(image, self.region[2:]))

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y) source pixels a pixel of the model frame; the two differ by rounding only."""
        (height, width), (inner_height, inner_width) = self.region[2:], self.inner
        return width / inner_width, height / inner_height

    def restore_points(self, points: np.ndarray) -> np.ndarray:
        """Map (..., 2) x, y pixels of the model frame back to the source; those in the padding to its edge.

        Whole numbers are the centres of pixels, in both frames. nan stays nan.
        """
        (top, left), (y, x, height, width) = self.offset, self.region
        pixels = (np.asarray(points, np.float64) - (left, top) + 0.5) * self.scale - 0.5
        return np.clip(pixels, 0.0, (width - 1.0, height - 1.0)) + np.array((x, y))

    def _resize_to_inner(self, image: np.ndarray) -> np.ndarray:
        return _resize(image, self.inner)

    def _map(self, images: np.ndarray, resize, mode: str) -> np.ndarray:
        channels = images.ndim - 2 if mode == 'constant' else images.ndim - 3
        if images.shape[channels : channels + 2] != self.source:
            raise ValueError(f'expected images of {self.source}, got {images.shape[channels : channels + 2]}')
        (top, left), (height, width) = self.offset, self.inner
        pad = [(top, self.model[0] - height - top), (left, self.model[1] - width - left)]
        trailing = images.shape[channels + 2 :]
        y, x, seen_height, seen_width = self.region
        flat = images.reshape(-1, *self.source, *trailing)[:, y : y + seen_height, x : x + seen_width]
        mapped = [np.pad(resize(image), pad + [(0, 0)] * len(trailing), mode=mode) for image in flat]
        return np.stack(mapped).reshape(*images.shape[:channels], *self.model, *trailing)

    def _restore(self, images: np.ndarray, image_dims: int, resize) -> np.ndarray:
        lead, tail = images.shape[: images.ndim - image_dims], images.shape[images.ndim - image_dims + 2 :]
        (top, left), (height, width) = self.offset, self.inner
        flat = images.reshape(-1, *self.model, *tail)[:, top : top + height, left : left + width]
        restored = np.stack([resize(image) for image in flat]).reshape(*lead, *self.region[2:], *tail)
        if self.crop is None:
            return restored
        whole = np.zeros((*lead, *self.source, *tail), np.uint8)
        y, x, height, width = self.region
        whole[(..., slice(y, y + height), slice(x, x + width), *(slice(None),) * len(tail))] = restored
        return whole


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
