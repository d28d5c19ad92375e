"""From a plan in masks to the motion of a parallel gripper: where to touch, from which side, which way to go.

Rules for any task, on what any robot has: the plan's label images, depth image and calibration of the
observed frame, and where the hand is. They begin as those of AVDC (arXiv 2310.08576: grasp what is lifted, push
what is not) and add what mask trajectories tell beyond a video's optical flow: the plan shows the hand, so
where it is when the object starts to move is where to touch, and its side of the object is the side to push from.

Lengths are metres, positions are in the world frame of `Camera.cam_to_world`, z against gravity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera
from mask2iv_ros.planning.hand_track import HandTrack, track_hand
from mask2iv_ros.planning.motion import INTERACT, RELEASE, MaskMotion, between_neighbours, mask_motion
from mask2iv_ros.planning.path import lift_path, pixel_rays, valid_depth

UP = np.array((0.0, 0.0, 1.0))

LIFTED = 0.05  #: an object that rises more has been grasped; AVDC takes 0.1 of a step
GRASP_DEPTH = 0.025  #: how far below the top of the object the finger tips close, if there is room
CLEARANCE = 0.01  #: finger tips stay so far above what the object stands on
APPROACH_HEIGHT = 0.10  #: the hand comes from so far above
STAND_OFF = 0.05  #: a push starts so far behind the point of contact
OVERSHOOT = 0.03  #: a push goes so far beyond the plan's end: contact gives way, buttons end with a stop
NEAR = 0.035  #: around a point of contact, the part of the object that is touched
PLACED = 0.04  #: a carried object that the plan moves no farther is where it should be
STUCK_STEPS, STUCK_DISTANCE = 15, 0.001  #: AVDC: the hand moved less in so many steps
GAIN = 20.0  #: AVDC: command a metre of distance
CLOSE_STEPS = 15  #: control steps that the fingers have to close or open


@dataclass
class Observation:
    """What a robot knows at one moment.

    Attributes:
        labels: (H, W) uint8 label image: target object and the robot itself.
        depth: (H, W) float32 metres along the optical axis, 0 where unknown.
        camera: calibration with its pose.
        hand: (3,) position of the hand's reference point (proprioception).
        opening: of the gripper, 0 closed to 1 open.
        frame: (H, W, 3) uint8 RGB, or None where nobody needs it.
    """

    labels: np.ndarray
    depth: np.ndarray
    camera: Camera
    hand: np.ndarray
    opening: float
    frame: np.ndarray | None = None


@dataclass(frozen=True)
class Gripper:
    """A parallel gripper that keeps its orientation, pointing down.

    Attributes:
        tip: (3,) from the hand's reference point to between the finger tips.
        reach_low, reach_high: (3,) where the hand may go.
        outline: half the side of the piece of the arm's silhouette that is the hand.
        outline_centre: (3,) its centre from the reference point.
        empty: opening below which closed fingers hold nothing.
    """

    tip: tuple[float, float, float] = (0.0, 0.0, -0.045)
    reach_low: tuple[float, float, float] = (-0.5, 0.35, 0.05)
    reach_high: tuple[float, float, float] = (0.5, 1.0, 0.5)
    outline: float = 0.12
    outline_centre: tuple[float, float, float] = (0.0, 0.0, 0.03)
    empty: float = 0.1
    speed: float = 0.15  #: farthest way between two frames of a plan


SAWYER = Gripper()  #: of Meta-World


@dataclass
class Waypoint:
    """Where the hand's reference point goes; the next one follows when it is nearer than `tolerance` and has
    waited `steps` control steps. `grip` is the gripper's effort, -1 open to 1 close."""

    position: np.ndarray
    grip: float
    tolerance: float = 0.015
    steps: int = 0


@dataclass
class HandMotion:
    """Attributes:
    kind: 'grasp', 'carry' (already held), 'push', or 'none' (the plan shows nothing to do).
    waypoints: in order; empty with 'none'.
    reason: why so, in words.
    contact: (3,) where the finger tips meet the object; None without.
    """

    kind: str
    waypoints: list[Waypoint]
    reason: str
    contact: np.ndarray | None = None
    details: dict = field(default_factory=dict)


def plan_hand_motion(
    observation: Observation, labels: np.ndarray, gripper: Gripper = SAWYER, holding: bool = False
) -> HandMotion:
    """Motion of the hand that makes the object move as the plan shows.

    Args:
        labels: (T, H, W) uint8 label images; labels[0] is `observation.labels`.
        holding: the gripper holds the object now.
    """
    view = _View(observation.camera)
    if not ((labels[0] == lb.OBJECT) | (labels[0] == lb.PART)).any():
        return HandMotion('none', [], 'the object is not to be seen')
    motion = mask_motion(labels)
    path = lift_path(labels, observation.depth, view.intrinsics, up=view.rotation.T @ UP, motion=motion)
    if path is None:
        return HandMotion('none', [], 'no depth on the object')
    points = view.to_world(path.points)
    moves = points - points[0]
    farthest = np.linalg.norm(moves, axis=1).max()
    cloud = view.cloud(observation.depth, (labels[0] == lb.OBJECT) | (labels[0] == lb.PART))
    hand = _follow_hand(view, labels, observation.hand, gripper)
    rises = moves[:, 2].max()
    details = {
        'depth_model': path.depth_model, 'rises': float(rises), 'moves': float(farthest),
        'contact_frame': motion.contact_frame, 'end': moves[-1].round(3).tolist(),
    }  # fmt: skip
    if holding:
        return _carry(observation.hand, moves, motion, gripper, details)
    if motion.contact_frame < 0:
        return HandMotion('none', [], 'the plan shows no contact', None, details)
    if rises > LIFTED:
        return _grasp(view, cloud, hand, motion, moves, gripper, details)
    return _push(view, cloud, hand, motion, moves, gripper, details)


