"""Motion, 3-D path and checks of plans as the node gives them, and the parameters behind them."""

import copy
import importlib.util
import time

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from mask2iv_ros.msg import FrameMotion, InteractionPlan
from mask2iv_ros.ros.client import InteractionError
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.parameters import TABLE
from ros_harness import HEIGHT, WIDTH, set_parameter

FRAMES = 8  # of the tiny model
K = np.array([[100.0, 0, 39.5], [0, 100.0, 29.5], [0, 0, 1]])
DISTORTION = [-0.3, 0.1, 0.002, -0.001, 0.0]
DEPTH = 0.8
ANY_PLAN = {
    'checks.contact_required': {'bool': False},
    'checks.max_step_pixels': {'double': 0.0},
    'checks.min_visible': {'double': 0.0},
    'checks.max_free_motion': {'double': 0.0},
    'checks.max_spread_pixels': {'double': 0.0},
    'checks.area_ratio': {'double_array': [0.0, 0.0]},
}


@pytest.fixture(scope='module', autouse=True)
def node(start_node, tiny_model, client):
    node = start_node(model=tiny_model)
    client.wait_until_ready()
    return node


@pytest.fixture
def parameters(peer):
    """Set parameters of the node; they are as they were after the test."""
    changed = {}

    def change(**values):

        kinds = {bool: 'bool', int: 'integer', float: 'double', str: 'string', list: 'double_array'}
        defaults = {row.name: row.default for row in TABLE}
        for name, value in values.items():
            name = name.replace('checks_', 'checks.')
            changed[name] = {kinds[type(defaults[name])]: defaults[name]}
            assert set_parameter(peer, name, **{kinds[type(value)]: value}) == ''

    yield change
    for name, value in changed.items():
        assert set_parameter(peer, name, **value) == ''


@pytest.fixture
def observe(client, camera, scene_messages):
    """Plans for the scene with a depth image (a plane by default) and a CameraInfo."""

    def plans(depth=None, num_samples=1, frame='', **calibration) -> list[InteractionPlan]:
        depth = np.full((HEIGHT, WIDTH), DEPTH, np.float32) if depth is None else depth
        header = Header(stamp=camera.stamp(), frame_id=frame) if frame else None
        info = CameraInfo(width=WIDTH, height=HEIGHT, k=K.ravel(), **calibration)
        images = copy.deepcopy(scene_messages)  # publishing stamps them
        camera.publish(**images, depth=write_image(depth, '32FC1', header), camera_info=info)
        best = client.generate(task='push', trajectory_only=True, num_samples=num_samples)
        return [plan.message for plan in (best, *best.alternatives)]

    return plans


def points(plan) -> np.ndarray:
    positions = [pose.pose.position for pose in plan.object_path.poses]
    return np.array([(p.x, p.y, p.z) for p in positions]).reshape(-1, 3)


def pixels(plan) -> np.ndarray:
    return np.array([(frame.object_position.x, frame.object_position.y) for frame in plan.motion])


def test_every_frame_tells_its_motion(client, scene):
    plan = client.generate(**scene, task='push', trajectory_only=True).message
    assert len(plan.motion) == FRAMES
    first = plan.motion[0]
    pixel = WIDTH / 43  # of the model
    assert first.object_position.x == pytest.approx(39.5, abs=pixel)
    assert first.object_position.y == pytest.approx(29.5, abs=pixel)
    assert first.actor_position.x == pytest.approx(39.5, abs=pixel)
    assert (first.object_visibility, first.object_rotation) == (1, 0)
    assert first.object_area == pytest.approx(400, rel=0.2)
    assert first.actor_area == pytest.approx(200, rel=0.3)
    np.testing.assert_allclose(first.actor_extent, (20, 10), atol=2 * pixel)
    assert abs(first.actor_orientation) == pytest.approx(np.pi / 2, abs=0.1)
    np.testing.assert_allclose(first.object_extent, 20, atol=2 * pixel)
    assert np.isnan(first.object_position_spread)  # one sample
    phases = [frame.phase for frame in plan.motion]
    assert phases == sorted(phases)
    if plan.contact_frame >= 0:
        assert phases.index(FrameMotion.INTERACT) == plan.contact_frame
        assert 0 <= plan.contact_pixel.x < WIDTH
        assert 0 <= plan.contact_pixel.y < HEIGHT
    else:
        assert set(phases) == {FrameMotion.APPROACH}
    assert plan.object_path.poses == []
    assert plan.depth_model == ''
    assert 'no depth' in plan.path_note


