"""From masks to motion: where the object is in each frame, how it turns, when it is touched and let go.

Everything here is in pixels of the label images: x right, y down, whole numbers are centres of pixels.
`path.py` makes metres of it. Where the actor covers a part of the object, that part is filled in from the
object's own outline in the frames before, so that an arm that passes does not drag the path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.framing import Framing

#: Phases of an interaction, in the order in which they come.
APPROACH, INTERACT, RELEASE = 0, 1, 2
PHASE_NAMES = {APPROACH: 'approach', INTERACT: 'interact', RELEASE: 'release'}

#: An object of which less than this share is visible has no position of its own in that frame.
MIN_VISIBILITY = 0.1
#: Registration steps from coarse to fine: shift (as a share of the object's size), turn (degrees), scale.
SEARCH = (
    (0.2, 12.0, 0.06), (0.1, 6.0, 0.03), (0.05, 3.0, 0.015), (0.025, 1.5, 0.008), (0.0125, 0.75, 0.004)
)  # fmt: skip
#: Of these as many are tried to both sides, at the coarsest level and at finer ones; scale one.
WIDE, NARROW = (
    np.stack(np.meshgrid(*[range(-reach, reach + 1)] * 3, (-1, 0, 1)), axis=-1).reshape(-1, 4)
    for reach in (2, 1)
)
#: An outline that agrees less with what is visible tells nothing about what is not.
MIN_AGREEMENT = 0.5
#: What a shift by the object's size, a turn by one radian, or a doubling costs in object areas: so little
#: that it only decides where the masks do not.
INERTIA = 0.02
MIN_SCALE = 0.3  #: of an outline that is sought
SAMPLES = 200  #: pixels of an outline that are compared
MOVED = 1 / 80  #: share of the image height by which an object has left its place


@dataclass
class MaskMotion:
    """Motion of object and actor in (T, H, W) label images; nan where a thing is not to be seen.

    Attributes:
        position: (T, 2) float64 pixels, centre of the object with what the actor covers filled in. Never nan:
            frames that hide the object lie between their neighbours.
        centroid: (T, 2) float64 pixels, mean of the object's visible pixels.
        filled: (T, H, W) bool, the object with what the actor covers filled in.
        visible_area: (T,) int64, object pixels.
        area: (T,) float64, object pixels with those that the actor covers; where hidden, between
            its neighbours.
        visibility: (T,) float64 in 0..1, visible share of the object.
        extent: (T, 2) float64 pixels, long and short side of the rectangle with the filled object's second
            moments (for a uniform one, side = sqrt(12 variance)).
        orientation: (T,) float64 radians in (-pi/2, pi/2], direction of the long side from x towards y.
        rotation: (T,) float64 radians, turn of the outline in the image plane since frame 0, from x towards y
            (clockwise as one looks at it), the rigid turn that fits the outline of frame 0 best.
        scale: (T,) float64, length of the outline as a multiple of frame 0's, by the same fit.
        rigidity: (T,) float64 in 0..1, IoU of frame 0's outline, moved, turned and scaled, with the object,
            where no actor covers either. Low: the object changes its outline (opens, tips), and `rotation`
            means little.
        actor_centroid: (T, 2) float64 pixels.
        actor_area: (T,) int64 pixels.
        actor_extent, actor_orientation: of the actor's visible pixels, as `extent` and `orientation`.
        contact_frame: first frame of the interaction, -1 if there is none; see `find_contact`.
        contact_pixel: (x, y) centre of the touching area in that frame; None without.
        phases: (T,) int64 of APPROACH, INTERACT and RELEASE.
        framing: where the pixels of `filled` lie among those of everything else; None: they are the same.
    """

    position: np.ndarray
    centroid: np.ndarray
    filled: np.ndarray
    visible_area: np.ndarray
    area: np.ndarray
    visibility: np.ndarray
    extent: np.ndarray
    orientation: np.ndarray
    rotation: np.ndarray
    scale: np.ndarray
    rigidity: np.ndarray
    actor_centroid: np.ndarray
    actor_area: np.ndarray
    actor_extent: np.ndarray
    actor_orientation: np.ndarray
    contact_frame: int
    contact_pixel: tuple[float, float] | None
    phases: np.ndarray
    framing: Framing | None = None

    def __len__(self) -> int:
        return len(self.position)


@dataclass(frozen=True)
class _Pose:
    """A similarity of the image plane: x -> scale * turn(angle) (x - centre of the outline) + position."""

    position: np.ndarray
    angle: float
    scale: float


def mask_motion(labels: np.ndarray) -> MaskMotion:
    """Motion of object (with its part) and actor.

    Args:
        labels: (T, H, W) uint8 label images; the object is visible in labels[0].

    Raises:
        ValueError: other shapes or dtypes, or no object in frame 0.
    """
    if lb.check_labels(labels).ndim != 3:
        raise ValueError(f'labels: expected (T, H, W), got {labels.shape}')
    objects = lb.object_mask(labels).view(np.uint8)  # OpenCV takes no bool
    actors = (labels == lb.ACTOR).view(np.uint8)
    if not objects[0].any():
        raise ValueError('labels: expected an object in frame 0, got none')
    filled, rotation, scale, rigidity = fill_covered(objects, actors)
    visible, whole, actor = (np.array([_moments(mask) for mask in masks]) for masks in
                             (objects, filled, actors))  # fmt: skip
    visible_area, filled_area = visible[:, 0], whole[:, 0]
    visibility = visible_area / np.maximum(filled_area, 1)
    seen = (visibility >= MIN_VISIBILITY) & (visible_area > 0)
    whole[~seen] = np.nan
    position = between_neighbours(whole[:, 1:3])
    touching = [_touching_area(*masks) for masks in zip(objects, actors, strict=True)]
    contact_frame, contact_pixel = find_contact(touching, position, labels.shape[1])
    return MaskMotion(
        position=position,
        centroid=visible[:, 1:3],
        filled=filled.view(bool),
        visible_area=visible_area.astype(np.int64),
        area=between_neighbours(np.where(seen, filled_area, np.nan)),
        visibility=np.where(seen, visibility, 0.0),
        extent=whole[:, 4:],
        orientation=whole[:, 3],
        rotation=np.where(seen, rotation, np.nan),
        scale=np.where(seen, scale, np.nan),
        rigidity=np.where(seen, rigidity, np.nan),
        actor_centroid=actor[:, 1:3],
        actor_area=actor[:, 0].astype(np.int64),
        actor_extent=actor[:, 4:],
        actor_orientation=actor[:, 3],
        contact_frame=contact_frame,
        contact_pixel=contact_pixel,
        phases=find_phases(touching, contact_frame),
    )


def restore_motion(motion: MaskMotion, framing: Framing) -> MaskMotion:
    """Motion measured in the model's frame, in pixels of the source; `filled` stays as it is."""
    across, down = framing.scale
    pixel = motion.contact_pixel
    return replace(
        motion,
        position=framing.restore_points(motion.position),
        centroid=framing.restore_points(motion.centroid),
        visible_area=np.rint(motion.visible_area * across * down).astype(np.int64),
        area=motion.area * across * down,
        extent=motion.extent * np.sqrt(across * down),
        actor_centroid=framing.restore_points(motion.actor_centroid),
        actor_area=np.rint(motion.actor_area * across * down).astype(np.int64),
        actor_extent=motion.actor_extent * np.sqrt(across * down),
        contact_pixel=None if pixel is None else tuple(framing.restore_points(pixel).tolist()),
        framing=framing,
    )