class _View:
    """A camera: pixels to rays and back, in the world."""

    def __init__(self, camera: Camera):
        if camera.cam_to_world is None:
            raise ValueError('camera: expected its pose (cam_to_world), got None')
        self.intrinsics, pose = camera.intrinsics, camera.cam_to_world
        self.rotation, self.centre = pose[:3, :3], pose[:3, 3]

    def to_world(self, points: np.ndarray) -> np.ndarray:
        return points @ self.rotation.T + self.centre

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 3) world directions with depth 1."""
        return pixel_rays(pixels, self.intrinsics) @ self.rotation.T

    def project(self, point: np.ndarray) -> tuple[np.ndarray, float]:
        """(2,) pixel and depth."""
        inside = (point - self.centre) @ self.rotation
        return (self.intrinsics @ inside)[:2] / inside[2], float(inside[2])

    def cloud(self, depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(N, 3) surface points; the rim, where depth mixes with what is behind, and strays are left out."""
        ys, xs = np.nonzero(mask & valid_depth(depth))
        z = depth[ys, xs]
        near = np.abs(z - np.median(z)) < 0.3
        xs, ys, z = xs[near], ys[near], z[near]
        return self.centre + self.rays(np.stack((xs, ys), axis=1)) * z[:, None]


def _follow_hand(view: _View, labels: np.ndarray, hand: np.ndarray, gripper: Gripper) -> HandTrack:
    """The hand's finger tips in the image, (T, 2) pixels."""
    pixel, z = view.project(hand + gripper.outline_centre)
    focal = view.intrinsics[0, 0]
    track = track_hand(labels, pixel, focal * gripper.outline / z, focal * gripper.speed / z)
    tip = view.project(hand + gripper.tip)[0] - pixel
    return HandTrack(track.pixels + tip, track.scale, track.score)


