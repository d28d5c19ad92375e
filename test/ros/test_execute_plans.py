"""The executor example commands a robot over topics: a simulated one in a process of its own."""

import sys
import threading

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray

from mask2iv_ros.labels import ACTOR, OBJECT
from mask2iv_ros.planning.rollout import Planned, execute
from mask2iv_ros.ros.client import InteractionClient
from mask2iv_ros.ros.sim_camera import TOPICS
from ros_harness import TEST_FOLDER

sys.path.insert(0, str(TEST_FOLDER.parent / 'examples'))
from execute_plans import TopicRobot, service_planner


@pytest.fixture(scope='module')
def simulation(start_node):
    return start_node(
        module='sim_robot', scene='door-close', camera='corner', width=160, height=120, rate=5.0
    )


@pytest.fixture(scope='module')
def robot(simulation):
    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    yield TopicRobot(rclpy.create_node('execute_plans', context=context))
    rclpy.try_shutdown(context=context)


def test_a_command_moves_the_hand_its_way(robot):
    before = robot.hand
    for _ in range(10):
        robot.step(np.array((0.0, 0.0, 1.0)), -1.0)
    moved = robot.hand - before
    assert 0.02 < moved[2] < 0.11  # at most 1 cm a step
    assert np.abs(moved[:2]).max() < 0.02


def test_an_observation_shows_the_scene_after_the_last_command(robot):
    first = robot.observe(colour=True)
    for _ in range(15):
        robot.step(np.array((-1.0, 0.0, 0.0)), -1.0)
    second = robot.observe()
    assert first.frame.shape == (120, 160, 3)
    assert second.frame is None
    assert {OBJECT, ACTOR} <= set(np.unique(second.labels))
    assert ((first.labels == ACTOR) != (second.labels == ACTOR)).sum() > 100  # the arm is elsewhere
    np.testing.assert_allclose(second.hand, robot.hand)
    pixel = second.camera.intrinsics @ (
        (second.hand - second.camera.cam_to_world[:3, 3]) @ second.camera.cam_to_world[:3, :3]
    )
    x, y = (pixel[:2] / pixel[2]).round().astype(int)
    assert (
        second.labels[y - 8 : y + 9, x - 8 : x + 9] == ACTOR
    ).any()  # the hand is where the camera sees it


def test_a_command_that_is_none_is_named_and_moves_nothing(robot, simulation, peer):
    before = robot.observe().hand
    publisher = peer.node.create_publisher(Float64MultiArray, 'commands', 10)
    peer.spin_until(publisher.get_subscription_count)
    publisher.publish(Float64MultiArray(data=[1.0, float('nan'), 0.0, 0.0]))
    simulation.wait_for('commands: expected 4 finite numbers')
    np.testing.assert_array_equal(robot.observe().hand, before)


@pytest.mark.parametrize('quality', [qos_profile_sensor_data, QoSProfile(depth=1)])
def test_a_robot_is_heard_as_it_sends(quality):
    """Cameras are often best effort, and states rarely latched."""
    states = {'camera_pose': PoseStamped, 'success': Bool, 'gripper': JointState, 'hand': PoseStamped}
    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    sender = rclpy.create_node('sender', context=context, namespace='other')
    publishers = [
        (sender.create_publisher(kind, topic, quality), kind) for topic, kind in {**TOPICS, **states}.items()
    ]
    sender.create_subscription(Float64MultiArray, 'commands', lambda _message: None, 1)
    stop = threading.Event()

    def send():
        while not stop.wait(0.05):
            for publisher, kind in publishers:
                publisher.publish(kind())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        listener = rclpy.create_node('listener', context=context, namespace='other')
        assert not TopicRobot(listener, patience=20.0).success
    finally:
        stop.set()
        thread.join()
        rclpy.try_shutdown(context=context)


def test_plans_of_the_node_are_executed(robot, start_node, tiny_model):
    start_node(model=tiny_model)
    with InteractionClient() as client:
        client.wait_until_ready()
        policy = Planned(service_planner(client, robot, 'close the door'), None, colour=True)
        steps = execute(robot, policy, 20).steps
    assert steps == 20
    assert policy.labels.shape == (8, 120, 160)  # frames of the tiny model, pixels of the camera
