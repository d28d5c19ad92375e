"""Motion in masks to 3-D paths, with one depth image and the calibration of the observed frame.

Lengths are metres, frame is the camera optical frame of REP-103: x right, y down, z forward. One depth image
tells how far the object is in frame 0; how far it is later is an assumption, which each of `DEPTH_MODELS`
states. `benchmarks/path_accuracy.py` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.framing import Framing
from mask2iv_ros.planning.motion import MaskMotion, between_neighbours, mask_motion

#: Depths outside this open interval, in metres, are invalid (0 and 10 m are common codes for "none").
DEPTH_RANGE = (0.01, 10.0)

#: How far the object is after frame 0. Names of models and what they assume:
DEPTH_MODELS = {
    'constant_depth': 'the object keeps its depth',
    'support_plane': 'the object moves parallel to the plane that the scene around it shows',
    'upright_plane': 'the object moves in the plane that stands upright on that one and faces the camera',
    'mask_area': 'the object keeps its size and turns no other side to the camera: depth is 1 / sqrt(area)',
    'place_depth': 'the object stands out as far from the scene around it as in frame 0',
}

# Numbers of 'auto', from `benchmarks/path_accuracy.py`.
SCALE_MARGIN = 0.08  #: how much worse (in log scale) the support plane may explain the outline's size
MAX_DEPTH_CHANGE = 1.5  #: an arm does not carry an object farther than to this multiple of its depth
MIN_RIGIDITY = 0.75  #: outlines that fit less say nothing about scale
PIXELS = 500  #: of a mask that are projected, chosen at random
SCENE_POINTS = 4000  #: of the grid in which the support plane is sought
MIN_ELONGATION = 1.5  #: length by width below which the axis of a mask says nothing about its turn
MIN_SLOPE = 0.1  #: sine of the angle between ray and plane below which their intersection is not used


@dataclass
class ObjectPath:
    """A lifted path.

    Attributes:
        points: (T, 3) float64 metres in the camera optical frame: the object's surface at its centre.
        depth_model: the one of `DEPTH_MODELS` that gave the depth of later frames.
        reason: why that one.
        normal: (3,) unit normal of the support plane in the camera optical frame, on the camera's side; None
            if the depth image shows no plane.
        rotation: (T,) float64 radians, turn about `normal` since frame 0, right-handed: of a lever, the angle
            that it was turned. See `plane_rotation`, also for what it is wrong for; nan where unknown.
        contact: (3,) metres, where actor and object touch in the contact frame; see `lift_contact`. None
            without a contact.
    """

    points: np.ndarray
    depth_model: str
    reason: str
    normal: np.ndarray | None
    rotation: np.ndarray
    contact: np.ndarray | None = None

    def transformed(self, matrix: np.ndarray) -> ObjectPath:
        """The path in another frame; `matrix` (4, 4) takes points of the optical frame there."""
        turn, shift = matrix[:3, :3], matrix[:3, 3]
        return replace(
            self,
            points=self.points @ turn.T + shift,
            normal=None if self.normal is None else turn @ self.normal,
            contact=None if self.contact is None else turn @ self.contact + shift,
        )


def valid_depth(depth: np.ndarray) -> np.ndarray:
    """Boolean mask of depths that can be: finite and inside `DEPTH_RANGE`."""
    return (depth > DEPTH_RANGE[0]) & (depth < DEPTH_RANGE[1])


def object_depth(depth: np.ndarray, mask: np.ndarray) -> float | None:
    """Median of the valid depths in a mask.

    The rim of the mask, where depth images mix object and background, is left out if enough remains inside.

    Args:
        depth: (H, W) metres along the optical axis; NaN and values outside `DEPTH_RANGE` are invalid.
        mask: (H, W), not 0 on the object.
    """
    box = _box(mask, margin=1)
    if box is None:
        return None
    mask, depth = (mask[box] != 0).astype(np.uint8), depth[box]
    valid = valid_depth(depth)
    for inside in (cv2.erode(mask, np.ones((3, 3), np.uint8)), mask):
        values = depth[(inside != 0) & valid]
        if len(values) >= 0.25 * np.count_nonzero(mask):
            break
    return float(np.median(values)) if values.size else None


def _box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice] | None:
    """Rows and columns of the box around what is not 0 in (H, W), with a margin; None if nothing is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return tuple(
        slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin) for found in (rows, columns)
    )


