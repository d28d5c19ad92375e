"""Images from ROS mean what their encoding, step and byte order say, or are refused by name."""

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

from sensor_msgs.msg import CameraInfo, Image

from mask2iv_ros.image_messages import (
    ImageError,
    read_colour,
    read_depth,
    read_distortion,
    read_intrinsics,
    read_mask,
)
from mask2iv_ros.msg import MaskTrajectory
from mask2iv_ros.ros.conversions import read_labels, read_video, write_image, write_jpeg

RGB = np.array([[(10, 20, 30), (40, 50, 60), (70, 80, 90)], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]], np.uint8)
GREY = np.array([[0, 100, 255], [7, 8, 9]], np.uint8)
OPAQUE = np.full((2, 3, 1), 255, np.uint8)


@pytest.mark.parametrize(
    ('encoding', 'pixels', 'expected'),
    [
        ('rgb8', RGB, RGB),
        ('bgr8', RGB[..., ::-1], RGB),
        ('8UC3', RGB[..., ::-1], RGB),
        ('rgba8', np.concatenate([RGB, OPAQUE], -1), RGB),
        ('bgra8', np.concatenate([RGB[..., ::-1], OPAQUE], -1), RGB),
        ('mono8', GREY, np.repeat(GREY[..., None], 3, -1)),
        ('8UC1', GREY, np.repeat(GREY[..., None], 3, -1)),
        ('mono16', GREY.astype(np.uint16) * 257, np.repeat(GREY[..., None], 3, -1)),
        ('rgb16', RGB.astype(np.uint16) * 257, RGB),
    ],
)
def test_every_usual_colour_encoding_becomes_rgb(encoding, pixels, expected):
    colour = read_colour(write_image(np.ascontiguousarray(pixels), encoding))
    assert colour.dtype == np.uint8
    np.testing.assert_array_equal(colour, expected)


def test_a_grey_scene_survives_bayer_and_yuv():
    grey = np.full((8, 8), 120, np.uint8)
    np.testing.assert_array_equal(read_colour(write_image(grey, 'bayer_rggb8')), 120)
    yuyv = np.stack([grey, np.full_like(grey, 128)], -1)
    assert abs(read_colour(write_image(yuyv, 'yuv422_yuy2')).astype(int) - 121).max() < 3


def test_a_red_bayer_scene_is_red():
    mosaic = np.zeros((8, 8), np.uint8)
    mosaic[::2, ::2] = 200  # the R of RGGB
    inner = read_colour(write_image(mosaic, 'bayer_rggb8'))[2:-2, 2:-2]
    assert inner[..., 0].mean() > 150
    assert inner[..., 1:].max() == 0


@pytest.mark.parametrize('encoding', ['rgb8', 'mono16', 'bayer_rggb8'])
def test_padding_at_the_end_of_rows_is_no_picture(encoding):
    channels, dtype = {'rgb8': (3, 'u1'), 'mono16': (1, 'u2'), 'bayer_rggb8': (1, 'u1')}[encoding]
    wide = np.random.default_rng(0).integers(0, 255, (8, 12, channels)).astype(dtype)
    wide[:, 8:] = 99
    padded = write_image(wide, encoding)
    padded.width = 8
    tight = write_image(np.ascontiguousarray(wide[:, :8]), encoding)
    np.testing.assert_array_equal(read_colour(padded), read_colour(tight))


def test_a_mask_is_true_where_it_is_not_zero():
    for encoding, dtype in (('mono8', 'u1'), ('8UC1', 'u1'), ('mono16', 'u2'), ('32SC1', 'i4')):
        mask = read_mask(write_image(GREY.astype(dtype), encoding))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, GREY > 0)


def test_labels_are_read_without_the_padding_of_their_rows():
    labels = np.random.default_rng(0).integers(0, 4, (2, 4, 6)).astype(np.uint8)
    frames = [write_image(np.pad(image, ((0, 0), (0, 2))), 'mono8') for image in labels]
    for frame in frames:
        frame.width = 6  # of a step of 8
    read = read_labels(MaskTrajectory(frames=frames))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)


def test_labels_of_another_encoding_or_of_several_sizes_are_refused():
    labels = np.zeros((4, 6), np.uint8)
    with pytest.raises(ImageError, match=r"'rgb8'.*expected one of mono8"):
        read_labels(MaskTrajectory(frames=[write_image(labels[:, :, None].repeat(3, -1), 'rgb8')]))
    for frames in ([], [write_image(labels, 'mono8'), write_image(labels[:3], 'mono8')]):
        with pytest.raises(ValueError, match=r'need at least one|same shape'):
            read_labels(MaskTrajectory(frames=frames))


def test_depth_is_metres_and_invalid_depth_is_zero():
    millimetres = write_image(np.array([[1500, 0]], np.uint16), '16UC1')
    np.testing.assert_allclose(read_depth(millimetres), [[1.5, 0]])
    metres = write_image(np.array([[0.5, np.nan, np.inf, -1, -np.inf, 0]], np.float32), '32FC1')
    np.testing.assert_array_equal(read_depth(metres), [[0.5, 0, 0, 0, 0, 0]])


