"""From a plan in masks to the motion of a parallel gripper: where to touch, from which side, which way to go.

Rules for any task, on what any robot has: the plan's label images, depth image and calibration of the
observed frame, and where the hand is. They begin as those of AVDC (arXiv 2310.08576): grasp what is lifted,
push what is not. They add what masks tell beyond a video's optical flow: the plan shows the arm, so the
hand's own way in space (`arm_appearance`), where it is when the object begins to move, from which side, and
whether a thing that slides stays between the fingers, and is held.

Lengths are metres, positions are in the world frame of `Camera.cam_to_world`, z against gravity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera
from mask2iv_ros.planning.arm_appearance import ArmAppearance
from mask2iv_ros.planning.motion import INTERACT, MaskMotion, between_neighbours, mask_motion
from mask2iv_ros.planning.path import lift_path, meet_plane, pixel_rays, valid_depth

UP = np.array((0.0, 0.0, 1.0))

RISEN = 0.1  #: AVDC: an object that rises more has been grasped; in the image, taken as straight up
LIFTED = 0.015  #: of the hand, without which nothing is lifted
ARM_SEEN = 0.5  #: share of the frames in which the arm must be recognised for its way to be followed
AFTER_CONTACT = 2  #: frames after the first contact in the image in which the hand may meet the object
LIFTED_PATH, BEHIND = 0.1, 0.08  #: AVDC's, where the arm is not recognised: grasp threshold, start of a push
STILL = 0.01  #: less is no motion
MIN_RISE_PIXELS = 2.0  #: where `RISEN` is shorter in the image, it is not seen
GRASP_DEPTH = 0.025  #: how far below the top of the object the finger tips close, if there is room
CLEARANCE = 0.01  #: finger tips stay so far above what the object stands on
APPROACH_HEIGHT = 0.10  #: the hand comes from so far above
OVERSHOOT = 0.03  #: a push goes so far beyond the plan's end: contact gives way, buttons end with a stop
NEAR = 0.035  #: around the finger tips, the part of the object whose height counts
FINGER = 0.015  #: half the width of a finger
STEEP = 0.95  #: a push is upright from this share of its length on
EDGES = 3, 97  #: per cent of an object's surface points: where it begins and ends
VISIBLE = 0.3  #: an object of which less is to be seen is where the hand is
ON_THE_WAY = 0.02  #: a point of a path counts as passed when the hand is so near
PLACED = 0.04  #: a carried object that the plan moves no farther is where it should be
STUCK_STEPS, STUCK_DISTANCE = 15, 0.001  #: AVDC: the hand moved less in so many steps
FRUITLESS_STEPS = 40  #: a hand that trembles against something moves, but gets nowhere
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
        closing: (3,) unit vector along which the fingers close.
        width: that they open to.
        reach_low, reach_high: (3,) where the hand may go.
        empty: opening (0..1) below which closed fingers hold nothing.
    """

    tip: tuple[float, float, float] = (0.0, 0.0, -0.045)
    closing: tuple[float, float, float] = (0.0, 1.0, 0.0)
    width: float = 0.1
    reach_low: tuple[float, float, float] = (-0.5, 0.35, 0.05)
    reach_high: tuple[float, float, float] = (0.5, 1.0, 0.5)
    empty: float = 0.32


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
    kind: 'grasp', 'carry' (already held), 'place', 'push', or 'none' (the plan shows nothing to do).
    waypoints: in order; empty with 'none'.
    reason: why so, in words.
    """

    kind: str
    waypoints: list[Waypoint]
    reason: str


def plan_hand_motion(
    observation: Observation,
    labels: np.ndarray,
    arm: ArmAppearance | None,
    gripper: Gripper = SAWYER,
    holding: bool = False,
) -> HandMotion:
    """Motion of the hand that makes the object move as the plan shows.

    Args:
        labels: (T, H, W) uint8 label images; labels[0] is `observation.labels`.
        arm: how the robot looks to this camera; None if it has not learned that.
        holding: the gripper holds the object now.
    """
    view = _View(observation.camera)
    objects = lb.object_mask(labels)
    if not objects[0].any():
        return HandMotion('none', [], 'the object is not to be seen')
    motion = mask_motion(labels)
    cloud = view.cloud(observation.depth, objects[0])
    if not len(cloud):
        return HandMotion('none', [], 'no depth on the object')
    located = None if arm is None else arm.locate(labels)
    if located is None or not _is_seen(located):
        return _without_arm(view, observation, labels, cloud, motion, gripper, holding)
    hands = hand_path(located, observation.hand)
    held = np.flatnonzero(motion.phases == INTERACT)
    if holding:
        moves = _moves(view, cloud, motion, hands, 0)
        return _carry(observation.hand, moves, gripper)
    if not len(held):
        return HandMotion('none', [], 'the plan shows no contact')
    low, high = _rise(hands[held])
    low, high = held[low], held[high]
    moves = _moves(view, cloud, motion, hands, low)
    if hands[high, 2] - hands[low, 2] > LIFTED and _seen_rise(observation.camera, cloud, motion) > RISEN:
        return _grasp(cloud, hands, low, moves, gripper)
    whole = not (lb.dilate(labels[0] == lb.ACTOR, 3) & objects[0]).any()  # the arm may hide some of it
    slide = _slide(view, cloud, motion) if whole and _fits(cloud, gripper) else None
    if slide is not None and _is_held_from_above(cloud, slide[held], hands[held], gripper):
        return _grasp(cloud, hands, held[0], slide, gripper)
    return _push(cloud, hands, motion, gripper)


def choose_plan(
    observation: Observation,
    plans: Sequence[np.ndarray],
    arm: ArmAppearance | None,
    gripper: Gripper = SAWYER,
) -> int:
    """Index of the plan whose finger tips come nearest to the object in space, around the frame of contact.

    In the image any hand in front of the object seems to touch it. The depth image and the arm's look tell
    which plan would: a model that misses with most of its samples may still hit with one.

    Args:
        plans: label images (T, H, W), as `plan_hand_motion` takes them, best first.
        arm: None: the first plan, as nothing tells them apart.
    """
    if arm is None or len(plans) == 1:
        return 0
    view = _View(observation.camera)
    cloud = view.cloud(observation.depth, lb.object_mask(observation.labels))
    if not len(cloud):
        return 0
    misses = [_miss(cloud, labels, observation.hand, arm, gripper) for labels in plans]
    return int(np.argmin(misses))


def _miss(
    cloud: np.ndarray, labels: np.ndarray, hand: np.ndarray, arm: ArmAppearance, gripper: Gripper
) -> float:
    """Metres from finger tips to object where they touch in the image; infinite if they do not, or unseen."""
    motion, located = mask_motion(labels), arm.locate(labels)
    if motion.contact_frame < 0 or not _is_seen(located):
        return np.inf
    around = slice(max(motion.contact_frame - 1, 0), motion.contact_frame + AFTER_CONTACT + 1)
    tips = hand_path(located, hand)[around] + gripper.tip
    return float(np.linalg.norm(cloud[None] - tips[:, None], axis=2).min())


def _is_seen(located: np.ndarray) -> bool:
    """Whether the arm is recognised in enough frames for its way to be followed."""
    return np.isfinite(located[1:, 0]).mean() >= ARM_SEEN


def _seen_rise(camera: Camera, cloud: np.ndarray, motion: MaskMotion) -> float:
    """Metres that the object rises at most, if its way in the image leads straight up.

    Infinite for a camera that looks down and cannot tell.
    """
    at = np.median(cloud, axis=0)
    upwards = camera.project(at + RISEN * UP) - camera.project(at)
    length = np.linalg.norm(upwards)
    if length < MIN_RISE_PIXELS:
        return np.inf
    return float(((motion.position - motion.position[0]) @ upwards).max() / length**2 * RISEN)


def _rise(hands: np.ndarray) -> tuple[int, int]:
    """Frames between which the hand rises most."""
    rises = hands[None, :, 2] - hands[:, None, 2]
    rises[np.tril_indices(len(hands))] = 0
    return np.unravel_index(rises.argmax(), rises.shape)


def random_hand_motion(
    observation: Observation, rng: np.random.Generator, gripper: Gripper = SAWYER, holding: bool = False
) -> HandMotion:
    """Grasp the object from above, and carry it to a random place within reach."""
    goal = rng.uniform(gripper.reach_low, gripper.reach_high)
    if holding:
        return HandMotion('carry', [Waypoint(goal, 1.0, 0.01)], 'a random place')
    view = _View(observation.camera)
    cloud = view.cloud(observation.depth, lb.object_mask(observation.labels))
    if not len(cloud):
        return HandMotion('none', [], 'no depth on the object')
    tip = _middle(cloud)
    way = [*_take(cloud, tip, gripper), Waypoint(goal, 1.0, 0.01)]
    return HandMotion('grasp', way, 'a random place')


def hand_path(located: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(T, 3) positions of the hand, without gaps and smoothed, of a plan that begins with it at `start`."""
    hands = between_neighbours(np.concatenate((start[None], located[1:])))
    smooth = hands.copy()
    smooth[1:-1] = hands[1:-1] / 2 + (hands[:-2] + hands[2:]) / 4
    return smooth


