"""From a `Plan` to messages: InteractionPlan, its 3-D path, and the pictures that are played on topics."""

from __future__ import annotations

import uuid

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from std_msgs.msg import Header
from unique_identifier_msgs.msg import UUID

from mask2iv_ros.labels import overlay
from mask2iv_ros.msg import InteractionPlan, MaskTrajectory
from mask2iv_ros.planning.path import lift_centroids
from mask2iv_ros.planning.request import Plan
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.requests import Observation


def plan_message(plan: Plan, observation: Observation) -> InteractionPlan:
    """Make the message of a plan; it gets a new id, and no times yet."""
    header = observation.header
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
        object_path=_object_path(plan, observation, headers),
        contact_frame=plan.contact_frame,
    )
    if plan.frames is not None:
        message.video = [
            write_image(frame, 'rgb8', at) for frame, at in zip(plan.frames, headers, strict=True)
        ]
    if plan.contact_pixel is not None:
        message.contact_pixel = Point(x=float(plan.contact_pixel[0]), y=float(plan.contact_pixel[1]))
    return message


def overlay_frame(plan: Plan, frame: np.ndarray, index: int) -> np.ndarray:
    """Masks number `index` of the plan, painted over its video or, without one, over the observed `frame`."""
    return overlay(frame if plan.frames is None else plan.frames[index], plan.labels[index])


def _object_path(plan: Plan, observation: Observation, headers: list[Header]) -> Path:
    path = Path(header=observation.header)
    if observation.depth is None or observation.intrinsics is None:
        return path
    points = lift_centroids(plan.labels, observation.depth, observation.intrinsics)
    if points is None:
        return path
    for at, (x, y, z) in zip(headers, points, strict=True):
        pose = PoseStamped(header=at)
        pose.pose.position = Point(x=x, y=y, z=z)
        path.poses.append(pose)
    return path


def _later(header: Header, seconds: float) -> Header:
    total = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec + round(seconds * 1e9)
    stamp = Time(sec=total // 1_000_000_000, nanosec=total % 1_000_000_000)
    return Header(stamp=stamp, frame_id=header.frame_id)
