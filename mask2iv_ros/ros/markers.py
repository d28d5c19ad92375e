"""A plan as markers for RViz and Foxglove: path coloured by phase, contact, normal of the surface, task."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from mask2iv_ros.msg import FrameMotion, InteractionPlan

GREY = (0.7, 0.7, 0.7)
RED = (1.0, 0.25, 0.2)
#: phase -> RGB of the path there; without phases the path is that of the interaction
PHASE_COLOURS = {
    FrameMotion.APPROACH: (0.3, 0.6, 1.0),
    FrameMotion.INTERACT: (1.0, 0.5, 0.1),
    FrameMotion.RELEASE: (0.4, 0.85, 0.4),
}
CONTACT_COLOUR = (1.0, 0.9, 0.1)
NORMAL_LENGTH = 0.1  # metres


def plan_markers(message: InteractionPlan) -> MarkerArray:
    """Markers of a plan in the frame of its path; they replace those of the plan before.

    Namespaces: `path` (a line and its points), `contact`, `normal` and `task`. A plan without a path has no
    markers: it is nowhere in space.
    """
    markers = MarkerArray(markers=[Marker(action=Marker.DELETEALL)])
    positions = [pose.pose.position for pose in message.object_path.poses]
    if not positions:
        return markers

    def add(namespace: str, kind: int, scale: tuple[float, float, float], colour=GREY, **fields) -> Marker:
        marker = Marker(header=message.object_path.header, ns=namespace, type=kind, **fields)
        marker.id = len(markers.markers)
        marker.scale.x, marker.scale.y, marker.scale.z = scale
        marker.color = _colour(colour)
        marker.pose.orientation.w = 1.0
        markers.markers.append(marker)
        return marker

    phases = [frame.phase for frame in message.motion] or [FrameMotion.INTERACT] * len(positions)
    colours = [_colour(PHASE_COLOURS.get(phase, GREY)) for phase in phases]
    add('path', Marker.LINE_STRIP, (0.006, 0.0, 0.0), points=positions, colors=colours)
    add('path', Marker.SPHERE_LIST, (0.014, 0.014, 0.014), points=positions, colors=colours)
    if message.contact_point:
        add(
            'contact', Marker.SPHERE, (0.03, 0.03, 0.03), CONTACT_COLOUR
        ).pose.position = message.contact_point[0]
    normal = np.array([message.support_normal.x, message.support_normal.y, message.support_normal.z])
    if normal.any():
        start = positions[0]
        x, y, z = np.array([start.x, start.y, start.z]) + NORMAL_LENGTH * normal
        # Shaft diameter, head diameter, head length.
        add('normal', Marker.ARROW, (0.006, 0.014, 0.02), points=[start, Point(x=x, y=y, z=z)])
    failed = [check.name for check in message.checks if not check.passed]
    text = f'{message.task or "goal"}{f" (fails: {', '.join(failed)})" if failed else ""}'
    add(
        'task', Marker.TEXT_VIEW_FACING, (0.0, 0.0, 0.04), RED if failed else GREY, text=text
    ).pose.position = positions[-1]
    return markers


def _colour(rgb: tuple[float, float, float]) -> ColorRGBA:
    return ColorRGBA(r=rgb[0], g=rgb[1], b=rgb[2], a=1.0)
