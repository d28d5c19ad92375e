"""Generated plans as episodes of a LeRobot dataset, with every failure as an error code of the service."""

from __future__ import annotations

import errno
from pathlib import Path

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.lerobot import IncompatibleDataset, LeRobotClipWriter, resolve_dataset_dir
from mask2iv_ros.planning.request import Plan, plan_to_clip
from mask2iv_ros.ros.requests import Observation


class ExportError(Exception):
    """A refused or failed export; `code` is the name of an error code of ExportDemonstration."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def export_plans(plans: list[tuple[str, Plan, Observation]], root: Path, name: str) -> tuple[Path, list[int]]:
    """Append plans, each with its id and what it observed, to the dataset `name` below `root`.

    Returns the dataset's folder and the new episodes' indices. Either all plans are written or none. Raises
    ExportError.
    """
    path = root / name
    try:
        try:
            path = resolve_dataset_dir(root, name)
        except ValueError as error:
            raise ExportError('INVALID_DATASET_NAME', str(error)) from error
        clips = [_clip(*plan) for plan in plans]
        with LeRobotClipWriter(path) as writer:
            episodes = [writer.add(clip) for clip in clips]
    except ExportError:
        raise
    except IncompatibleDataset as error:
        raise ExportError('INCOMPATIBLE_DATASET', str(error)) from error
    except Exception as error:
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
        code = 'DISK_FULL' if full else 'WRITE_FAILED'
        raise ExportError(code, f'{path}: {type(error).__name__}: {error}') from error
    return path, episodes


def _camera(observation: Observation) -> Camera | None:
    """The calibration, of a camera without distortion: datasets have no place for it."""
    geometry = observation.geometry
    return None if geometry is None or geometry.distortion is not None else Camera(geometry.intrinsics)


def _clip(plan_id: str, plan: Plan, observation: Observation) -> InteractionClip:
    if plan.frames is None:
        raise ExportError('NO_VIDEO', f'plan {plan_id} has no video; generate it without trajectory_only')
    stamp = observation.header.stamp
    return plan_to_clip(
        plan,
        observation.request,
        _camera(observation),
        {
            'plan_id': plan_id,
            'observed_at': stamp.sec + stamp.nanosec * 1e-9,
            'camera_frame': observation.header.frame_id,
        },
    )
