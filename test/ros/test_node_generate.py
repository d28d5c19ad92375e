"""Plans over service, action and topics; several callers, cancelling, and callers that vanish."""

import copy
import time
from concurrent.futures import wait

import cv2
import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from builtin_interfaces.msg import Time
from nav_msgs.msg import Path
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from visualization_msgs.msg import MarkerArray

from mask2iv_ros.image_messages import read_colour
from mask2iv_ros.msg import InteractionPlan, MaskTrajectory
from mask2iv_ros.ros.client import InteractionClient, InteractionError
from mask2iv_ros.ros.conversions import read_labels, write_image
from ros_harness import HEIGHT, WIDTH, Peer, separate_process, until

FRAMES = 8  # of the tiny model
LONG = 1000  # steps; many seconds
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope='module', autouse=True)
def node(start_node, tiny_model, client):
    node = start_node(model=tiny_model, max_queue=2)
    client.wait_until_ready()
    return node


def test_the_service_answers_in_the_pixel_frame_of_the_image(client, scene, scene_messages):
    image = scene_messages['image']
    image.header.stamp.sec, image.header.frame_id = 1234, 'camera_optical_frame'
    plan = client.generate(**{**scene, 'image': image}, task='open the drawer').message

    assert plan.header == image.header == plan.masks.header
    assert (plan.task, plan.model) == ('open the drawer', 'tiny')
    assert plan.score_meaning
    assert any(plan.id.uuid)
    assert plan.masks.frame_period == pytest.approx(1 / 15)
    assert len(plan.masks.frames) == len(plan.video) == FRAMES
    assert {(f.width, f.height, f.encoding) for f in plan.masks.frames} == {(WIDTH, HEIGHT, 'mono8')}
    assert {(f.width, f.height, f.encoding) for f in plan.video} == {(WIDTH, HEIGHT, 'rgb8')}
    assert plan.video[3].header.stamp.nanosec == pytest.approx(3 / 15 * 1e9, abs=2)
    assert plan.object_path.poses == []  # no depth

    labels = read_labels(plan.masks)
    observed = np.where(
        scene['actor_mask'], MaskTrajectory.ACTOR, scene['object_mask'] * MaskTrajectory.OBJECT
    )
    np.testing.assert_array_equal(labels[0], observed)
    np.testing.assert_array_equal(read_colour(plan.video[0]), scene['image'])
    times = plan.buffer_time, plan.preprocess_time, plan.trajectory_time, plan.video_time, plan.message_time
    assert min(times) > 0
    assert sum(times) < 30


@pytest.mark.parametrize('size', [(37, 91), (301, 50)])
def test_any_size_and_aspect_comes_back_as_it_was(client, size):
    mask = np.zeros(size, np.uint8)
    mask[5:30, 5:40] = 255
    plan = client.generate(image=np.zeros((*size, 3), np.uint8), object_mask=mask, task='push')
    assert plan.labels.shape == (FRAMES, *size)
    assert plan.video.shape == (FRAMES, *size, 3)


def test_a_callback_of_another_node_may_ask_and_wait(client, scene):
    """A single-threaded executor of the caller's own, which waits in the callback meanwhile."""
    peer, plans = Peer('planner'), []
    peer.node.create_timer(0.01, lambda: plans or plans.append(client.generate(**scene, task='push')))
    peer.spin_until(lambda: plans)
    assert len(plans[0].labels) == FRAMES
    peer.close()


def test_the_latest_plan_is_the_newest_of_any_client(client, scene):
    with InteractionClient() as spectator:
        for task in ('one', 'two'):
            plan = client.generate(**scene, task=task)
            until(lambda: spectator.latest_plan().message.id == plan.message.id)  # noqa: B023
        latest, answer = (serialize_message(p.message) for p in (spectator.latest_plan(), plan))
        assert latest == answer  # bytes, since nan differs from itself


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(client, scene):
    def video(seed):
        return client.generate(**scene, task='push', seed=seed).video.tolist()

    assert video(7) == video(7)
    assert video(7) != video(8)