def _contact_point(view: _View, cloud: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The point on a pixel's ray that is nearest to the object, the one nearest to the camera of equals."""
    ray = view.rays(pixel[None])[0]
    length = np.linalg.norm(ray)
    depths = (cloud - view.centre) @ ray / length**2
    distances = np.linalg.norm(view.centre + depths[:, None] * ray - cloud, axis=1)
    close = distances <= max(distances.min() + 0.005, 0.012)
    return view.centre + np.median(depths[close]) * ray


def _reachable(tip: np.ndarray, gripper: Gripper) -> np.ndarray:
    """Position of the hand for a position of the finger tips."""
    return np.clip(tip - gripper.tip, gripper.reach_low, gripper.reach_high)


def _carry(start, moves, motion: MaskMotion, gripper: Gripper, details) -> HandMotion:
    """Follow the path with the object in the hand; let it go where the plan moves it no more."""
    if np.linalg.norm(moves[-1]) < PLACED:
        way = [Waypoint(start + moves[-1], 1.0)]
        way.append(Waypoint(way[-1].position, -1.0, 0.03, CLOSE_STEPS))
        way.append(Waypoint(way[-1].position + (0, 0, APPROACH_HEIGHT), -1.0, 0.03))
        return HandMotion('carry', way, 'the object is where the plan wants it: let go', None, details)
    way = [Waypoint(np.clip(start + move, gripper.reach_low, gripper.reach_high), 1.0, 0.03)
           for move in moves[1:]]  # fmt: skip
    way[-1].tolerance = 0.01
    return HandMotion('carry', way, 'the object is in the hand', None, details)


def _grasp(view, cloud, hand, motion, moves, gripper, details) -> HandMotion:
    held = np.flatnonzero((motion.phases == INTERACT) & np.isfinite(hand.pixels[:, 0]))
    if len(held):
        offset = np.median(hand.pixels[held] - motion.position[held], axis=0)
        pixel = motion.position[0] + offset
    else:
        pixel = np.array(motion.position[0])
    tip = _contact_point(view, cloud, pixel)
    size = np.ptp(cloud, axis=0)
    away = view.rays(np.array([motion.position[0]]))[0] * (1, 1, 0)
    away /= max(np.linalg.norm(away), 1e-9)
    if max(size[:2]) < 0.08:  # it fits between the fingers: take all of it
        centre = (cloud.min(axis=0) + cloud.max(axis=0)) / 2
        tip[:2] = centre[:2]
    else:
        near = cloud[np.linalg.norm(cloud[:, :2] - tip[:2], axis=1) < NEAR]
        if len(near) < 5:
            near = cloud[np.argsort(np.linalg.norm(cloud[:, :2] - tip[:2], axis=1))[:20]]
        tip[:2] = np.median(near[:, :2], axis=0)
    near = cloud[np.linalg.norm(cloud[:, :2] - tip[:2], axis=1) < NEAR]
    top = np.percentile(near[:, 2], 95)
    bottom = cloud[:, 2].min()
    tip[2] = max(top - GRASP_DEPTH, bottom + CLEARANCE)
    at = _reachable(tip, gripper)
    above = at + (0, 0, APPROACH_HEIGHT)
    way = [Waypoint(above, -1.0), Waypoint(at, -1.0, 0.01), Waypoint(at, 1.0, 0.03, CLOSE_STEPS)]
    first = max(motion.contact_frame - 1, 0)
    way += [Waypoint(np.clip(at + move + (0, 0, 0.01), gripper.reach_low, gripper.reach_high), 1.0, 0.03)
            for move in moves[first + 1 :]]  # fmt: skip
    way[-1].tolerance = 0.01
    return HandMotion('grasp', way, f'the plan lifts the object by {moves[:, 2].max():.2f} m', tip, details)


def _push(view, cloud, hand, motion, moves, gripper, details) -> HandMotion:
    c = motion.contact_frame
    pixels = between_neighbours(hand.pixels)
    tip = _contact_point(view, cloud + moves[c], pixels[c])
    near = cloud[
        np.linalg.norm(cloud + moves[c] - tip, axis=1)
        < max(NEAR, np.linalg.norm(cloud + moves[c] - tip, axis=1).min() + 0.01)
    ]
    inward = near.mean(axis=0) + moves[c] - tip
    inward /= max(np.linalg.norm(inward), 1e-9)
    last = np.flatnonzero(motion.phases == INTERACT)[-1]
    tips = _in_plane(view, pixels[c : last + 1], tip, UP)
    sideways = tips[-1] - tips[0]
    # Towards the camera or down look alike in one image: a hand above the object pushes down.
    facing = view.rotation[:, 2] * (1, 1, 0)
    down = _in_plane(view, pixels[c : last + 1], tip, facing / np.linalg.norm(facing))
    if inward[2] < -0.7 and down[-1, 2] - down[0, 2] < -0.5 * np.linalg.norm(down[-1] - down[0]):
        tips = down
    ways = tips - tips[0]
    way = tips[-1] - tips[0]
    direction = way / max(np.linalg.norm(way), 1e-9)
    early = ways[min(3, len(ways) - 1)]
    start_direction = early / max(np.linalg.norm(early), 1e-9)
    start = tip - STAND_OFF * start_direction
    end = tips[-1] + OVERSHOOT * direction
    above = np.array((start[0], start[1], max(start[2], cloud[:, 2].max()) + APPROACH_HEIGHT))
    motion_list = [Waypoint(_reachable(above, gripper), 1.0, 0.02), Waypoint(_reachable(start, gripper), 1.0)]
    motion_list += [Waypoint(_reachable(point, gripper), 1.0, 0.03) for point in (*tips, end)]
    motion_list[-1].tolerance = 0.01
    details |= {'inward': inward.round(2).tolist(), 'way': way.round(3).tolist()}
    return HandMotion('push', motion_list, 'the plan does not lift the object', tip, details)


def _in_plane(view, pixels, point, normal) -> np.ndarray:
    """Where rays meet the plane through a point."""
    rays = view.rays(pixels)
    towards = rays @ normal
    towards = np.where(np.abs(towards) < 0.05, np.nan, towards)
    depths = ((point - view.centre) @ normal) / towards
    depths = between_neighbours(np.where(depths > 0, depths, np.nan))
    return view.centre + rays * depths[:, None]


class HandController:
    """Follows the waypoints of a motion with a proportional controller; knows when the hand is stuck."""

    def __init__(self, motion: HandMotion):
        self.motion, self.index, self.waited, self.trail = motion, 0, 0, []

    @property
    def done(self) -> bool:
        return self.index >= len(self.motion.waypoints)

    @property
    def stuck(self) -> bool:
        """The hand has moved less than `STUCK_DISTANCE` in the last `STUCK_STEPS` steps."""
        recent = self.trail[-STUCK_STEPS - 1 :]
        if len(recent) <= STUCK_STEPS:
            return False
        return bool(np.linalg.norm(np.array(recent) - recent[-1], axis=1).max() < STUCK_DISTANCE)

    def command(self, hand: np.ndarray) -> tuple[np.ndarray, float]:
        """(3,) velocity command and grip effort, each in [-1, 1], for the hand's present position."""
        self.trail.append(np.array(hand))
        waypoint = self.motion.waypoints[min(self.index, len(self.motion.waypoints) - 1)]
        if np.linalg.norm(waypoint.position - hand) < waypoint.tolerance:
            if self.waited >= waypoint.steps:
                self.index, self.waited = self.index + 1, 0
            else:
                self.trail.clear()  # waiting is not being stuck
                self.waited += 1
        return np.clip(GAIN * (waypoint.position - hand), -1, 1), waypoint.grip
