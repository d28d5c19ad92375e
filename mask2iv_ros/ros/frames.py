"""Coordinate frames by tf2: where the camera is in another frame, and where up is.

tf2_ros is imported only when a frame is asked for, since ROS 2 from wheels lacks it.
"""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Transform
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Header

KEPT = 120  #: seconds of transforms


class Frames:
    """Owns the tf2 buffer of a node, which listens to tf from the first `listen` on.

    `buffer`: in place of one that listens, for programs that have their own.
    """

    def __init__(self, node: Node, buffer=None):
        self._node = node
        self._buffer = buffer
        self._listener = None
        self._missing = ''
        self._warned: set[tuple[str, str]] = set()

    def listen(self, *wanted: str):
        """Listen to tf, if any frame is wanted. Call it in the executor's thread."""
        if self._buffer is not None or self._missing or not any(wanted):
            return
        try:
            import tf2_ros
        except ImportError as error:
            self._missing = f'tf2_ros is not installed ({error})'
            return
        # Plans look up the time of an image that is older than all requests which were served before it.
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=KEPT), node=self._node)
        self._listener = tf2_ros.TransformListener(self._buffer, self._node)

    def to_frame(self, target: str, header: Header) -> tuple[np.ndarray | None, str]:
        """The (4, 4) matrix that takes points of `header`'s frame to `target` at its stamp.

        Returns:
            None and why, if that is not known; a transform of another time is none. It is logged once.
        """
        source = header.frame_id.lstrip('/')
        if source == target:
            return np.eye(4), ''
        try:
            if self._buffer is None:
                raise LookupError(self._missing or 'nothing listens to tf yet')
            if not source:
                raise LookupError('the image has no frame_id')
            if not (header.stamp.sec or header.stamp.nanosec):
                raise LookupError('the image has no stamp')  # of which tf2 would give the newest transform
            found = self._buffer.lookup_transform(target, source, Time.from_msg(header.stamp))
            matrix = to_matrix(found.transform)
        except Exception as error:  # tf2's own types, which cannot be named here, and LookupError
            reason = f'no transform from {source or "the image"} to {target}: {error}'
            if (target, source) not in self._warned:
                self._warned.add((target, source))
                self._node.get_logger().warning(reason)
            return None, reason
        self._warned.discard((target, source))
        return matrix, ''

    def up(self, gravity_frame: str, header: Header) -> tuple[np.ndarray | None, str]:
        """The (3,) direction of `gravity_frame`'s z in `header`'s frame, or None and why."""
        matrix, reason = self.to_frame(gravity_frame, header)
        return (None, reason) if matrix is None else (matrix[2, :3].copy(), '')


def to_matrix(transform: Transform) -> np.ndarray:
    """(4, 4) float64 of a transform. Raises ValueError for a quaternion of length 0."""
    q, shift = transform.rotation, transform.translation
    x, y, z, w = np.array((q.x, q.y, q.z, q.w)) / (np.linalg.norm((q.x, q.y, q.z, q.w)) or np.nan)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    matrix[:3, 3] = shift.x, shift.y, shift.z
    if not np.isfinite(matrix).all():
        raise ValueError('the transform has a rotation of length 0, or numbers that are not finite')
    return matrix