def test_samples_have_following_seeds_and_come_best_first(client, scene):
    best = client.generate(**scene, task='push', num_samples=3, seed=40)
    plans = [plan.message for plan in (best, *best.alternatives)]
    assert sorted(plan.seed for plan in plans) == [40, 41, 42]
    assert [plan.score for plan in plans] == sorted((plan.score for plan in plans), reverse=True)
    assert len({bytes(plan.id.uuid) for plan in plans}) == 3


@pytest.mark.parametrize('goal', ['mask', 'pixel'])
def test_a_goal_alone_is_enough(client, scene, goal):
    goals = {'mask': {'goal_mask': np.roll(scene['object_mask'], 10)}, 'pixel': {'goal_pixel': (50.0, 40.0)}}
    plan = client.generate(**scene, **goals[goal]).message
    assert plan.task == ''
    assert len(plan.video) == FRAMES


def test_trajectory_only_has_no_video(client, scene):
    plan = client.generate(**scene, task='push', trajectory_only=True)
    assert len(plan.labels) == FRAMES
    assert plan.video is None
    assert plan.message.video_time == 0


def test_an_empty_request_takes_the_newest_messages_and_depth_gives_a_path(client, camera, scene_messages):
    depth = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    depth[25:35, 35:45] = 0.8
    k = [100.0, 0, 39.5, 0, 100.0, 29.5, 0, 0, 1]
    calibration = CameraInfo(width=WIDTH, height=HEIGHT, k=k)
    camera.publish(**scene_messages, depth=write_image(depth, '32FC1'), camera_info=calibration)
    plan = client.generate(task='push').message

    assert plan.header.frame_id == 'camera_optical_frame'
    assert plan.header.stamp == scene_messages['image'].header.stamp
    assert len(plan.object_path.poses) == FRAMES
    first = plan.object_path.poses[0]
    assert first.header == plan.header
    assert first.pose.position.z == pytest.approx(0.8)
    assert first.pose.position.x == pytest.approx(0, abs=0.01)  # the object is in the middle of the image
    assert first.pose.orientation.w == 1.0


def stamped(messages: dict, stamp: Time) -> dict:
    """Copies of messages with a stamp."""
    messages = copy.deepcopy(messages)
    for message in messages.values():
        message.header.stamp = stamp
    return messages


@pytest.mark.parametrize(('later', 'poses'), [(0.05, FRAMES), (0.5, 0)], ids=['a little', 'much'])
def test_an_older_set_is_taken_for_its_depth_only_if_it_is_little_older(
    client, camera, scene_messages, later, poses
):
    depth = write_image(np.full((HEIGHT, WIDTH), 0.8, np.float32), '32FC1')
    calibration = CameraInfo(width=WIDTH, height=HEIGHT, k=[100.0, 0, 39.5, 0, 100.0, 29.5, 0, 0, 1])
    camera.publish()  # connects, which takes a while
    first, second = camera.stamp(later), camera.stamp()
    camera.publish(**stamped({**scene_messages, 'depth': depth, 'camera_info': calibration}, first))
    camera.publish(**stamped(scene_messages, second))  # its depth is still on the way
    plan = client.generate(task='push').message
    assert plan.header.stamp == (first if poses else second)
    assert len(plan.object_path.poses) == poses


def test_depth_without_a_value_on_the_object_leaves_out_the_path_only(client, camera, node, scene_messages):
    depth = np.full((HEIGHT, WIDTH), 0.8, np.float32)
    depth[15:45, 25:55] = np.nan
    depth = write_image(depth, '32FC1')
    calibration = CameraInfo(width=WIDTH, height=HEIGHT, k=[100.0, 0, 39.5, 0, 100.0, 29.5, 0, 0, 1])
    camera.publish(**scene_messages, depth=depth, camera_info=calibration)
    plan = client.generate(task='push').message
    assert len(plan.video) == FRAMES
    assert plan.object_path.poses == []
    assert 'No 3-D path: depth has no value between 0.01 and 10.0 m in object_mask' in node.log.read_text()


