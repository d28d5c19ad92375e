"""Every error code, provoked for real; after each refusal the node answers the next request."""

import copy
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from mask2iv_ros.msg import InteractionRequest, MaskTrajectory
from mask2iv_ros.ros.client import InteractionError, make_request
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.srv import GenerateInteraction
from ros_harness import HEIGHT, WIDTH, set_parameter


@pytest.fixture(scope='module', autouse=True)
def node(start_node, tiny_model, client):
    node = start_node(model=tiny_model, max_image_pixels=1_000_000, max_samples=4)
    client.wait_until_ready()
    return node


@pytest.fixture(autouse=True)
def the_node_answers_the_next_request(node, client, scene):
    yield
    assert client.generate(**scene, task='push', timeout=30)
    assert 'A callback failed' not in node.log.read_text()


def refused(client, name: str, *phrases: str, **fields):
    """Both doors refuse with the code `name` and a message that contains `phrases`."""
    for ask in (client.generate, lambda **fields: client.generate_async(**fields).result(20)):
        with pytest.raises(InteractionError) as refusal:
            ask(**fields)
        assert refusal.value.name == name
        assert refusal.value.code == getattr(GenerateInteraction.Response, name) > 0
        for phrase in phrases:
            assert phrase in str(refusal.value)


def test_nothing_received_yet(client, scene):  # first: the other tests publish
    refused(client, 'NO_IMAGE', 'none received yet on /image (0 publishers)', task='push')
    refused(client, 'NO_OBJECT_MASK', '/object_mask', image=scene['image'], task='push')


def test_an_empty_request_names_what_is_missing(client):
    refused(client, 'NO_IMAGE', request=InteractionRequest())


def test_a_mask_of_another_camera_is_not_taken_for_an_image_of_the_request(client, camera, scene_messages):
    camera.publish(**scene_messages)
    image = copy.deepcopy(scene_messages['image'])
    image.header.frame_id = 'wrist_optical_frame'
    told = "is of frame 'camera_optical_frame', the image of 'wrist_optical_frame'"
    refused(client, 'NO_OBJECT_MASK', told, image=image, task='push')
    own = client.generate(image=image, object_mask=scene_messages['object_mask'], task='push')
    assert np.isnan(own.message.motion[0].actor_position.x)  # nor the other camera's actor


def test_neither_task_nor_goal(client, scene):
    refused(client, 'NO_TASK_OR_GOAL', **scene)
    refused(client, 'NO_TASK_OR_GOAL', **scene, task='   ')


def test_empty_masks(client, scene):
    nothing = np.zeros((HEIGHT, WIDTH), np.uint8)
    refused(client, 'EMPTY_MASK', 'object_mask', **{**scene, 'object_mask': nothing}, task='push')
    refused(client, 'EMPTY_MASK', 'goal_mask', **scene, goal_mask=nothing)
    one_pixel = nothing.copy()
    one_pixel[0, 0] = 1
    refused(client, 'EMPTY_MASK', 'too few', **{**scene, 'object_mask': one_pixel}, task='push')


@pytest.mark.parametrize('name', ['object_mask', 'actor_mask', 'goal_mask'])
def test_masks_of_another_size(client, scene, name):
    other = {**scene, name: np.ones((HEIGHT, WIDTH + 1), np.uint8)}
    refused(client, 'SIZE_MISMATCH', name, '81 x 60', '80 x 60', **other, task='push')


def test_data_that_does_not_fit_the_size(client, scene, scene_messages):
    image = scene_messages['image']
    image.height += 1
    image.data = image.data[:-10]
    masks = {name: np.pad(scene[name], ((0, 1), (0, 0))) for name in ('object_mask', 'actor_mask')}
    refused(client, 'SIZE_MISMATCH', 'bytes', image=image, **masks, task='push')


def test_unknown_encodings(client, scene):
    for encoding in ('32FC1', 'jpeg', ''):
        image = Image(
            height=HEIGHT, width=WIDTH, step=WIDTH * 4, encoding=encoding, data=bytes(WIDTH * HEIGHT * 4)
        )
        refused(
            client, 'UNSUPPORTED_ENCODING', repr(encoding), 'rgb8', **{**scene, 'image': image}, task='push'
        )
        refused(client, 'UNSUPPORTED_ENCODING', 'mono8', **{**scene, 'object_mask': image}, task='push')


def test_values_out_of_range(client, scene):
    refused(
        client, 'INVALID_PARAMETER', 'num_samples: 200', 'at most 4', **scene, task='push', num_samples=200
    )
    phrases = 'num_inference_steps 60000', 'at most the 1000 timesteps'
    refused(client, 'INVALID_PARAMETER', *phrases, **scene, task='push', num_inference_steps=60_000)
    refused(client, 'INVALID_PARAMETER', 'seed', **scene, task='push', seed=2**64 - 1, num_samples=2)
    for pixel in ((WIDTH, 3), (-1, 3), (3, HEIGHT + 50), (float('nan'), 3), (float('inf'), 3)):
        refused(client, 'INVALID_PARAMETER', 'goal', **scene, goal_pixel=pixel)