def _without_arm(view, observation, labels, cloud, motion, gripper, holding) -> HandMotion:
    """AVDC's rules on the object's lifted path alone: for plans that do not show this arm."""
    up = view.rotation.T @ UP
    path = lift_path(labels, observation.depth, view.intrinsics, up=up, motion=motion)
    moves = (path.points - path.points[0]) @ view.rotation.T
    if holding:
        return _carry(observation.hand, moves, gripper)
    length = np.linalg.norm(moves, axis=1)
    if length.max() < STILL:
        return HandMotion('none', [], 'the plan moves nothing')
    centre = _middle(cloud)
    if moves[:, 2].max() > LIFTED_PATH:
        way = _take(cloud, centre, gripper)
        at = way[-1].position
        way += [Waypoint(_within(at + move, gripper), 1.0, ON_THE_WAY) for move in moves[1:]]
        return HandMotion('grasp', way, 'the lifted path rises')
    first, last = (length > STILL).argmax(), moves[length.argmax()]
    behind = centre - BEHIND * moves[first] / length[first]
    points = [behind + APPROACH_HEIGHT * UP, behind, *(centre + moves[first : length.argmax() + 1])]
    points.append(centre + last + OVERSHOOT * last / np.linalg.norm(last))
    way = [Waypoint(_reachable(point, gripper), 1.0, ON_THE_WAY) for point in points]
    return HandMotion('push', way, 'the lifted path does not rise')