def test_a_plan_is_published_and_played_once(client, peer, scene):
    client.generate(**scene, task='push')
    seen = {}
    for name, kind, topic, qos in (
        ('overlay', Image, 'mask_overlay', 10),
        ('video', Image, 'video', 10),
        ('plan', InteractionPlan, 'plan', LATCHED),
        ('path', Path, 'object_path', LATCHED),
        ('markers', MarkerArray, 'markers', LATCHED),
        ('jpeg video', CompressedImage, 'video/compressed', 10),
        ('jpeg overlay', CompressedImage, 'mask_overlay/compressed', 10),
    ):
        seen[name] = []
        peer.node.create_subscription(kind, f'/mask2iv/{topic}', seen[name].append, qos)
    peer.spin_until(lambda: seen['plan'] and seen['path'])  # latched: the plan before the subscription
    peer.spin_for(1.0)  # until it is played
    for messages in seen.values():
        messages.clear()

    plan = client.generate(**scene, task='push').message
    peer.spin_until(lambda: len(seen['video']) >= FRAMES and len(seen['overlay']) >= FRAMES)
    peer.spin_for(0.5)  # nothing more comes
    assert len(seen['video']) == len(seen['overlay']) == FRAMES
    assert [received.id for received in seen['plan']] == [plan.id]
    assert len(seen['path']) == len(seen['markers']) == 1
    assert [bytes(frame.data) for frame in seen['video']] == [bytes(frame.data) for frame in plan.video]
    assert read_colour(seen['overlay'][0])[30, 40, 0] > scene['image'][30, 40, 0]  # the object is painted red
    for name in ('video', 'overlay'):
        jpeg = seen[f'jpeg {name}'][0]
        assert jpeg.header == seen[name][0].header
        assert 'jpeg' in jpeg.format
        assert cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), cv2.IMREAD_COLOR).shape == (HEIGHT, WIDTH, 3)


def test_the_action_reports_every_step_and_gives_the_result(client, scene):
    feedback = []
    plans = client.generate_async(on_feedback=feedback.append, **scene, task='push', num_inference_steps=5)
    assert len(plans.result(30).labels) == FRAMES
    steps = [(f.stage, f.step, f.num_steps) for f in feedback if f.step]
    assert steps == [(stage, i, 5) for stage in ('trajectory', 'video') for i in range(1, 6)]
    fractions = [f.fraction for f in feedback]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    previews = [f.preview for f in feedback if f.preview]
    assert 1 <= len(previews) <= 5
    assert len(previews[0]) == FRAMES
    # 60 x 80 letterboxed to 32 x 48: the preview is without the borders.
    assert {(image.height, image.width) for image in previews[0]} == {(32, 43)}


def test_a_running_goal_is_cancelled_between_two_steps(client, scene):
    feedback = []
    plans = client.generate_async(on_feedback=feedback.append, **scene, task='push', num_inference_steps=LONG)
    until(lambda: any(f.step for f in feedback))
    start = time.monotonic()
    client.cancel()
    with pytest.raises(InteractionError, match='CANCELLED'):
        plans.result(10)
    assert time.monotonic() - start < 3
    assert max(f.step for f in feedback) < LONG
    assert client.generate(**scene, task='push')  # and the next request is answered


def test_a_goal_can_be_cancelled_from_its_own_feedback(client, scene):
    def on_feedback(feedback):
        if feedback.step:
            start = time.monotonic()
            client.cancel()
            durations.append(time.monotonic() - start)

    durations = []
    plans = client.generate_async(on_feedback=on_feedback, **scene, task='push', num_inference_steps=LONG)
    with pytest.raises(InteractionError, match='CANCELLED'):
        plans.result(20)
    assert durations[0] < 1


def test_two_requests_at_once_are_both_answered_in_order(client, scene):
    feedback = []
    with InteractionClient() as other:
        other.wait_until_ready()
        first = client.generate_async(**scene, task='first', num_inference_steps=100)
        time.sleep(0.2)
        second = other.generate_async(on_feedback=feedback.append, **scene, task='second')
        wait([first, second], 60)
    assert first.result().message.task == 'first'
    assert second.result().message.task == 'second'
    assert first.result().message.queue_time < 0.1 < second.result().message.queue_time
    assert feedback[0].stage == 'queued'
    assert feedback[0].queue_position == 1