def test_a_huge_image(client):
    image = np.zeros((1001, 1000, 3), np.uint8)
    mask = np.ones((1001, 1000), np.uint8)
    phrases = '1000 x 1001', 'at most 1000000', 'max_image_pixels'
    refused(client, 'IMAGE_TOO_LARGE', *phrases, image=image, object_mask=mask, task='push')


def test_stale_stamps(client, camera, scene_messages):
    scene_messages['object_mask'].header.stamp = camera.stamp(age=0.5)
    camera.publish(**scene_messages)
    refused(
        client,
        'STALE_INPUT',
        'object_mask',
        'max_stamp_difference',
        '/object_mask (1 publisher)',
        task='push',
    )


def test_an_old_image(client, camera, scene_messages):
    time.sleep(2.5)  # what other tests published is too old too
    camera.publish(age=60, **scene_messages)
    refused(client, 'STALE_INPUT', 'image', '60', 'at most 2.0', 'max_age', task='push')


def test_an_actor_mask_whose_topic_fell_silent_is_done_without(client, camera, node, scene_messages):
    def has_actor() -> bool:
        camera.publish(**copy.deepcopy(scene_messages))  # publishing stamps them
        return (client.generate(task='push').labels[0] == MaskTrajectory.ACTOR).any()

    time.sleep(5)  # after its activation a node waits for inputs, and images grow old
    assert has_actor()
    del scene_messages['actor_mask']
    assert has_actor()  # it may only be late: the older image, whose actor is known, is planned on
    time.sleep(2)
    assert not has_actor()
    node.wait_for('No actor_mask: the newest on /actor_mask (1 publisher) is ')


def test_a_mask_of_another_size_on_its_topic(client, camera, scene_messages):
    scene_messages['object_mask'] = write_image(np.ones((HEIGHT, WIDTH - 1), np.uint8), 'mono8')
    camera.publish(**scene_messages)
    refused(client, 'SIZE_MISMATCH', 'object_mask: 79 x 60', task='push')


def test_depth_of_an_unknown_encoding_costs_the_path_only(client, camera, node, scene_messages):
    calibration = CameraInfo(width=WIDTH, height=HEIGHT, k=[100.0, 0, 39.5, 0, 100.0, 29.5, 0, 0, 1])
    depth = write_image(np.ones((HEIGHT, WIDTH, 3), np.uint8), 'rgb8')
    camera.publish(**scene_messages, depth=depth, camera_info=calibration)
    assert client.generate(task='push').path is None


def test_an_image_in_the_request_needs_nothing_from_the_topics(client, camera, scene, scene_messages):
    camera.publish(**scene_messages)  # of another size, and now
    image = np.zeros((HEIGHT // 2, WIDTH, 3), np.uint8)
    mask = image[..., 0] + 1
    assert client.generate(image=image, object_mask=mask, task='push')
    stamped = write_image(image, 'rgb8', Header(stamp=camera.stamp(age=100)))
    assert client.generate(image=stamped, object_mask=mask, task='push')


def test_too_little_memory(client, node, scene):
    """The process may not grow by what four videos of a large image need."""
    image = np.zeros((1000, 1000, 3), np.uint8)
    request = make_request(image=image, object_mask=image[..., 0] + 1, task='push', num_samples=4)
    pid = node.process.pid
    status = Path(f'/proc/{pid}/status').read_text()
    kibibytes = int(re.search(r'VmSize:\s+(\d+)', status)[1])
    limits = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (kibibytes * 1024 + 40 * 2**20, limits[1]))
    try:
        with pytest.raises(InteractionError, match=r'OUT_OF_MEMORY.*fewer samples'):
            client.generate(request, timeout=60)
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, limits)


def test_parameters_refuse_what_they_do_not_allow(peer):
    assert 'auto|cpu|cuda' in set_parameter(peer, 'device', string='banana')
    assert set_parameter(peer, 'max_queue', integer=-1)
    assert set_parameter(peer, 'max_queue', string='many')
    assert set_parameter(peer, 'max_stamp_difference', double=-0.5)
    assert 'read-only' in set_parameter(peer, 'autostart', bool=False)
    assert set_parameter(peer, 'no_such_parameter', integer=1)
    assert set_parameter(peer, 'max_queue', integer=3) == ''
    assert 'num_samples 5 > max_samples 4' in set_parameter(peer, 'num_samples', integer=5)
    assert set_parameter(peer, 'dataset_root', string='')


def test_every_parameter_is_described(peer):
    from mask2iv_ros.ros.parameters import TABLE

    names = [row.name for row in TABLE]
    answer = peer.call(DescribeParameters, '/mask2iv/describe_parameters', names=names)
    assert [descriptor.name for descriptor in answer.descriptors] == names
    assert all(descriptor.description for descriptor in answer.descriptors)


def test_a_parameter_is_used_where_the_request_says_nothing(client, peer, scene):
    assert set_parameter(peer, 'seed', integer=77) == ''
    try:
        assert client.generate(**scene, task='push').message.seed == 77
    finally:
        set_parameter(peer, 'seed', integer=0)