class _View:
    """A camera: pixels to rays and back, in the world."""

    def __init__(self, camera: Camera):
        if camera.cam_to_world is None:
            raise ValueError('camera: expected its pose (cam_to_world), got None')
        self.intrinsics, pose = camera.intrinsics, camera.cam_to_world
        self.rotation, self.centre = pose[:3, :3], pose[:3, 3]

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 3) world directions with depth 1."""
        return pixel_rays(pixels, self.intrinsics) @ self.rotation.T

    def depth(self, points: np.ndarray) -> np.ndarray:
        return (points - self.centre) @ self.rotation[:, 2]

    def cloud(self, depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(N, 3) surface points of a mask; strays, which show what is behind, are left out."""
        ys, xs = np.nonzero(mask & valid_depth(depth))
        if not len(xs):
            return np.empty((0, 3))
        z = depth[ys, xs]
        near = np.abs(z - np.median(z)) < 0.3
        xs, ys, z = xs[near], ys[near], z[near]
        return self.centre + self.rays(np.stack((xs, ys), axis=1)) * z[:, None]


def _moves(view: _View, cloud, motion: MaskMotion, hands: np.ndarray, first: int) -> np.ndarray:
    """(T, 3) displacement of the object since frame 0 if the hand carries it from frame `first` on.

    Its place in the image is known to a pixel from its own mask, its depth changes as the hand's does.
    """
    depth = np.median(view.depth(cloud)) + view.depth(hands) - view.depth(hands[first])
    depth[:first] = depth[first]
    points = view.centre + view.rays(motion.position) * depth[:, None]
    moves = points - points[0]
    carried = hands - hands[first] + moves[first]
    hidden = motion.visibility < VISIBLE
    hidden[: first + 1] = False
    moves[hidden] = carried[hidden]
    return moves


def _reachable(tip: np.ndarray, gripper: Gripper) -> np.ndarray:
    """Position of the hand for a position of the finger tips."""
    return _within(tip - gripper.tip, gripper)