def test_a_full_queue_refuses_and_a_queued_goal_is_cancelled_at_once(client, scene):
    clients = [client, *(InteractionClient() for _ in range(3))]
    try:
        for other in clients:
            other.wait_until_ready()
        running = client.generate_async(**scene, task='running', num_inference_steps=LONG)
        time.sleep(0.3)
        waiting = [c.generate_async(**scene, task='waiting') for c in clients[1:3]]
        time.sleep(0.3)
        with pytest.raises(InteractionError, match=r'QUEUE_FULL: 2 requests are waiting already.*at most 2'):
            clients[3].generate(**scene, task='too much')
        with pytest.raises(InteractionError, match='QUEUE_FULL'):
            clients[3].generate_async(**scene, task='too much').result(10)

        clients[1].cancel()
        with pytest.raises(InteractionError, match='CANCELLED: cancelled by the client'):
            waiting[0].result(1)  # long before the running one is done
        assert not running.done()
        accepted = clients[3].generate_async(**scene, task='fits now')
        client.cancel()
        assert accepted.result(30)
        assert waiting[1].result(30)
    finally:
        for other in clients[1:]:
            other.close()


def test_the_node_answers_others_while_it_generates(client, peer, scene):
    plans = client.generate_async(**scene, task='push', num_inference_steps=LONG)
    time.sleep(0.5)
    start = time.monotonic()
    with InteractionClient() as other:
        other.wait_until_ready()
        with pytest.raises(InteractionError, match='EMPTY_MASK'):
            other.generate(**{**scene, 'object_mask': scene['object_mask'] * 0}, task='push')
    assert time.monotonic() - start < 3
    assert not plans.done()
    client.cancel()
    wait([plans], 10)


CALL = """
import sys
import numpy as np
from mask2iv_ros.ros.client import InteractionClient
client = InteractionClient()
client.wait_until_ready()
mask = np.zeros((60, 80), np.uint8)
mask[20:40, 30:50] = 1
arguments = dict(image=np.zeros((60, 80, 3), np.uint8), object_mask=mask, task='push')
steps = int(sys.argv[2])
if sys.argv[1] == 'service':
    print('called', flush=True)
    plan = client.generate(**arguments, num_inference_steps=steps)
else:
    started = lambda feedback: print('called', flush=True)
    plan = client.generate_async(on_feedback=started, **arguments, num_inference_steps=steps).result()
print('frames', len(plan.labels), flush=True)
"""


@pytest.mark.parametrize(('door', 'steps'), [('service', 100), ('action', LONG)])
def test_a_killed_client_is_answered_after_its_restart(peer, door, steps):
    with separate_process(CALL, door, str(steps)) as process:
        assert process.stdout.readline() == 'called\n'
        time.sleep(0.5)  # in the middle of the request
    if door == 'action':  # the goal of a dead client can be cancelled by anybody: all zero means all goals
        answer = peer.call(CancelGoal, '/mask2iv/generate_interaction/_action/cancel_goal')
        assert answer.return_code == CancelGoal.Response.ERROR_NONE
        assert len(answer.goals_canceling) == 1
    with separate_process(CALL, door, '2') as process:
        assert process.stdout.readlines()[-1] == f'frames {FRAMES}\n'


def test_goal_states_follow_the_action_protocol(client, scene):
    client.generate_async(**scene, task='push').result(30)
    assert _status(client) == GoalStatus.STATUS_SUCCEEDED
    refused = client.generate_async(**scene)
    with pytest.raises(InteractionError, match='NO_TASK_OR_GOAL'):
        refused.result(10)
    assert _status(client) == GoalStatus.STATUS_ABORTED
    cancelled = client.generate_async(**scene, task='push', num_inference_steps=LONG)
    time.sleep(0.3)
    client.cancel()
    with pytest.raises(InteractionError, match='CANCELLED'):
        cancelled.result(10)
    assert _status(client) == GoalStatus.STATUS_CANCELED


def _status(client) -> int:
    result = client._accepting.result().get_result_async()
    until(result.done)
    return result.result().status
