"""`InteractionClip`: the one in-memory form of a demonstration, read, generated or written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mask2iv_ros.labels import check_labels, goal_labels


@dataclass
class Camera:
    """Pinhole camera of a clip: `intrinsics` (3, 3) float64 in pixels, and `cam_to_world` (4, 4) float64.

    The camera frame is the optical frame of REP-103 (x right, y down, z forward); lengths in metres.
    """

    intrinsics: np.ndarray
    cam_to_world: np.ndarray | None = None

    def project(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) pixels of world points (..., 3), metres, in front of a camera whose pose is known."""
        rotation, centre = self.cam_to_world[:3, :3], self.cam_to_world[:3, 3]
        inside = (points - centre) @ rotation @ self.intrinsics.T
        return inside[..., :2] / inside[..., 2:]


@dataclass
class InteractionClip:
    """A short video of an actor moving an object, with what is known about it.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        labels: (T, H, W) uint8 label ids (`mask2iv_ros.labels`), or None where nobody drew masks.
        task: what is done, in words; '' if unknown.
        fps: frames a second; the mean rate where frames are spread unevenly.
        goal: (H, W) uint8 label image of where the object should end (object ids only), or None.
        goal_point: (3,) float64 metres in the world, where the object should end, or None.
        contact: (T,) bool, whether the actor touches the object, or None where unknown.
        actions: (T, A) float32, the command that was given at each frame, or None where unknown. Values and
            units are the dataset's own.
        states: (T, S) float32, or None where unknown.
        depth: (T, H, W) float32 metres along the optical axis, 0 where invalid, or None.
        camera: calibration, or None.
        source: where the clip comes from (dataset, episode, seed), in free JSON-serialisable form.

    Raises:
        ValueError: a shape, dtype or length that does not fit, named with what was expected.
    """

    frames: np.ndarray
    labels: np.ndarray | None = None
    task: str = ''
    fps: float = 15.0
    goal: np.ndarray | None = None
    goal_point: np.ndarray | None = None
    contact: np.ndarray | None = None
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    depth: np.ndarray | None = None
    camera: Camera | None = None
    source: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise ValueError(
                f'frames: expected (T, H, W, 3) uint8, got {self.frames.shape} {self.frames.dtype}'
            )
        if self.labels is not None and check_labels(self.labels).shape != self.frames.shape[:3]:
            raise ValueError(f'labels: expected {self.frames.shape[:3]}, got {self.labels.shape}')
        if self.goal is not None and check_labels(self.goal, 'goal').shape != self.frames.shape[1:3]:
            raise ValueError(f'goal: expected {self.frames.shape[1:3]}, got {self.goal.shape}')
        if self.depth is not None and self.depth.shape != self.frames.shape[:3]:
            raise ValueError(f'depth: expected {self.frames.shape[:3]}, got {self.depth.shape}')
        if self.contact is not None and self.contact.shape != (len(self.frames),):
            raise ValueError(f'contact: expected ({len(self.frames)},), got {self.contact.shape}')
        for name in ('actions', 'states'):
            values = getattr(self, name)
            if values is not None and (values.ndim != 2 or len(values) != len(self.frames)):
                raise ValueError(f'{name}: expected ({len(self.frames)}, N), got {values.shape}')
        if self.fps <= 0:
            raise ValueError(f'fps: expected a positive rate, got {self.fps}')

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def goal_labels(self) -> np.ndarray:
        """(H, W) uint8: `goal`, or where that is None what is seen of the object in the last labels."""
        return goal_labels(self.labels) if self.goal is None else self.goal