def _within(hand: np.ndarray, gripper: Gripper) -> np.ndarray:
    return np.clip(hand, gripper.reach_low, gripper.reach_high)


def _carry(start, moves, gripper: Gripper) -> HandMotion:
    """Follow the path with the object in the hand; let it go where the plan moves it no more."""
    if np.linalg.norm(moves, axis=1).max() < PLACED:
        end = _within(start + moves[-1], gripper)
        way = [
            Waypoint(end, 1.0),
            Waypoint(end, -1.0, 0.03, CLOSE_STEPS),
            Waypoint(end + APPROACH_HEIGHT * UP, -1.0, 0.03),
        ]
        return HandMotion('place', way, 'the object is where the plan wants it: let go')
    path = _within(start + moves[1:], gripper)
    way = [Waypoint(point, 1.0, ON_THE_WAY) for point in path]
    way[-1].tolerance = 0.01
    return HandMotion('carry', way, 'the object is in the hand')


def _middle(cloud: np.ndarray) -> np.ndarray:
    """(3,) middle of the box around the points."""
    return (cloud.min(axis=0) + cloud.max(axis=0)) / 2


def _fits(cloud: np.ndarray, gripper: Gripper) -> bool:
    """Whether all of the object that is seen fits between the fingers."""
    return max(np.ptp(cloud, axis=0)[:2]) < gripper.width - 2 * CLEARANCE


def _slide(view: _View, cloud: np.ndarray, motion: MaskMotion) -> np.ndarray | None:
    """(T, 3) displacement of the object if it stays as high as it is; None if that cannot be seen."""
    rays = view.rays(motion.position)
    depths = meet_plane(rays, UP, _middle(cloud) - view.centre)
    if depths is None:
        return None
    points = rays * depths[:, None]
    return points - points[0]


def _is_held_from_above(cloud, moves: np.ndarray, hands: np.ndarray, gripper: Gripper) -> bool:
    """Whether the object slides (T, 3 displacement) between the fingers of a hand (T, 3) that stays low."""
    beside = np.linalg.norm((hands + gripper.tip - _middle(cloud) - moves)[:, :2], axis=1)
    aside, risen = np.linalg.norm(moves[-1] - moves[0]), abs(hands[-1, 2] - hands[0, 2])
    return aside > max(risen, STILL) and np.median(beside) < gripper.width / 2


def _grasp(cloud, hands, first, moves, gripper) -> HandMotion:
    tip = hands[first] + gripper.tip - moves[first]
    if _fits(cloud, gripper):  # take all of it
        tip[:2] = _middle(cloud)[:2]
    else:  # the fingers close on what is between them: centre them on it
        closing = np.array(gripper.closing)
        across = np.cross(closing, UP)
        inside = np.abs((cloud - tip) @ across) < FINGER
        inside &= np.abs((cloud - tip) @ closing) < gripper.width / 2
        if not inside.any():  # the nearest part of the object
            nearest = cloud[np.linalg.norm((cloud - tip)[:, :2], axis=1).argmin()]
            inside = np.linalg.norm((cloud - nearest)[:, :2], axis=1) < FINGER
            tip[:2] = nearest[:2]
        part = (cloud[inside] - tip) @ closing
        tip += closing * (part.min() + part.max()) / 2
    way = _take(cloud, tip, gripper)
    at = way[-1].position
    path = _within(at + moves[first + 1 :] + CLEARANCE * UP, gripper)
    way += [Waypoint(point, 1.0, ON_THE_WAY) for point in path]
    way[-1].tolerance = 0.01
    return HandMotion(
        'grasp', way, f'the plan takes the object {np.linalg.norm(moves, axis=1).max():.2f} m away'
    )


def _take(cloud: np.ndarray, tip: np.ndarray, gripper: Gripper) -> list[Waypoint]:
    """Down from above to (x, y) of `tip`, as deep as object and table allow, and close."""
    near = cloud[np.linalg.norm((cloud - tip)[:, :2], axis=1) < NEAR]
    near = cloud if len(near) < 3 else near
    height = max(np.percentile(near[:, 2], 95) - GRASP_DEPTH, cloud[:, 2].min() + CLEARANCE)
    at = _reachable(np.array((*tip[:2], height)), gripper)
    return [
        Waypoint(at + APPROACH_HEIGHT * UP, -1.0),
        Waypoint(at, -1.0, 0.01),
        Waypoint(at, 1.0, 0.03, CLOSE_STEPS),
    ]