def test_a_path_says_how_its_depth_was_found(observe, parameters):
    parameters(depth_model='constant_depth')
    (plan,) = observe()
    assert plan.depth_model == 'constant_depth'
    assert plan.path_note == 'asked for'
    found = points(plan)
    np.testing.assert_allclose(found[:, 2], DEPTH, atol=1e-6)
    rays = np.column_stack((pixels(plan), np.ones(FRAMES))) @ np.linalg.inv(K).T
    np.testing.assert_allclose(found, DEPTH * rays, atol=1e-6)
    normal = plan.support_normal  # of the plane that the depth image shows
    np.testing.assert_allclose((normal.x, normal.y, normal.z), (0, 0, -1), atol=1e-3)
    assert len(plan.path_rotation) == FRAMES
    assert len(plan.path_spread) == 0  # one sample
    assert len(plan.contact_point) == (plan.contact_frame >= 0)
    for point in plan.contact_point:
        pixel = K @ (point.x / point.z, point.y / point.z, 1)
        np.testing.assert_allclose(pixel[:2], (plan.contact_pixel.x, plan.contact_pixel.y), atol=1e-6)
    parameters(depth_model='auto')
    assert observe()[0].depth_model in ('support_plane', 'constant_depth', 'upright_plane')


def test_depth_that_is_not_aligned_costs_the_path(observe):
    (plan,) = observe(frame='camera_depth_optical_frame')
    assert plan.object_path.poses == []
    frames = "'camera_depth_optical_frame', the image of 'camera_optical_frame'"
    assert plan.path_note == f'depth is of frame {frames}: align it to the image'


def test_samples_tell_how_far_they_stray(observe):
    plans = observe(num_samples=2)
    paths = np.stack([points(plan) for plan in plans])
    expected = np.sqrt(paths.var(axis=0, ddof=1).sum(axis=1))
    for plan in plans:
        np.testing.assert_allclose(plan.path_spread, expected, atol=1e-5)
        spread = [frame.object_position_spread for frame in plan.motion]
        assert spread[0] == 0
        assert np.isfinite(spread).all()


@pytest.mark.parametrize('nothing', [0.0, np.nan, 10.0, -1.0])
def test_invalid_depth_is_left_out_and_named_if_nothing_else_is_there(observe, nothing):
    depth = np.full((HEIGHT, WIDTH), DEPTH, np.float32)
    depth[20:40, 30:48] = nothing  # a tenth of the object has depth
    (plan,) = observe(depth)
    assert points(plan)[0, 2] == pytest.approx(DEPTH)
    depth[15:45, 25:55] = nothing
    (plan,) = observe(depth)
    assert plan.object_path.poses == []
    assert plan.path_note == 'depth has no value between 0.01 and 10.0 m in object_mask'


@pytest.mark.parametrize(
    ('model', 'coefficients'),
    [('plumb_bob', DISTORTION), ('rational_polynomial', [*DISTORTION, 0.01, 0.002, 0.0])],
)
def test_lens_distortion_is_taken_out(observe, model, coefficients):
    (plan,) = observe(distortion_model=model, d=coefficients)
    back, _ = cv2.projectPoints(points(plan), np.zeros(3), np.zeros(3), K, np.array(coefficients))
    np.testing.assert_allclose(back[:, 0], pixels(plan), atol=0.01)


def test_a_distortion_model_that_is_not_known_costs_the_path(observe):
    (plan,) = observe(distortion_model='equidistant', d=[0.1, 0.0, 0.0, 0.0])
    assert plan.object_path.poses == []
    assert "'equidistant', expected plumb_bob or rational_polynomial" in plan.path_note


def test_rectified_images_have_the_matrix_of_rectified_images(observe, parameters):
    parameters(rectified=True)
    p = np.zeros((3, 4))
    p[:, :3] = K * np.array([[2.0], [2.0], [1]])
    (plan,) = observe(distortion_model='plumb_bob', d=DISTORTION, p=p.ravel())
    back = points(plan) @ p[:, :3].T
    np.testing.assert_allclose(back[:, :2] / back[:, 2:], pixels(plan), atol=1e-3)
    assert 'P is empty' in observe()[0].path_note


def test_failing_plans_are_returned_with_the_reason(observe, parameters):
    parameters(checks_workspace=[5.0, 5.0, 5.0, 6.0, 6.0, 6.0])
    (plan,) = observe()
    assert not plan.checks_passed
    (check,) = [check for check in plan.checks if check.name == 'workspace']
    assert not check.passed
    assert 'frame 0 is at' in check.reason


