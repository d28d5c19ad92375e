"""From masks to motion: where the object is in each frame, how it turns, when it is touched and let go.

Everything here is in pixels of the label images: x right, y down, whole numbers are centres of pixels.
`path.py` makes metres of it. Where the actor covers a part of the object, that part is filled in from the
object's own outline in the frames before, so that an arm that passes does not drag the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2iv_ros import labels as lb

#: Phases of an interaction, in the order in which they come.
APPROACH, INTERACT, RELEASE = 0, 1, 2
PHASE_NAMES = {APPROACH: 'approach', INTERACT: 'interact', RELEASE: 'release'}

#: An object of which less than this share is visible has no position of its own in that frame.
MIN_VISIBILITY = 0.1
#: Registration steps from coarse to fine: shift (as a share of the object's size), turn (degrees), scale.
SEARCH = ((0.2, 12.0, 0.06), (0.08, 5.0, 0.03), (0.03, 2.0, 0.012), (0.01, 0.7, 0.005))
STEPS = np.stack(np.meshgrid(*[(-2, -1, 0, 1, 2)] * 3, (-1, 0, 1)), axis=-1).reshape(-1, 4)
#: An outline that agrees less with what is visible tells nothing about what is not.
MIN_AGREEMENT = 0.5
#: What a shift by the object's size, a turn by one radian, or a doubling costs in object areas: so little
#: that it only decides where the masks do not.
INERTIA = 0.02
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
        contact_frame: first frame of the interaction, -1 if there is none; see `find_contact`.
        contact_pixel: (x, y) centre of the touching area in that frame; None without.
        phases: (T,) int64 of APPROACH, INTERACT and RELEASE.
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
    contact_frame: int
    contact_pixel: tuple[float, float] | None
    phases: np.ndarray

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
    objects = (labels == lb.OBJECT) | (labels == lb.PART)
    actors = labels == lb.ACTOR
    if not objects[0].any():
        raise ValueError('labels: expected an object in frame 0, got none')
    filled, rotation, scale, rigidity = fill_covered(objects, actors)
    visible_area = objects.sum(axis=(1, 2))
    filled_area = filled.sum(axis=(1, 2))
    visibility = visible_area / np.maximum(filled_area, 1)
    seen = (visibility >= MIN_VISIBILITY) & (visible_area > 0)
    shapes = np.array([_moments(mask) for mask in filled])
    shapes[~seen] = np.nan
    orientation, extent = shapes[:, 2], shapes[:, 3:]
    position = between_neighbours(shapes[:, :2])
    contact_frame, contact_pixel = find_contact(labels, position)
    return MaskMotion(
        position=position,
        centroid=np.array([lb.centroid(mask) or (np.nan, np.nan) for mask in objects]),
        filled=filled,
        visible_area=visible_area,
        area=between_neighbours(np.where(seen, filled_area, np.nan)),
        visibility=np.where(seen, visibility, 0.0),
        extent=extent,
        orientation=orientation,
        rotation=np.where(seen, rotation, np.nan),
        scale=np.where(seen, scale, np.nan),
        rigidity=np.where(seen, rigidity, np.nan),
        actor_centroid=np.array([lb.centroid(mask) or (np.nan, np.nan) for mask in actors]),
        actor_area=actors.sum(axis=(1, 2)),
        contact_frame=contact_frame,
        contact_pixel=contact_pixel,
        phases=find_phases(labels, contact_frame),
    )


def fill_covered(objects: np.ndarray, actors: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fill in what the actor covers of the object.

    The object's outline in the first frame in which no actor touches it (frame 0 if there is none) is moved,
    turned and scaled in every other frame to where it mismatches least: visible object pixels outside it and
    pixels inside it that show background count, pixels of the actor and outside the image do not. What it
    then has under the actor belongs to the object.

    Args:
        objects, actors: (T, H, W) bool.

    Returns:
        Filled masks (T, H, W) bool; the turn (T,) radians and the scale (T,) since frame 0; and the outline's
        IoU with the object where no actor is, (T,) in 0..1.
    """
    touched = np.array(
        [(lb.dilate(visible, 3) & actor).any() for visible, actor in zip(objects, actors, strict=True)]
    )
    whole = np.flatnonzero(~touched & objects.any(axis=(1, 2)))
    reference = whole[0] if len(whole) else 0
    base = objects[reference]
    outline = _Outline(base)
    start = _Pose(np.array(lb.centroid(base)), 0.0, 1.0)
    poses, agreement, filled = [start] * len(objects), np.ones(len(objects)), objects.copy()
    for frames, step in ((range(reference - 1, -1, -1), 1), (range(reference + 1, len(objects)), -1)):
        for t in frames:
            visible, actor = objects[t], actors[t]
            poses[t] = outline.register(visible, actor, poses[t + step])
            placed = outline.place(poses[t])
            agreement[t] = lb.iou(visible, placed & ~actor) if visible.any() else 0.0
            if touched[t] and agreement[t] > MIN_AGREEMENT:
                filled[t] |= placed & actor
    turn = np.unwrap([pose.angle for pose in poses])
    scale = np.array([pose.scale for pose in poses])
    return filled, turn - turn[0], scale / scale[0], agreement