def test_big_endian_depth_is_swapped():
    message = write_image(np.array([[1500, 2000]], '>u2'), '16UC1')
    message.is_bigendian = 1
    np.testing.assert_allclose(read_depth(message), [[1.5, 2.0]])


def test_written_images_read_back_and_carry_the_header():
    message = write_image(RGB, 'rgb8')
    assert (message.width, message.height, message.step) == (3, 2, 9)
    assert message.data.typecode == 'B'  # an ndarray here would cost a second a clip
    np.testing.assert_array_equal(read_colour(message), RGB)
    np.testing.assert_array_equal(read_colour(write_image(RGB[:, ::-1], 'rgb8')), RGB[:, ::-1])


@pytest.mark.parametrize(
    ('read', 'encoding'),
    [
        (read_colour, '32FC1'),
        (read_colour, '16UC1'),
        (read_colour, 'nonsense'),
        (read_colour, ''),
        (read_mask, 'rgb8'),
        (read_mask, '32FC1'),
        (read_depth, 'rgb8'),
        (read_depth, 'mono8'),
    ],
)
def test_a_wrong_encoding_is_refused_with_what_came_and_what_is_expected(read, encoding):
    message = Image(width=2, height=2, step=8, encoding=encoding, data=bytes(16))
    with pytest.raises(ImageError, match=f"'{encoding}'.*expected one of .*8|16UC1") as refusal:
        read(message, 'the_input')
    assert refusal.value.code == 'UNSUPPORTED_ENCODING'
    assert 'the_input' in str(refusal.value)


@pytest.mark.parametrize(
    'change',
    [{'data': bytes(17)}, {'step': 8}, {'width': 0}, {'height': 0}, {'height': 2**31}, {'width': 2**31}],
    ids=str,
)
@pytest.mark.parametrize('encoding', ['rgb8', 'bayer_rggb8'])
def test_data_that_does_not_fit_the_size_is_refused(change, encoding):
    message = Image(width=3, height=2, step=9, encoding='rgb8', data=bytes(18))
    if encoding != 'rgb8':
        message = Image(width=9, height=2, step=9, encoding=encoding, data=bytes(18))
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match='bytes') as refusal:
        read_colour(message)
    assert refusal.value.code == 'SIZE_MISMATCH'


def test_an_uncalibrated_camera_has_no_intrinsics():
    assert read_intrinsics(CameraInfo()) is None
    matrix = np.array([[500.0, 0, 320], [0, 501, 240], [0, 0, 1]])
    np.testing.assert_array_equal(read_intrinsics(CameraInfo(k=matrix.ravel())), matrix)
    matrix[0, 0] = np.nan
    assert read_intrinsics(CameraInfo(k=matrix.ravel())) is None


def test_rectified_images_have_the_matrix_p():
    p = np.array([(300.0, 0, 160, 5), (0, 310, 120, 0), (0, 0, 1, 0)])
    message = CameraInfo(k=np.diag((400.0, 400, 1)).ravel(), p=p.ravel())
    np.testing.assert_array_equal(read_intrinsics(message, rectified=True), p[:, :3])
    assert read_intrinsics(CameraInfo(k=message.k), rectified=True) is None


@pytest.mark.parametrize(('model', 'count'), [('plumb_bob', 5), ('plumb_bob', 4), ('rational_polynomial', 8)])
def test_distortion_is_read(model, count):
    coefficients = [0.1 * i for i in range(count)]
    read = read_distortion(CameraInfo(distortion_model=model, d=coefficients))
    np.testing.assert_array_equal(read, coefficients)


@pytest.mark.parametrize(('model', 'd'), [('', []), ('plumb_bob', []), ('plumb_bob', [0.0] * 5)])
def test_no_distortion_is_none(model, d):
    assert read_distortion(CameraInfo(distortion_model=model, d=d)) is None


@pytest.mark.parametrize(
    ('model', 'd', 'words'),
    [
        ('equidistant', [0.0] * 4, "'equidistant', expected plumb_bob or rational_polynomial"),  # 0 bends too
        ('', [0.1] * 5, "the distortion model ''"),
        ('plumb_bob', [0.1] * 3, '3 distortion coefficients'),
        ('plumb_bob', [float('nan')] * 5, 'finite'),
    ],
)
def test_distortion_that_cannot_be_taken_out_is_named(model, d, words):
    with pytest.raises(ValueError, match=words):
        read_distortion(CameraInfo(distortion_model=model, d=d))


def test_a_video_is_stacked_as_rgb():
    messages = [write_image(RGB, 'rgb8'), write_image(RGB[..., ::-1], 'bgr8')]
    np.testing.assert_array_equal(read_video(messages), [RGB, RGB])


def test_a_jpeg_keeps_size_and_colours():
    rows, columns = np.mgrid[:48, :64]
    pixels = np.stack([rows * 5, columns * 3, np.full_like(rows, 20)], -1).astype(np.uint8)
    message = write_jpeg(pixels)
    assert message.format == 'rgb8; jpeg compressed bgr8'  # as image_transport has it
    assert len(message.data) < pixels.nbytes / 4
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded.astype(int) - pixels).max() < 12