def _push(cloud, hands, motion, gripper) -> HandMotion:
    """Go the hand's own way, and somewhat farther: contact gives way, and buttons end with a stop."""
    first, last = max(motion.contact_frame - 1, 0), np.flatnonzero(motion.phases == INTERACT)[-1]
    ahead = hands[last] - hands[first]
    length = np.linalg.norm(ahead)
    ahead /= max(length, 1e-9)
    if length > STILL:
        hands = _from_behind(
            cloud, hands, ahead, slice(first, motion.contact_frame + AFTER_CONTACT + 1), gripper
        )
    path = hands[1 : max(last, 1) + 1]  # a plan may touch in frame 0 alone
    path = np.clip(
        np.concatenate((path, [path[-1] + OVERSHOOT * ahead])), gripper.reach_low, gripper.reach_high
    )
    way = [Waypoint(point, 1.0, ON_THE_WAY) for point in path]
    way[-1].tolerance = 0.01
    return HandMotion('push', way, 'the plan does not lift the object')


def _from_behind(cloud, hands: np.ndarray, ahead: np.ndarray, contact: slice, gripper: Gripper) -> np.ndarray:
    """(T, 3) the hand's way, moved to where a hand must be that pushes `ahead` (3,).

    The finger tips touch the object, so across their way they are within it, and along it not beyond its
    rear; a plan tells them some centimetres beside that. Of the frames of `contact` the one decides that
    needs to be moved least.
    """
    level = np.cross(ahead, UP if abs(ahead[2]) < STEEP else gripper.closing)
    level /= np.linalg.norm(level)
    axes = np.stack((level, np.cross(level, ahead), ahead))
    low, high = np.percentile(cloud @ axes.T, EDGES, axis=0)
    margin = np.minimum((high - low) / 2, FINGER)
    tips = (hands[contact] + gripper.tip) @ axes.T
    wanted = np.clip(tips, low + margin, high - margin)
    wanted[:, 2] = np.minimum(tips[:, 2], low[2])
    moves = (wanted - tips) @ axes
    least = np.linalg.norm(moves, axis=1).argmin()
    share = np.arange(len(hands)) / max(contact.start + least, 1)
    return hands + np.minimum(share, 1.0)[:, None] * moves[least]


class HandController:
    """Follows the waypoints of a motion with a proportional controller; knows when the hand is stuck."""

    def __init__(self, motion: HandMotion):
        self.motion, self.index, self.waited, self.trail = motion, 0, 0, []
        self.nearest, self.fruitless = np.inf, 0

    @property
    def done(self) -> bool:
        return self.index >= len(self.motion.waypoints)

    @property
    def stuck(self) -> bool:
        """The hand has moved less than `STUCK_DISTANCE` in the last `STUCK_STEPS` steps, or trembles: it has
        come no nearer to its waypoint in `FRUITLESS_STEPS`."""
        if self.fruitless >= FRUITLESS_STEPS:
            return True
        recent = self.trail[-STUCK_STEPS - 1 :]
        if len(recent) <= STUCK_STEPS:
            return False
        return bool(np.linalg.norm(np.array(recent) - recent[-1], axis=1).max() < STUCK_DISTANCE)

    def command(self, hand: np.ndarray) -> tuple[np.ndarray, float]:
        """(3,) velocity command and grip effort, each in [-1, 1], for the hand's present position."""
        self.trail.append(np.array(hand))
        waypoint = self.motion.waypoints[min(self.index, len(self.motion.waypoints) - 1)]
        distance = np.linalg.norm(waypoint.position - hand)
        nearer = distance < self.nearest - STUCK_DISTANCE
        self.nearest, self.fruitless = (distance, 0) if nearer else (self.nearest, self.fruitless + 1)
        if distance < waypoint.tolerance:
            self.fruitless = 0
            if self.waited >= waypoint.steps:
                self.index, self.waited, self.nearest = self.index + 1, 0, np.inf
            else:
                self.trail.clear()  # waiting is not being stuck
                self.waited += 1
        return np.clip(GAIN * (waypoint.position - hand), -1, 1), waypoint.grip
