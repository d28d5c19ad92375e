"""Generated plans as episodes of a LeRobot dataset, with every failure as an error code of the service."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.labels import OBJECT
from mask2iv_ros.ros.requests import Observation


class ExportError(Exception):
    """A refused or failed export; `code` is the name of an error code of ExportDemonstration."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def export_plans(
    plans: list[tuple[str, object, Observation]], root: Path, name: str
) -> tuple[Path, list[int]]:
    """Append plans, each with its id and what it observed, to the dataset `name` below `root`.

    Returns the dataset's folder and the new episodes' indices. Either all plans are written or none. Raises
    ExportError.
    """
    from mask2iv_ros.data.lerobot import IncompatibleDataset, LeRobotClipWriter, resolve_dataset_dir

    try:
        path = resolve_dataset_dir(root, name)
    except ValueError as error:
        raise ExportError('INVALID_DATASET_NAME', str(error)) from error
    clips = [plan_clip(*plan) for plan in plans]
    try:
        with LeRobotClipWriter(path) as writer:
            episodes = [writer.add(clip) for clip in clips]
    except IncompatibleDataset as error:
        raise ExportError('INCOMPATIBLE_DATASET', str(error)) from error
    except Exception as error:
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
        code = 'DISK_FULL' if full else 'WRITE_FAILED'
        raise ExportError(code, f'{path}: {type(error).__name__}: {error}') from error
    return path, episodes


def plan_clip(plan_id: str, plan, observation: Observation) -> InteractionClip:
    """Make a clip of a `Plan`. Raises ExportError UNKNOWN_PLAN if it has no video.

    States and actions stay None: a plan knows pixels, not joints.
    """
    from mask2iv_ros.planning.generate import move_mask

    if plan.frames is None:
        text = f'plan {plan_id} has no video; generate it without trajectory_only'
        raise ExportError('UNKNOWN_PLAN', text)
    request = observation.request
    goal = request.goal_mask
    if request.goal_pixel is not None:
        goal = move_mask(request.object_mask, request.goal_pixel)
    stamp = observation.header.stamp
    return InteractionClip(
        frames=plan.frames,
        labels=plan.labels,
        task=plan.task,
        fps=round(1 / plan.frame_period, 6),
        goal=None if goal is None else np.where(goal, OBJECT, 0).astype(np.uint8),
        camera=None if observation.intrinsics is None else Camera(observation.intrinsics),
        source={
            'generated_by': 'mask2iv_ros',
            'model': plan.model_name,
            'plan_id': plan_id,
            'seed': plan.seed,
            'score': plan.score,
            'score_meaning': plan.score_meaning,
            'observed_at': stamp.sec + stamp.nanosec * 1e-9,
            'camera_frame': observation.header.frame_id,
        },
    )