def fill_covered(objects: np.ndarray, actors: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fill in what the actor covers of the object.

    The object's outline in the first frame in which no actor touches it (frame 0 if there is none) is moved,
    turned and scaled in every other frame to where it mismatches least: visible object pixels outside it and
    pixels inside it that show background count, pixels of the actor and outside the image do not. What it
    then has under the actor belongs to the object.

    Args:
        objects, actors: (T, H, W) uint8, 0 or 1.

    Returns:
        Filled masks (T, H, W) uint8; the turn (T,) radians and the scale (T,) since frame 0; and the
        outline's IoU with the object where no actor is, (T,) in 0..1.
    """
    ring = np.ones((3, 3), np.uint8)
    touched = np.array([
        (cv2.dilate(visible, ring) & actor).any() for visible, actor in zip(objects, actors, strict=True)
    ])  # fmt: skip
    whole = np.flatnonzero(~touched & objects.any(axis=(1, 2)))
    reference = int(whole[0]) if len(whole) else 0
    outline = _Outline(objects[reference])
    start = _Pose(outline.centre, 0.0, 1.0)
    poses, agreement, filled = [start] * len(objects), np.ones(len(objects)), objects.copy()
    for frames, step in ((range(reference - 1, -1, -1), 1), (range(reference + 1, len(objects)), -1)):
        for t in frames:
            visible, actor = objects[t], actors[t]
            if not (touched[t] or touched[t + step]) and (visible == objects[t + step]).all():
                poses[t], agreement[t] = poses[t + step], agreement[t + step]
                continue
            poses[t] = outline.register(visible, actor, poses[t + step])
            placed = outline.place(poses[t])
            agreement[t] = _agreement(visible, placed, actor)
            if touched[t] and agreement[t] > MIN_AGREEMENT:
                filled[t] |= placed & actor
    turn = np.unwrap([pose.angle for pose in poses])
    scale = np.array([pose.scale for pose in poses])
    return filled, turn - turn[0], scale / scale[0], agreement


def _agreement(visible: np.ndarray, placed: np.ndarray, actor: np.ndarray) -> float:
    """IoU of a placed outline with the visible object, where no actor is; 0 if there is no such pixel."""
    open_part = placed & ~actor
    union = cv2.countNonZero(open_part | visible)
    return cv2.countNonZero(open_part & visible) / union if union else 0.0


class _Outline:
    """A mask that is looked for in other frames."""

    def __init__(self, mask: np.ndarray):
        ys, xs = np.nonzero(mask)
        self.mask, self.centre = mask, np.array((xs.mean(), ys.mean()))
        picks = np.linspace(0, len(xs) - 1, min(SAMPLES, len(xs))).round().astype(int)
        points = np.stack((xs, ys), axis=1)[picks] - self.centre
        self.points = np.vstack((points.T, np.ones(len(points)))).astype(np.float32)  # (3, N)
        size = np.sqrt(len(xs))
        self.unit = np.array((size, size, 1.0, 1.0))
        self.steps = [
            (NARROW if level else WIDE) * (shift, shift, np.radians(turn), scale) * self.unit
            for level, (shift, turn, scale) in enumerate(SEARCH)
        ]

    def register(self, visible: np.ndarray, actor: np.ndarray, start: _Pose) -> _Pose:
        """The pose at which the outline mismatches least, sought around `start` and the visible object.

        With S the placed outline, V the visible object and A the actor, the pixels that mismatch are
        |V \\ S| + |S \\ (V + A)| = |V| + sum over S of (1 - A - 2 V).
        """
        seen = cv2.moments(visible, binaryImage=True)
        if not seen['m00']:
            return start
        cost = 1 - actor - np.float32(2) * visible
        first = np.array((*start.position, start.angle, start.scale))
        centred = first.copy()
        centred[:2] = seen['m10'] / seen['m00'], seen['m01'] / seen['m00']
        starts = np.stack((first, centred))
        for level, steps in enumerate(self.steps):
            poses = (starts[:, None] + steps).reshape(-1, 4)
            np.maximum(poses[:, 3], MIN_SCALE, out=poses[:, 3])
            costs = self._mismatch(poses, cost, cv2.INTER_LINEAR if level else cv2.INTER_NEAREST)
            change = (poses - first) / self.unit
            best = poses[(costs + INERTIA * np.einsum('nd,nd->n', change, change)).argmin()]
            starts = best[None]
        return _Pose(best[:2], float(best[2]), float(best[3]))

    def _mismatch(self, poses: np.ndarray, cost: np.ndarray, interpolation: int) -> np.ndarray:
        """Sum of cost under the outline, in outline areas, for (N, 4) poses x, y, angle, scale.

        Beyond the border of the image anything may be: cost 0.
        """
        c, s = poses[:, 3] * np.cos(poses[:, 2]), poses[:, 3] * np.sin(poses[:, 2])
        x = np.stack((c, -s, poses[:, 0]), axis=1).astype(np.float32) @ self.points
        y = np.stack((s, c, poses[:, 1]), axis=1).astype(np.float32) @ self.points
        found = cv2.remap(cost, x, y, interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        return found.mean(axis=1) * poses[:, 3] ** 2

    def place(self, pose: _Pose) -> np.ndarray:
        """(H, W) uint8: the outline at a pose."""
        c, s = pose.scale * np.cos(pose.angle), pose.scale * np.sin(pose.angle)
        turn = np.array(((c, -s), (s, c)))
        matrix = np.column_stack((turn, pose.position - turn @ self.centre))
        return cv2.warpAffine(self.mask, matrix, self.mask.shape[::-1], flags=cv2.INTER_NEAREST)


def find_contact(
    touching: list[np.ndarray], position: np.ndarray, height: int
) -> tuple[int, tuple[float, float] | None]:
    """The frame in which the interaction starts, and the (x, y) centre of the touching area in it.

    That is the first frame in which actor and object touch in the image and the object (`position`, (T, 2)
    pixels) has left its place by `MOVED` of the image height; an arm that only passes in front of it does
    not move it. Of an object that never leaves its place, the first frame in which they touch.

    Returns:
        -1 and None if they never touch.
    """
    touches = np.array([band.any() for band in touching])
    if not touches.any():
        return -1, None
    moved = np.linalg.norm(position - position[0], axis=1) > MOVED * height
    frame = int((touches & moved if (touches & moved).any() else touches).argmax())
    return frame, lb.centroid(touching[frame])


def find_phases(touching: list[np.ndarray], contact_frame: int) -> np.ndarray:
    """(T,) phases: the interaction lasts from contact to the last frame in which actor and object touch."""
    phases = np.full(len(touching), APPROACH)
    if contact_frame >= 0:
        phases[contact_frame:] = INTERACT
        phases[max(t for t, band in enumerate(touching) if band.any()) + 1 :] = RELEASE
    return phases


def _touching_area(visible: np.ndarray, actor: np.ndarray) -> np.ndarray:
    """`labels.contact_band` of (H, W) uint8 masks, with the kernel for their height."""
    kernel = np.ones((lb.paper_kernel(7, len(visible)),) * 2, np.uint8)
    return (cv2.dilate(actor, kernel) & visible) | (actor & cv2.dilate(visible, kernel))


def between_neighbours(values: np.ndarray) -> np.ndarray:
    """(T,) or (T, D) values with nan rows interpolated in time; at both ends the nearest is repeated."""
    known = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    columns = [np.interp(np.arange(len(values)), known, column[known]) for column in
               values.reshape(len(values), -1).T]  # fmt: skip
    return np.stack(columns, axis=1).reshape(values.shape)


def _moments(mask: np.ndarray) -> tuple[float, ...]:
    """Area, x, y, orientation, long and short side of a uint8 mask; all but the area nan without pixels."""
    found = cv2.moments(mask, binaryImage=True)
    area = found['m00']
    if not area:
        return (0.0,) + (np.nan,) * 5
    xx, xy, yy = (found[key] / area for key in ('mu20', 'mu11', 'mu02'))
    half = np.hypot((xx - yy) / 2, xy)  # eigenvalues of the covariance: mean -+ half
    variances = np.maximum((xx + yy) / 2 + np.array((half, -half)), 0)
    sides = np.sqrt(12 * variances + 1)  # a pixel is a square of its own, not a point
    return area, found['m10'] / area, found['m01'] / area, np.arctan2(2 * xy, xx - yy) / 2, *sides
