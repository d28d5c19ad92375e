"""From a `Plan` to messages: InteractionPlan, its 3-D path, and the pictures that are played on topics."""

from __future__ import annotations

import uuid

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped, Vector3
from nav_msgs.msg import Path
from std_msgs.msg import Header
from unique_identifier_msgs.msg import UUID

from mask2iv_ros.labels import overlay
from mask2iv_ros.msg import FrameMotion, InteractionPlan, MaskTrajectory, PlanCheck
from mask2iv_ros.planning.checks import passed
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.conversions import write_image


def plan_message(plan: Plan, header: Header, path_frame: str) -> InteractionPlan:
    """Make the message of a plan; it gets a new id, and no times yet.

    Args:
        header: of the observed image.
        path_frame: the frame that `plan.path` is in.
    """
    headers = [_later(header, i / plan.fps) for i in range(len(plan.labels))]
    message = InteractionPlan(
        header=header,
        id=UUID(uuid=np.frombuffer(uuid.uuid4().bytes, np.uint8)),
        task=plan.task,
        seed=plan.seed,
        model=plan.model_name,
        score=float(plan.score),
        score_meaning=plan.score_meaning,
        masks=MaskTrajectory(
            header=header,
            frame_period=1 / plan.fps,
            frames=[
                write_image(labels, 'mono8', at) for labels, at in zip(plan.labels, headers, strict=True)
            ],
        ),
        motion=_motion(plan),
        path_note=plan.path_note,
        contact_frame=plan.motion.contact_frame,
        checks=[
            PlanCheck(name=check.name, passed=check.passed, reason=check.reason) for check in plan.checks
        ],
        checks_passed=passed(plan.checks),
    )
    if plan.frames is not None:
        message.video = [
            write_image(frame, 'rgb8', at) for frame, at in zip(plan.frames, headers, strict=True)
        ]
    if plan.motion.contact_pixel is not None:
        message.contact_pixel = _point(plan.motion.contact_pixel)
    _fill_path(message, plan, [Header(stamp=at.stamp, frame_id=path_frame) for at in headers])
    return message


def overlay_frame(plan: Plan, frame: np.ndarray, index: int) -> np.ndarray:
    """Masks number `index` of the plan, painted over its video or, without one, over the observed `frame`."""
    return overlay(frame if plan.frames is None else plan.frames[index], plan.labels[index])


def _motion(plan: Plan) -> list[FrameMotion]:
    motion = plan.motion
    spread = np.full(len(motion), np.nan) if plan.position_spread is None else plan.position_spread
    return [
        FrameMotion(
            phase=int(motion.phases[t]),
            object_position=_point(motion.position[t]),
            object_position_spread=float(spread[t]),
            object_visibility=float(motion.visibility[t]),
            object_area=float(motion.area[t]),
            object_extent=motion.extent[t].astype(np.float32),
            object_orientation=float(motion.orientation[t]),
            object_rotation=float(motion.rotation[t]),
            object_rigidity=float(motion.rigidity[t]),
            actor_position=_point(motion.actor_centroid[t]),
            actor_area=float(motion.actor_area[t]),
            actor_extent=motion.actor_extent[t].astype(np.float32),
            actor_orientation=float(motion.actor_orientation[t]),
        )
        for t in range(len(motion))
    ]


def _fill_path(message: InteractionPlan, plan: Plan, headers: list[Header]):
    message.object_path = Path(header=headers[0])
    path = plan.path
    if path is None:
        return
    for at, position in zip(headers, path.points, strict=True):
        pose = PoseStamped(header=at)
        pose.pose.position = _point(position)
        message.object_path.poses.append(pose)
    message.depth_model = path.depth_model
    if plan.path_spread is not None:
        message.path_spread = plan.path_spread.tolist()
    if path.normal is not None:
        message.support_normal = Vector3(**dict(zip('xyz', path.normal.tolist(), strict=True)))
        message.path_rotation = path.rotation.tolist()
    if path.contact is not None:
        message.contact_point = [_point(path.contact)]


def _point(values) -> Point:
    return Point(**{axis: float(value) for axis, value in zip('xyz', values, strict=False)})


def _later(header: Header, seconds: float) -> Header:
    total = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec + round(seconds * 1e9)
    stamp = Time(sec=total // 1_000_000_000, nanosec=total % 1_000_000_000)
    return Header(stamp=stamp, frame_id=header.frame_id)
