"""NumPy to image messages, and the images of a plan's message to NumPy; `image_messages` reads the others."""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from mask2iv_ros.image_messages import read_colour, read_pixels, unsupported_encoding
from mask2iv_ros.msg import MaskTrajectory

_LABELS = ('mono8', '8UC1')
JPEG_QUALITY = 90  # per cent


def read_labels(trajectory: MaskTrajectory) -> np.ndarray:
    """Return a plan's masks as (T, H, W) uint8 label images; the values are MaskTrajectory's constants.

    Raises ImageError, and ValueError for a trajectory without frames or with frames of several sizes.
    """
    for message in trajectory.frames:
        if message.encoding not in _LABELS:
            raise unsupported_encoding(message, 'masks', _LABELS)
    return np.stack([read_pixels(message, 'u1', 1, 'masks')[..., 0] for message in trajectory.frames])


def read_video(messages: Sequence[Image]) -> np.ndarray:
    """Return a plan's video as (T, H, W, 3) uint8 RGB. Raises as `read_labels` does."""
    return np.stack([read_colour(message, 'video') for message in messages])


def write_image(pixels: np.ndarray, encoding: str, header: Header | None = None) -> Image:
    """Make a message of (H, W) or (H, W, C) `pixels`; `encoding` must name their dtype and channels."""
    data = array.array('B')  # assigning an ndarray or bytes to `data` checks every byte in Python
    data.frombytes(np.ascontiguousarray(pixels).data.cast('B'))
    return Image(
        header=header if header is not None else Header(),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=len(data) // pixels.shape[0],
        data=data,
    )


def write_jpeg(pixels: np.ndarray, header: Header | None = None) -> CompressedImage:
    """Make a JPEG message of (H, W, 3) uint8 RGB `pixels`, as image_transport's `compressed` would."""
    import cv2

    _, encoded = cv2.imencode('.jpg', pixels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return CompressedImage(
        header=header if header is not None else Header(),
        format='rgb8; jpeg compressed bgr8',
        data=array.array('B', encoded.tobytes()),
    )