def pixel_rays(
    pixels: np.ndarray, intrinsics: np.ndarray, distortion: np.ndarray | None = None
) -> np.ndarray:
    """Directions (N, 3) float64 with z = 1 that (N, 2) pixels show, in the camera optical frame.

    Args:
        intrinsics: (3, 3) camera matrix K in pixels.
        distortion: the D of `sensor_msgs/CameraInfo` for the models plumb_bob (5 values) and
            rational_polynomial (8), in OpenCV's order k1 k2 p1 p2 k3 k4 k5 k6; None or empty for none.
    """
    if distortion is not None and np.size(distortion) not in (0, 4, 5, 8, 12, 14):
        raise ValueError(f'distortion: expected 4, 5, 8, 12 or 14 values, got {np.size(distortion)}')
    matrix, points = np.asarray(intrinsics, np.float64), np.asarray(pixels, np.float64).reshape(-1, 2)
    if distortion is None or not np.any(distortion):
        return np.column_stack((points, np.ones(len(points)))) @ np.linalg.inv(matrix).T
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)  # the default stops after 5
    normal = cv2.undistortPointsIter(
        points[:, None], matrix, np.ravel(distortion).astype(np.float64), None, None, criteria
    )
    return np.column_stack((normal[:, 0], np.ones(len(points))))


def fit_plane(
    points: np.ndarray, up: np.ndarray | None = None, tolerance: float = 0.01, trials: int = 200
) -> tuple[np.ndarray, float] | None:
    """The plane (normal, offset), normal @ x = offset, that most of (N, 3) points lie on.

    RANSAC over planes through three points, then least squares over the points within `tolerance` metres
    (Fischler and Bolles 1981).

    Args:
        up: (3,) if given, only planes whose normal is within 20 degrees of it or of its opposite.

    Returns:
        The unit normal is on the side of the origin; None if fewer than a third of the points agree.
    """
    if len(points) < 30:
        return None
    rng = np.random.default_rng(0)
    a, b, c = points[rng.integers(0, len(points), (3, trials))]
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    normals /= np.maximum(lengths, 1e-12)[:, None]
    usable = lengths > 1e-9
    if up is not None:
        usable &= np.abs(normals @ (up / np.linalg.norm(up))) > np.cos(np.radians(20))
    normals, a = normals[usable], a[usable]
    if not len(normals):
        return None
    few = points[rng.permutation(len(points))[:500]]
    agree = np.abs(few @ normals.T - (normals * a).sum(axis=1)) < tolerance
    best = agree.sum(axis=0).argmax()
    inliers = points[np.abs(points @ normals[best] - normals[best] @ a[best]) < tolerance]
    if len(inliers) < len(points) / 3:
        return None
    centre = inliers.mean(axis=0)
    normal = np.linalg.svd(inliers - centre, full_matrices=False)[2][2]
    normal = -normal if normal @ centre > 0 else normal
    return normal, float(normal @ centre)


