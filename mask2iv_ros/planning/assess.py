"""From plans in pixels to plans that a planner can execute: their 3-D paths, and what they are held against.

No ROS here: the node and programs of the same kind bring depth, calibration and limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask2iv_ros.planning.checks import PlanLimits, check_plan, passed, sample_spread
from mask2iv_ros.planning.path import DEPTH_RANGE, lift_path
from mask2iv_ros.planning.request import Plan


@dataclass
class Geometry:
    """What the camera's pixels are in metres, in the observed frame.

    Attributes:
        depth: (H, W) metres along the optical axis; NaN and values outside `path.DEPTH_RANGE` are invalid.
        intrinsics: (3, 3) pixels.
        distortion: coefficients in the order of `path.pixel_rays`; None for none.
    """

    depth: np.ndarray
    intrinsics: np.ndarray
    distortion: np.ndarray | None = None


def lift_plans(
    plans: Sequence[Plan],
    geometry: Geometry,
    depth_model: str = 'auto',
    up: np.ndarray | None = None,
    to_frame: np.ndarray | None = None,
):
    """Give all plans for one request their `path`, `path_note` and, if there are several, `path_spread`.

    Args:
        depth_model, up: see `path.lift_path`.
        to_frame: (4, 4) from the camera optical frame to the frame that paths are wanted in; None: the
            optical frame.
    """
    for plan in plans:
        camera = geometry.depth, geometry.intrinsics, geometry.distortion
        path = lift_path(plan.labels, *camera, depth_model, up, plan.motion)
        if path is None:
            low, high = DEPTH_RANGE
            plan.path, plan.path_note = None, f'depth has no value between {low} and {high} m in object_mask'
        else:
            plan.path = path if to_frame is None else path.transformed(to_frame)
            plan.path_note = path.reason
    paths = [plan.path.points for plan in plans if plan.path is not None]
    if len(paths) > 1:
        spread = sample_spread(np.stack(paths))
        for plan in plans:
            plan.path_spread = None if plan.path is None else spread


def check_plans(plans: Sequence[Plan], limits: PlanLimits) -> list[Plan]:
    """Give all plans for one request their `checks`; those that pass come first, then the best score."""
    paths = [plan.path.points for plan in plans if plan.path is not None]
    for plan in plans:
        plan.checks = check_plan(
            plan.motion,
            plan.labels.shape[1:],
            limits,
            None if plan.path is None else plan.path.points,
            plan.fps,
            [other.motion for other in plans],
            np.stack(paths) if paths else None,
        )
    return sorted(plans, key=lambda plan: (not passed(plan.checks), -plan.score))
