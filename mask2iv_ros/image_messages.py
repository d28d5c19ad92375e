"""Image messages of ROS 2 to NumPy: the only place that knows encodings, row steps and byte orders.

What cameras and mask nodes really send is read with NumPy alone, without a copy where the layout allows it;
colour encodings beyond that (Bayer, YUV, 16 bit) go through rosbags-image. cv_bridge is not used: it is no
wheel, and builds against NumPy 1 crash under NumPy 2. Nothing here needs ROS: a message is anything with the
fields of `sensor_msgs`, be it rclpy's or that of a recording.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np

#: encoding -> channels, and the order of those that make RGB
_COLOUR = {
    'rgb8': (3, (0, 1, 2)),
    'bgr8': (3, (2, 1, 0)),
    '8UC3': (3, (2, 1, 0)),  # OpenCV's order, as cv_bridge reads it
    'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)),
    '8UC4': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)),
    '8UC1': (1, (0, 0, 0)),
}
#: encoding -> dtype and channels, of what rosbags-image converts
_ODD_COLOUR = {
    **{f'bayer_{pattern}8': ('u1', 1) for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')},
    **{f'bayer_{pattern}16': ('u2', 1) for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')},
    **dict.fromkeys(('uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2'), ('u1', 2)),
    'mono16': ('u2', 1),
    'rgb16': ('u2', 3),
    'bgr16': ('u2', 3),
    'rgba16': ('u2', 4),
    'bgra16': ('u2', 4),
}
_MASK = {'mono8': 'u1', '8UC1': 'u1', '8SC1': 'i1', 'mono16': 'u2', '16UC1': 'u2', '32SC1': 'i4'}
_DISTORTION = ('plumb_bob', 'rational_polynomial')
_DEPTH = {'16UC1': ('u2', 0.001), 'mono16': ('u2', 0.001), '32FC1': ('f4', 1.0)}  # REP-118


class ImageError(ValueError):
    """An image message that cannot be read. `code` is UNSUPPORTED_ENCODING or SIZE_MISMATCH."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def read_stamp(serialised: bytes) -> int:
    """Return the header stamp, nanoseconds, of a CDR-serialised message that begins with std_msgs/Header."""
    order = '<' if serialised[1] & 1 else '>'  # second byte of the encapsulation header
    seconds, nanoseconds = struct.unpack_from(f'{order}iI', serialised, 4)
    return seconds * 1_000_000_000 + nanoseconds


def read_colour(message: Any, name: str = 'image') -> np.ndarray:
    """Return the message as (H, W, 3) uint8 RGB.

    Raises ImageError for an encoding that is no colour or grey, and for data that does not fit the size.
    """
    if message.encoding in _ODD_COLOUR:
        return _read_odd_colour(message, name)
    if message.encoding not in _COLOUR:
        raise unsupported_encoding(message, name, [*_COLOUR, *_ODD_COLOUR])
    channels, order = _COLOUR[message.encoding]
    pixels = read_pixels(message, 'u1', channels, name)
    return pixels if order == (0, 1, 2) and channels == 3 else pixels[..., order]


def read_mask(message: Any, name: str = 'mask') -> np.ndarray:
    """Return a label or binary image as (H, W) bool: every pixel that is not 0. Raises ImageError."""
    if message.encoding not in _MASK:
        raise unsupported_encoding(message, name, _MASK)
    return read_pixels(message, _MASK[message.encoding], 1, name)[..., 0] != 0


def read_depth(message: Any, name: str = 'depth') -> np.ndarray:
    """Return (H, W) float32 metres along the optical axis; NaN, infinite and negative depths become 0.

    Reads 16UC1 millimetres and 32FC1 metres (REP-118). Raises ImageError.
    """
    if message.encoding not in _DEPTH:
        raise unsupported_encoding(message, name, _DEPTH)
    dtype, scale = _DEPTH[message.encoding]
    depth = read_pixels(message, dtype, 1, name)[..., 0].astype(np.float32) * np.float32(scale)
    depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth


def read_intrinsics(message: Any, rectified: bool = False) -> np.ndarray | None:
    """Return the (3, 3) float64 camera matrix in pixels, or None if the camera is not calibrated.

    `rectified`: that of rectified images (P), not of raw ones (K).
    """
    numbers = np.array(message.p, dtype=np.float64).reshape(3, 4)[:, :3] if rectified else message.k
    intrinsics = np.array(numbers, dtype=np.float64).reshape(3, 3)
    focal = intrinsics[0, 0], intrinsics[1, 1]
    intrinsics[2] = 0, 0, 1  # by definition; some drivers leave it out
    return intrinsics if np.isfinite(intrinsics).all() and min(focal) > 0 else None


def read_distortion(message: Any) -> np.ndarray | None:
    """Return the coefficients D of raw images in OpenCV's order, None if there is no distortion.

    Raises ValueError for a distortion model other than plumb_bob and rational_polynomial, and for
    coefficients that are none.
    """
    coefficients = np.array(message.d, dtype=np.float64)
    model = message.distortion_model
    if model not in _DISTORTION and (model or coefficients.any()):
        raise ValueError(
            f'camera_info has the distortion model {model!r}, expected {" or ".join(_DISTORTION)}; feed '
            'rectified images and set the parameter rectified'
        )
    if not coefficients.any():
        return None
    if len(coefficients) not in (4, 5, 8, 12, 14) or not np.isfinite(coefficients).all():
        raise ValueError(
            f'camera_info has {len(coefficients)} distortion coefficients {coefficients.tolist()}, expected '
            '4, 5, 8, 12 or 14 finite numbers'
        )
    return coefficients


def read_pixels(message: Any, dtype: str, channels: int, name: str) -> np.ndarray:
    """View the data as (H, W, channels) of `dtype`, honouring `step` and `is_bigendian`, without a copy."""
    dtype = np.dtype(dtype).newbyteorder('>' if message.is_bigendian else '<')
    row = message.width * channels * dtype.itemsize
    size = message.step * message.height
    if message.width == 0 or message.height == 0 or message.step < row or len(message.data) < size:
        raise ImageError(
            'SIZE_MISMATCH',
            f'{name}: {message.width} x {message.height} pixels of {message.encoding} with step '
            f'{message.step} need a step of at least {row} and '
            f'{max(message.step, row) * message.height} bytes, got {len(message.data)} bytes',
        )
    strides = (message.step, channels * dtype.itemsize, dtype.itemsize)
    return np.ndarray((message.height, message.width, channels), dtype, message.data, strides=strides)


def _read_odd_colour(message: Any, name: str) -> np.ndarray:
    import cv2
    from rosbags.image import ImageError as RosbagsImageError
    from rosbags.image import image_to_cvimage

    dtype, channels = _ODD_COLOUR[message.encoding]
    # rosbags-image ignores `step`, so it gets a message whose rows have no padding.
    pixels = read_pixels(message, dtype, channels, name).astype(dtype)
    rows = SimpleNamespace(
        encoding=message.encoding,
        height=message.height,
        width=message.width,
        is_bigendian=0,
        data=pixels.view('u1').ravel(),
    )
    try:
        return image_to_cvimage(rows, 'rgb8')
    except (RosbagsImageError, cv2.error) as error:  # e.g. YUV of an odd width
        raise ImageError(
            'UNSUPPORTED_ENCODING', f'{name}: cannot convert {message.encoding!r}: {error}'
        ) from error


def unsupported_encoding(message: Any, name: str, known) -> ImageError:
    return ImageError(
        'UNSUPPORTED_ENCODING',
        f'{name}: cannot read encoding {message.encoding!r}; expected one of {", ".join(known)}',
    )