def lift_path(
    labels: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    distortion: np.ndarray | None = None,
    depth_model: str = 'auto',
    up: np.ndarray | None = None,
    motion: MaskMotion | None = None,
) -> ObjectPath | None:
    """Lift the object's positions (`MaskMotion.position`) to a 3-D path.

    Frame 0 has the depth that the depth image shows in the object's mask (`object_depth`). For later frames
    'auto' takes the support plane, unless the outline's size contradicts it: where it would have to shrink or
    grow `SCALE_MARGIN` more than seen, or the depth change by more than `MAX_DEPTH_CHANGE`, the object has
    been lifted, and whichever of 'upright_plane' and 'constant_depth' explains its size better is taken. A
    model that needs a plane falls back to 'constant_depth' where there is none; `ObjectPath` says so.

    Args:
        labels: (T, H, W) uint8 label images; labels[0] is the observation.
        depth: (H, W) metres along the optical axis, of the frame of labels[0]; see `DEPTH_RANGE`.
        intrinsics, distortion: of that frame, see `pixel_rays`.
        depth_model: one of `DEPTH_MODELS`, or 'auto'.
        up: (3,) direction against gravity in the camera optical frame, if known; support planes that are
            tilted more than 20 degrees against it are left out.
        motion: `mask_motion(labels)`, if it is there already.

    Returns:
        None if no pixel of the object has valid depth.

    Raises:
        ValueError: sizes that do not fit, an unknown depth model.
    """
    if depth.shape != labels.shape[1:]:
        raise ValueError(f'depth: expected {labels.shape[1:]}, got {depth.shape}')
    if np.shape(intrinsics) != (3, 3):
        raise ValueError(f'intrinsics: expected (3, 3), got {np.shape(intrinsics)}')
    if depth_model != 'auto' and depth_model not in DEPTH_MODELS:
        raise ValueError(f'depth_model: expected auto, {", ".join(DEPTH_MODELS)}, got {depth_model!r}')
    observed = labels[0]
    is_object = lb.object_mask(observed)
    z = object_depth(depth, is_object)
    if z is None:
        return None
    motion = mask_motion(labels) if motion is None else motion
    rays = pixel_rays(motion.position, intrinsics, distortion)
    normal = support_normal(observed, motion, depth, intrinsics, distortion, up)
    depths = {'constant_depth': np.full(len(rays), z)}
    if normal is not None:
        forward = np.array((0.0, 0.0, 1.0))
        depths['support_plane'] = meet_plane(rays, normal, rays[0] * z)
        depths['upright_plane'] = meet_plane(rays, forward - (forward @ normal) * normal, rays[0] * z)
    if depth_model == 'mask_area':
        depths['mask_area'] = z * np.sqrt(motion.area[0] / motion.area)
    if depth_model == 'place_depth':
        depths['place_depth'] = _place_depths(labels, depth, z)
    depths = {name: found for name, found in depths.items() if found is not None}
    if depth_model == 'auto':
        depth_model, reason = _choose(depths, motion)
    elif depth_model in depths:
        reason = 'asked for'
    else:
        reason = f'{depth_model} was asked for, but the depth image does not allow it'
        depth_model = 'constant_depth'
    rotation = np.full(len(rays), np.nan)
    if normal is not None:
        rotation = plane_rotation(motion.filled, normal, intrinsics, distortion, motion.framing)
        rotation[motion.visibility == 0] = np.nan
    points = rays * depths[depth_model][:, None]
    contact = lift_contact(points, motion, depth, is_object, intrinsics, distortion)
    return ObjectPath(points, depth_model, reason, normal, rotation, contact)