class _Outline:
    """A mask that is looked for in other frames."""

    def __init__(self, mask: np.ndarray):
        ys, xs = np.nonzero(mask)
        self.mask, self.area, self.centre = mask, len(xs), np.array((xs.mean(), ys.mean()))
        picks = np.linspace(0, len(xs) - 1, min(SAMPLES, len(xs))).round().astype(int)
        self.points = np.stack((xs, ys), axis=1)[picks] - self.centre

    def register(self, visible: np.ndarray, actor: np.ndarray, start: _Pose) -> _Pose:
        """The pose at which the outline mismatches least, sought around `start` and the visible object.

        With S the placed outline, V the visible object and A the actor, the pixels that mismatch are
        |V \\ S| + |S \\ (V + A)| = |V| + sum over S of (1 - A - 2 V).
        """
        if not visible.any():
            return start
        height, width = visible.shape
        cost = np.zeros((height + 2, width + 2), np.float32)  # beyond the border anything may be
        cost[1:-1, 1:-1] = 1.0 - actor - 2.0 * visible
        size = np.sqrt(self.area)
        first = np.array((*start.position, start.angle, start.scale))
        best, least = first, np.inf
        for position in (start.position, np.array(lb.centroid(visible))):
            pose = np.array((*position, start.angle, start.scale))
            for shift, turn, scale in SEARCH:
                tried = pose + STEPS * (shift * size, shift * size, np.radians(turn), scale)
                tried = tried[tried[:, 3] > 0.3]
                change = (tried - first) / (size, size, 1, 1)
                costs = self._mismatch(tried, cost) + INERTIA * (change**2).sum(axis=1)
                pose, found = tried[costs.argmin()], costs.min()
            if found < least:
                best, least = pose, found
        return _Pose(best[:2], float(best[2]), float(best[3]))

    def _mismatch(self, poses: np.ndarray, cost: np.ndarray) -> np.ndarray:
        """Sum of cost under the outline, in outline areas, for (N, 4) poses x, y, angle, scale."""
        c, s = poses[:, 3] * np.cos(poses[:, 2]), poses[:, 3] * np.sin(poses[:, 2])
        x = np.outer(c, self.points[:, 0]) - np.outer(s, self.points[:, 1]) + poses[:, :1]
        y = np.outer(s, self.points[:, 0]) + np.outer(c, self.points[:, 1]) + poses[:, 1:2]
        column = np.clip(np.rint(x), -1, cost.shape[1] - 2).astype(np.intp) + 1
        row = np.clip(np.rint(y), -1, cost.shape[0] - 2).astype(np.intp) + 1
        return cost.ravel()[row * cost.shape[1] + column].mean(axis=1) * poses[:, 3] ** 2

    def place(self, pose: _Pose) -> np.ndarray:
        """(H, W) bool: the outline at a pose."""
        c, s = pose.scale * np.cos(pose.angle), pose.scale * np.sin(pose.angle)
        turn = np.array(((c, -s), (s, c)))
        matrix = np.column_stack((turn, pose.position - turn @ self.centre))
        size = self.mask.shape[::-1]
        return cv2.warpAffine(self.mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0


def find_contact(labels: np.ndarray, position: np.ndarray) -> tuple[int, tuple[float, float] | None]:
    """The frame in which the interaction starts, and the (x, y) centre of the touching area in it.

    That is the first frame in which actor and object touch in the image and the object (`position`, (T, 2)
    pixels) has left its place by `MOVED` of the image height; an arm that only passes in front of it does
    not move it. Of an object that never leaves its place, the first frame in which they touch.

    Returns:
        -1 and None if they never touch.
    """
    band = lb.contact_band(labels, lb.contact_size(labels.shape[1]))
    touching = band.any(axis=(1, 2))
    if not touching.any():
        return -1, None
    moved = np.linalg.norm(position - position[0], axis=1) > MOVED * labels.shape[1]
    frame = int((touching & moved if (touching & moved).any() else touching).argmax())
    return frame, lb.centroid(band[frame])


def find_phases(labels: np.ndarray, contact_frame: int) -> np.ndarray:
    """(T,) phases: the interaction lasts from contact to the last frame in which actor and object touch."""
    phases = np.full(len(labels), APPROACH)
    if contact_frame >= 0:
        touching = lb.contact_band(labels, lb.contact_size(labels.shape[1])).any(axis=(1, 2))
        phases[contact_frame:] = INTERACT
        phases[np.flatnonzero(touching)[-1] + 1 :] = RELEASE
    return phases


def between_neighbours(values: np.ndarray) -> np.ndarray:
    """(T,) or (T, D) values with nan rows interpolated in time; at both ends the nearest is repeated."""
    known = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    columns = [np.interp(np.arange(len(values)), known, column[known]) for column in
               values.reshape(len(values), -1).T]  # fmt: skip
    return np.stack(columns, axis=1).reshape(values.shape)


def _moments(mask: np.ndarray) -> tuple[float, ...]:
    """x, y, orientation, long and short side; nan without pixels."""
    ys, xs = np.nonzero(mask)
    if not len(xs):
        return (np.nan,) * 5
    covariance = np.cov(np.stack((xs, ys)), bias=True)
    values, vectors = np.linalg.eigh(covariance)
    x, y = vectors[:, 1]
    angle = np.arctan2(y, x)
    angle = angle - np.pi if angle > np.pi / 2 else angle + np.pi if angle <= -np.pi / 2 else angle
    short, long = np.sqrt(12 * np.maximum(values, 0) + 1)  # a pixel is a square of its own, not a point
    return xs.mean(), ys.mean(), angle, long, short