def test_failing_plans_are_refused_where_that_is_asked_for(observe, peer, parameters, node):
    parameters(checks_workspace=[5.0, 5.0, 5.0, 6.0, 6.0, 6.0], refuse_failing_plans=True)
    seen = []
    subscription = peer.node.create_subscription(InteractionPlan, '/mask2iv/plan', seen.append, 10)
    peer.spin_for(1.0)
    seen.clear()
    with pytest.raises(InteractionError, match=r'all 2 plans failed.*seed 0: .*workspace') as refusal:
        observe(num_samples=2)
    assert refusal.value.name == 'CHECKS_FAILED'
    peer.spin_for(1.0)
    assert seen == []
    peer.node.destroy_subscription(subscription)


def test_plans_that_pass_are_not_refused(observe, peer, parameters):
    for name, value in ANY_PLAN.items():
        assert set_parameter(peer, name, **value) == ''
    parameters(checks_workspace=[-9.0, -9.0, 0.0, 9.0, 9.0, 9.0], refuse_failing_plans=True)
    parameters(checks_max_speed=100.0, checks_max_step=9.0, checks_max_spread=9.0)
    try:
        plans = observe(num_samples=2)
    finally:
        from mask2iv_ros.ros.parameters import TABLE

        defaults = {row.name: row.default for row in TABLE}
        for name, value in ANY_PLAN.items():
            assert set_parameter(peer, name, **dict.fromkeys(value, defaults[name])) == ''
    assert len(plans) == 2
    assert all(plan.checks_passed for plan in plans)
    assert {check.name for check in plans[0].checks} == {'workspace', 'speed', 'step', 'agreement'}


def test_without_a_path_its_checks_fail(client, scene, parameters):
    parameters(checks_max_speed=1.0)
    plan = client.generate(**scene, task='push', trajectory_only=True).message
    (check,) = [check for check in plan.checks if check.name == 'path']
    assert not check.passed
    assert 'max_speed' in check.reason


def test_limits_that_make_no_sense_are_refused(peer):
    for box in ([1.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0], [0.0] * 5 + [1e9]):
        assert 'checks.workspace: expected' in set_parameter(peer, 'checks.workspace', double_array=box)
    assert 'checks.area_ratio' in set_parameter(peer, 'checks.area_ratio', double_array=[2.0, 0.5])
    assert set_parameter(peer, 'checks.max_speed', double=-1.0)
    assert 'support_plane' in set_parameter(peer, 'depth_model', string='magic')


def test_an_unknown_path_frame_costs_the_path_and_nothing_else(observe, node, parameters):
    parameters(path_frame='base_link')
    for _ in range(2):
        (plan,) = observe()
        assert plan.object_path.poses == []
        assert plan.depth_model == ''
        assert 'no transform from camera_optical_frame to base_link' in plan.path_note
        assert len(plan.motion) == FRAMES
    time.sleep(0.2)
    assert node.log.read_text().count('to base_link') == 1


def test_the_optical_frame_by_name_needs_no_transform(observe, parameters):
    parameters(path_frame='camera_optical_frame')
    (plan,) = observe()
    assert len(plan.object_path.poses) == FRAMES
    assert plan.object_path.header.frame_id == 'camera_optical_frame'


def test_an_unknown_gravity_frame_is_named_beside_the_path(observe, parameters):
    parameters(gravity_frame='world')
    (plan,) = observe()
    assert len(plan.object_path.poses) == FRAMES
    assert 'up is unknown: no transform from camera_optical_frame to world' in plan.path_note


@pytest.mark.skipif(importlib.util.find_spec('tf2_ros') is None, reason='tf2_ros is not installed')
def test_a_path_in_the_frame_of_the_robot(observe, peer, parameters):
    """The camera hangs 1 m above the robot's base and looks down."""
    from tf2_ros import StaticTransformBroadcaster

    parameters(depth_model='constant_depth')
    optical = points(observe()[0])
    transform = TransformStamped(child_frame_id='camera_optical_frame')
    transform.header.frame_id = 'robot_base'
    transform.transform.translation.z, transform.transform.rotation.w = 1.0, 0.0
    transform.transform.rotation.x = 1.0
    StaticTransformBroadcaster(peer.node).sendTransform(transform)
    parameters(path_frame='robot_base', gravity_frame='robot_base')
    observe()  # the node listens from its first request or second on
    peer.spin_for(2.0)
    (plan,) = observe()
    assert plan.path_note == 'asked for'
    assert plan.object_path.header.frame_id == 'robot_base'
    assert {pose.header.frame_id for pose in plan.object_path.poses} == {'robot_base'}
    np.testing.assert_allclose(points(plan), optical * (1, -1, -1) + np.array((0, 0, 1)), atol=1e-6)
    normal = plan.support_normal
    np.testing.assert_allclose((normal.x, normal.y, normal.z), (0, 0, 1), atol=1e-3)