def lift_contact(
    points: np.ndarray,
    motion: MaskMotion,
    depth: np.ndarray,
    is_object: np.ndarray,
    intrinsics: np.ndarray,
    distortion: np.ndarray | None = None,
) -> np.ndarray | None:
    """(3,) metres: the contact pixel at the depth of the object's surface there; None without a contact.

    That surface is what the depth image shows at the place on the object that is touched, nearer or farther
    by as much as the object has moved until contact.

    Args:
        points: (T, 3) metres, path of the object.
        is_object: (H, W) bool, the object in frame 0; the rest as in `lift_path`.
    """
    if motion.contact_frame < 0:
        return None
    frame = motion.contact_frame
    pixel = np.array(motion.contact_pixel)
    x, y = np.rint(pixel - motion.position[frame] + motion.position[0]).astype(int)
    reach = max(2, len(depth) // 80)
    near = slice(max(0, y - reach), max(0, y + reach + 1)), slice(max(0, x - reach), max(0, x + reach + 1))
    found = depth[near][is_object[near] & valid_depth(depth[near])]
    z = points[frame, 2] + (np.median(found) - points[0, 2] if len(found) else 0.0)
    return pixel_rays(pixel[None], intrinsics, distortion)[0] * z


def plane_rotation(
    masks: np.ndarray,
    normal: np.ndarray,
    intrinsics: np.ndarray,
    distortion: np.ndarray | None = None,
    framing: Framing | None = None,
) -> np.ndarray:
    """Turn (T,) in radians about a plane's normal since frame 0, of an object that lies along the plane.

    Each mask is projected onto a plane with that normal, where its long axis (by second moments, each pixel
    weighted with the area it covers there) is the object's own; the turn is that of the axis, followed from
    frame to frame, so less than 90 degrees between two. Right for levers, tools and other flat long things;
    wrong for panels that stand upright on the plane, such as doors.

    Args:
        masks: (T, H, W) bool.
        normal: (3,) in the camera optical frame.
        framing: where the masks' pixels lie in the image that the calibration is of; None: they are the same.

    Returns:
        nan for frames in which the mask is empty or less than `MIN_ELONGATION` times as long as wide there,
        and everywhere if frame 0 is.
    """
    across = np.cross(normal, (0.0, 0.0, 1.0) if abs(normal[2]) < 0.9 else (1.0, 0.0, 0.0))
    across /= np.linalg.norm(across)
    axes = np.stack((across, np.cross(normal, across)), axis=1)
    rng = np.random.default_rng(0)
    pixels = [rng.permutation(np.argwhere(mask)[:, ::-1])[:PIXELS] for mask in masks]
    everything = np.concatenate(pixels)
    if framing is not None:
        everything = framing.restore_points(everything)
    rays = pixel_rays(everything, intrinsics, distortion)
    towards = rays @ normal
    usable = np.abs(towards) > 1e-3
    points = rays / np.where(usable, towards, 1.0)[:, None]  # on the plane at distance 1, any would do
    weights = np.where(usable, np.abs(points[:, 2]) ** 3, 0.0)  # a pixel's area there goes with depth cubed
    plane = points @ axes
    angles = np.full(len(masks), np.nan)
    ends = np.cumsum([len(found) for found in pixels])
    for t, (start, end) in enumerate(zip(ends - [len(found) for found in pixels], ends, strict=True)):
        if end - start < 3 or not usable[start:end].any():
            continue
        weight = weights[start:end] / weights[start:end].sum()
        off = plane[start:end] - weight @ plane[start:end]
        values, vectors = np.linalg.eigh((off * weight[:, None]).T @ off)
        if values[1] > MIN_ELONGATION**2 * max(values[0], 1e-12):
            angles[t] = np.arctan2(vectors[1, 1], vectors[0, 1])
    known = np.isfinite(angles)
    angles[known] = np.unwrap(angles[known], period=np.pi)
    return angles - angles[0]


def support_normal(
    observed: np.ndarray,
    motion: MaskMotion,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    distortion: np.ndarray | None = None,
    up: np.ndarray | None = None,
) -> np.ndarray | None:
    """Unit normal of the plane around the object's way, in the camera optical frame, on the camera's side.

    The plane is sought in the box around all positions of the object and its size more, without what was
    object or actor when the depth image was taken.

    Args:
        observed: (H, W) uint8, labels of frame 0.
        motion: in pixels of `observed`; the rest as in `lift_path`.

    Returns:
        None if there is no plane.
    """
    rows, columns = _box(motion.filled.any(axis=0))
    corners = np.array(((columns.start, rows.start), (columns.stop, rows.stop))) - 0.5
    if motion.framing is not None:
        corners = motion.framing.restore_points(corners)
    margin = max(10, round(np.sqrt(motion.area[0])))
    (left, top), (right, bottom) = np.rint(corners + 0.5).astype(int)
    box = slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin)
    depth = depth[box]
    taken = cv2.dilate((observed[box] != lb.BACKGROUND).view(np.uint8), np.ones((5, 5), np.uint8))
    stride = max(1, int(np.sqrt(depth.size / SCENE_POINTS)))
    grid = slice(stride // 2, None, stride)
    ys, xs = np.nonzero(valid_depth(depth[grid, grid]) & (taken[grid, grid] == 0))
    ys, xs = ys * stride + stride // 2, xs * stride + stride // 2
    if not len(xs):
        return None
    picks = np.random.default_rng(0).permutation(len(xs))[:2000]
    ys, xs = ys[picks], xs[picks]
    pixels = np.stack((xs + box[1].start, ys + box[0].start), axis=1)
    plane = fit_plane(pixel_rays(pixels, intrinsics, distortion) * depth[ys, xs, None], up)
    return None if plane is None else plane[0]


def meet_plane(rays: np.ndarray, normal: np.ndarray, point: np.ndarray) -> np.ndarray | None:
    """Depths (T,) at which rays meet the plane through a point; None if the ray of frame 0 hardly does.

    A later ray that hardly meets it has the depth of its neighbours.
    """
    towards = rays @ normal
    with np.errstate(divide='ignore', invalid='ignore'):
        depths = (normal @ point) / towards
    slope = np.abs(towards) / (np.linalg.norm(rays, axis=1) * max(np.linalg.norm(normal), 1e-9))
    met = (slope > MIN_SLOPE) & (depths > 0)
    return between_neighbours(np.where(met, depths, np.nan)) if met[0] else None


def _place_depths(labels: np.ndarray, depth: np.ndarray, z: float) -> np.ndarray | None:
    """Median depth (T,) around each mask, plus what the object stands out in frame 0."""
    scene = (labels[0] == lb.BACKGROUND) & valid_depth(depth)
    kernel, places = np.ones((9, 9), np.uint8), np.full(len(labels), np.nan)
    for t, image in enumerate(labels):
        mask = lb.object_mask(image).view(np.uint8)
        box = _box(mask, margin=4)
        if box is not None:
            around = cv2.dilate(mask[box], kernel) > mask[box]
            found = depth[box][around & scene[box]]
            places[t] = np.median(found) if len(found) >= 10 else np.nan
    return z + between_neighbours(places - places[0]) if np.isfinite(places[0]) else None


def _choose(depths: dict[str, np.ndarray], motion: MaskMotion) -> tuple[str, str]:
    """The model of 'auto' and why; see `lift_path`."""
    if 'support_plane' not in depths:
        return 'constant_depth', 'the depth image shows no support plane'
    seen = np.nan_to_num(motion.rigidity) > MIN_RIGIDITY
    seen[0] = False
    scale = np.log(between_neighbours(motion.scale)[seen])

    def misfit(name: str) -> float:
        """Root mean square difference between the outline's log scale and the one that depths imply."""
        if not seen.any():
            return 0.0
        return float(np.sqrt(np.mean((np.log(depths[name][0] / depths[name][seen]) - scale) ** 2)))

    free = min(
        ('upright_plane', 'constant_depth'), key=lambda name: misfit(name) if name in depths else np.inf
    )
    change = float(np.exp(np.abs(np.log(depths['support_plane'] / depths['support_plane'][0])).max()))
    if change > MAX_DEPTH_CHANGE:
        return free, f'in the support plane the depth would change by a factor of {change:.1f}'
    if misfit('support_plane') > misfit(free) + SCALE_MARGIN:
        return free, (
            f'the outline has another size than in the support plane: {misfit("support_plane"):.2f} against '
            f'{misfit(free):.2f} in log scale'
        )
    return 'support_plane', 'the size of the outline does not contradict it'
