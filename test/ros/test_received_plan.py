"""A received plan is NumPy arrays, whatever its message leaves out."""

import numpy as np
import pytest
from geometry_msgs.msg import Point, PoseStamped

from mask2iv_ros.msg import FrameMotion, InteractionPlan, PlanCheck
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.received_plan import ReceivedPlan

LABELS = np.random.default_rng(0).integers(0, 3, (5, 6, 8)).astype(np.uint8)
VIDEO = np.random.default_rng(1).integers(0, 255, (5, 6, 8, 3)).astype(np.uint8)


@pytest.fixture
def message() -> InteractionPlan:
    """All that a message can have."""
    message = InteractionPlan(
        task='push',
        contact_frame=2,
        contact_pixel=Point(x=3.0, y=4.0),
        contact_point=[Point(x=0.1, y=0.2, z=0.3)],
        video=[write_image(frame, 'rgb8') for frame in VIDEO],
        motion=[FrameMotion(phase=phase) for phase in (0, 0, 1, 1, 2)],
        checks=[PlanCheck(name='workspace', passed=False, reason='too far')],
    )
    message.masks.frames = [write_image(labels, 'mono8') for labels in LABELS]
    message.masks.frame_period = 0.25
    for i in range(5):
        pose = PoseStamped()
        pose.pose.position = Point(x=i / 10, y=0.5, z=1.0)
        message.object_path.poses.append(pose)
    return message


def test_masks_video_and_path_are_arrays(message):
    plan = ReceivedPlan(message)
    np.testing.assert_array_equal(plan.labels, LABELS)
    np.testing.assert_array_equal(plan.video, VIDEO)
    np.testing.assert_allclose(plan.path, [(i / 10, 0.5, 1.0) for i in range(5)])
    np.testing.assert_allclose(plan.times, [0, 0.25, 0.5, 0.75, 1.0])
    assert (plan.labels.dtype, plan.video.dtype, plan.path.dtype) == (np.uint8, np.uint8, np.float64)
    assert plan.video is plan.video  # made once


def test_contact_phases_and_checks_are_told(message):
    plan = ReceivedPlan(message)
    assert (plan.contact_frame, plan.contact_pixel) == (2, (3.0, 4.0))
    np.testing.assert_allclose(plan.contact_point, (0.1, 0.2, 0.3))
    np.testing.assert_array_equal(plan.phases == FrameMotion.INTERACT, [0, 0, 1, 1, 0])
    assert plan.checks['workspace'].reason == 'too far'


def test_what_the_message_leaves_out_is_none():
    message = InteractionPlan()
    message.masks.frames = [write_image(LABELS[0], 'mono8')]
    plan = ReceivedPlan(message)
    assert (plan.video, plan.path, plan.contact_pixel, plan.contact_point) == (None,) * 4
    assert plan.phases.shape == (0,)
    assert plan.contact_frame == -1
    assert plan.checks == {}
    assert plan.alternatives == ()


def test_it_introduces_itself(message):
    message.object_path.header.frame_id = 'camera'
    plan = ReceivedPlan(message, [InteractionPlan()])
    text = "'push': 5 frames of 8x6, with video, path in camera, contact in frame 2, 1 alternatives"
    assert repr(plan) == f'<ReceivedPlan {text}>'
    assert 'without video, no path' in repr(plan.alternatives[0])
