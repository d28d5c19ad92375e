"""Which messages a request is completed with, without a node: by stamp, size, and what is still coming."""

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mask2iv_ros.msg import InteractionRequest
from mask2iv_ros.planning.request import InvalidRequest
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.perception_buffer import PerceptionBuffer
from mask2iv_ros.ros.requests import Limits, read_request

HEIGHT, WIDTH = 60, 80
NOW = 100.0


def header(at: float) -> Header:
    found = Header(frame_id='camera')
    found.stamp.sec, found.stamp.nanosec = int(at), round(at % 1 * 1e9)
    return found


def image(value: int, at: float, size=(HEIGHT, WIDTH)) -> Image:
    return write_image(np.full((*size, 3), value, np.uint8), 'rgb8', header(at))


def mask(at: float, size=(HEIGHT, WIDTH), side: int = 0) -> Image:
    pixels = np.zeros(size, np.uint8)
    pixels[size[0] // 3 : size[0] // 2, size[1] // 4 + side : size[1] // 2 + side] = 255
    return write_image(pixels, 'mono8', header(at))


def read(request: InteractionRequest, buffer: PerceptionBuffer, max_age: float = 2.0):
    request.task = 'push'
    limits = Limits(
        num_samples=1, max_samples=4, seed=0, num_inference_steps=0, max_image_pixels=10**6,
        max_stamp_difference=0.1, max_age=max_age, rectified=False,
    )  # fmt: skip
    return read_request(request, buffer, limits, round(NOW * 1e9), lambda name: f'/{name}')


def filled(**messages) -> PerceptionBuffer:
    buffer = PerceptionBuffer(30)
    for name, found in messages.items():
        for message in found:
            buffer.add(name, serialize_message(message))
    return buffer


def test_an_own_mask_goes_with_the_image_of_its_stamp():
    buffer = filled(image=[image(value, NOW - 1.5 + value / 10) for value in range(15)])
    seen = read(InteractionRequest(object_mask=mask(NOW - 1.0)), buffer)
    assert seen.request.frame[0, 0, 0] == 5
    assert seen.header.stamp.sec == NOW - 1
    assert read(InteractionRequest(object_mask=mask(0)), buffer).request.frame[0, 0, 0] == 14
    for at, told in ((NOW - 1.8, "0.300 s from the object_mask's"), (NOW + 1, 'image: the closest stamp')):
        with pytest.raises(InvalidRequest, match=told) as refused:
            read(InteractionRequest(object_mask=mask(at)), buffer)
        assert refused.value.code == 'STALE_INPUT'


def test_an_own_mask_of_an_old_image_is_refused_by_age():
    buffer = filled(image=[image(7, NOW - 5), image(1, NOW)])
    with pytest.raises(InvalidRequest, match=r'the one of the object_mask on /image is 5\.000 s old'):
        read(InteractionRequest(object_mask=mask(NOW - 5)), buffer)
    seen = read(InteractionRequest(object_mask=mask(NOW - 5)), buffer, max_age=0.0)
    assert seen.request.frame[0, 0, 0] == 7


def test_a_topics_actor_mask_of_another_size_than_the_requests_image_is_left_out():
    half = HEIGHT // 2, WIDTH // 2
    buffer = filled(actor_mask=[mask(NOW, side=20)])
    seen = read(InteractionRequest(image=image(0, NOW, half), object_mask=mask(NOW, half)), buffer)
    assert seen.request.actor_mask is None
    assert seen.no_actor == 'that of /actor_mask is of another size than the image'


@pytest.mark.parametrize('max_age', [0.0, 2.0])
def test_a_silent_actor_mask_is_done_without_whatever_the_clocks_say(max_age):
    now = NOW if max_age else NOW + 1000  # of the camera

    def seen(behind: float):
        actor = mask(now - behind, side=20)
        buffer = filled(image=[image(0, now)], object_mask=[mask(now)], actor_mask=[actor])
        return read(InteractionRequest(), buffer, max_age)

    assert seen(3).request.actor_mask is None
    assert seen(3).no_actor == 'the newest on /actor_mask is 3.0 s older than the image'
    with pytest.raises(InvalidRequest, match=r'actor_mask: .*the last 0\.0 s of image are kept'):
        seen(1)


def test_a_calibration_outlives_a_rewind():
    buffer = filled(image=[image(0, NOW)], camera_info=[Image(header=header(NOW))])
    buffer.clear(keep='camera_info')
    assert buffer.newest('image') is None
    assert buffer.newest('camera_info')
    buffer.clear()
    assert buffer.newest('camera_info') is None
