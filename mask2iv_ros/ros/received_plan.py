"""A plan as the planner got it: the message, and its contents as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from mask2iv_ros.msg import InteractionPlan, PlanCheck
from mask2iv_ros.ros.conversions import read_labels, read_video


class ReceivedPlan:
    """One plan that came over ROS. Arrays are made at first use, with one copy, and kept.

    Attributes:
        message: the InteractionPlan with everything, e.g. `message.score` and `message.header`.
        alternatives: the other plans of the same answer, best first; empty if only one was asked for, and in
            the alternatives themselves.
    """

    def __init__(self, message: InteractionPlan, alternatives: Sequence[InteractionPlan] = ()):
        self.message = message
        self.alternatives = tuple(ReceivedPlan(other) for other in alternatives)

    def __repr__(self) -> str:
        frames, path = self.message.masks.frames, self.message.object_path
        size = f' of {frames[0].width}x{frames[0].height}' if frames else ''
        video = 'with video' if self.message.video else 'without video'
        path = f'path in {path.header.frame_id}' if path.poses else 'no path'
        return (
            f'<ReceivedPlan {self.message.task!r}: {len(frames)} frames{size}, {video}, {path}, '
            f'contact in frame {self.contact_frame}, {len(self.alternatives)} alternatives>'
        )

    @cached_property
    def labels(self) -> np.ndarray:
        """(T, H, W) uint8 label images, values of MaskTrajectory; [0] is what was observed."""
        return read_labels(self.message.masks)

    @cached_property
    def video(self) -> np.ndarray | None:
        """(T, H, W, 3) uint8 RGB; None if only the trajectory was asked for."""
        return read_video(self.message.video) if self.message.video else None

    @cached_property
    def path(self) -> np.ndarray | None:
        """(T, 3) float64 metres in the frame `message.object_path.header.frame_id`; None without a path."""
        positions = [pose.pose.position for pose in self.message.object_path.poses]
        return np.array([(p.x, p.y, p.z) for p in positions]) if positions else None

    @cached_property
    def times(self) -> np.ndarray:
        """(T,) float64 seconds from the observed image, `message.header.stamp`, to each frame."""
        return np.arange(len(self.message.masks.frames)) * self.message.masks.frame_period

    @property
    def contact_frame(self) -> int:
        """Index of the frame where the interaction starts; -1: actor and object never touch."""
        return self.message.contact_frame

    @property
    def contact_pixel(self) -> tuple[float, float] | None:
        """(x, y) centre of the touching area in that frame, pixels of the observed image; None without."""
        point = self.message.contact_pixel
        return None if self.contact_frame < 0 else (point.x, point.y)

    @property
    def contact_point(self) -> np.ndarray | None:
        """(3,) float64, that point in metres, in the frame of the path; None without contact or path."""
        for point in self.message.contact_point:
            return np.array((point.x, point.y, point.z))
        return None

    @cached_property
    def phases(self) -> np.ndarray:
        """(T,) uint8, FrameMotion's APPROACH, INTERACT or RELEASE."""
        return np.array([frame.phase for frame in self.message.motion], np.uint8)

    @property
    def checks(self) -> dict[str, PlanCheck]:
        """What the node held the plan against, by name; `message.checks_passed` is the verdict."""
        return {check.name: check for check in self.message.checks}
