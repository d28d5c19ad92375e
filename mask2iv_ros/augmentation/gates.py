"""What a generated episode must show before anyone trains on it, as one number each, and the thresholds.

Everything is measured at the segmenter's size, on the masks seen in the generated frames, and reported for
the worst camera. A value is nan where there is nothing to measure, such as seams in a clip of one window.
That no actor is asked for is no such case: masks without one prove nothing of the actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import cv2
import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing
from mask2iv_ros.models.segmenter import Segmenter
from mask2iv_ros.pipelines.interaction_video import anchored_windows

#: An object is there if at least this share of its asked area is seen.
SEEN_SHARE = 0.25
#: Frames with fewer asked pixels of an object do not count for its permanence.
FEW_PIXELS = 8
#: Steps on each side of a seam that it is compared with.
SEAM_REACH = 4
#: Change a step (of 255) that is noise: added to both sides of the comparison.
STILL_CHANGE = 0.5

Views = Mapping[str, InteractionClip]


class InverseDynamics(Protocol):
    """What reads actions off an episode."""

    #: (A,) standard deviation of each action in the source; 0 where it never changes.
    action_std: np.ndarray

    def actions(self, views: Views, inputs: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(T, A) float32 actions and (T, S) float32 states, or None."""

    def check(self, views: Views, inputs: str) -> None:
        """Raise ValueError for an episode that it cannot read."""


@dataclass(frozen=True)
class Thresholds:
    """The least or the most that passes; None switches a gate off.

    nan passes, as there was nothing to measure; but not in the gates of `MUST_BE_MEASURED`.

    The defaults were set on simulated episodes (`benchmarks/gate_calibration.py`) at 128 x 160.

    Attributes:
        actor_iou: least mean IoU, over frames 1.., of the actor seen and the actor asked for.
        actor_centroid: most distance of their centroids in pixels at the segmenter's size, 90th percentile
            over frames 1..; a frame where the actor is asked for and not seen counts as its height.
        object_permanence: least share of the frames with an object asked for in which it is seen.
        look_drift: most by which the mean colour (of 255) of background, object or actor moves away from
            frame 0, more than in the source.
        seam_jump: most change of the picture over a border of two windows, as a multiple of the change of
            the steps beside it; with the source's own masks, of the source's multiple at the same step.
        near_duplicate: least difference (of 255) to the source and to the other variants.
        sharpness: least sharpness of frames 1.. relative to frame 0, as a share of the source's.
        cycle_error: most mean difference of the actions that inverse dynamics reads off the generated frames
            and those that are written, in standard deviations of each action of the source.
    """

    actor_iou: float | None = 0.7
    actor_centroid: float | None = 8.0
    object_permanence: float | None = 0.7
    look_drift: float | None = 20.0
    seam_jump: float | None = 2.0
    near_duplicate: float | None = 3.0
    sharpness: float | None = 0.4
    cycle_error: float | None = 0.8

    def failures(self, values: Mapping[str, float]) -> list[str]:
        """Names of the gates that an episode with these `measure`d values does not pass.

        Raises:
            ValueError: a value is missing for a gate that is on.
        """
        failed = []
        for gate in fields(self):
            threshold = getattr(self, gate.name)
            if threshold is None:
                continue
            if gate.name not in values:
                raise ValueError(f'values: expected one of {gate.name}, got {sorted(values)}')
            value = values[gate.name]
            if np.isnan(value):
                fails = gate.name in MUST_BE_MEASURED
            else:
                fails = value < threshold if gate.name in AT_LEAST else value > threshold
            if fails:
                failed.append(gate.name)
        return failed


#: Gates whose value must not be below the threshold; that of the others must not be above.
AT_LEAST = frozenset({'actor_iou', 'object_permanence', 'near_duplicate', 'sharpness'})
#: Gates that nan fails: whether the actor moves as the actions say is what an episode is gated for.
MUST_BE_MEASURED = frozenset({'actor_iou', 'actor_centroid'})


def measure(
    source: Views,
    views: Views,
    segmenter: Segmenter,
    others: Sequence[Views] = (),
    inverse_dynamics: InverseDynamics | None = None,
    window: int | None = 16,
) -> dict[str, float]:
    """Measure all gates of a generated episode.

    Args:
        source: the recorded episode, whole clips by camera.
        views: the generated episode: the same cameras; `labels` are the masks that were asked for.
        segmenter: trained on the source dataset.
        others: variants of the same source that are kept already.
        inverse_dynamics: None leaves `cycle_error` nan.
        window: frames that the model makes at a time, which says where its seams are; None without a model.

    Returns:
        The value of every field of `Thresholds`.

    Raises:
        ValueError: cameras differ, or a clip has no masks.
    """
    if source.keys() != views.keys() or not views:
        raise ValueError(f'views: expected cameras {sorted(source)}, got {sorted(views)}')
    cameras = [_measure_camera(camera, source, views[camera], others, segmenter, window) for camera in views]
    worst = {}
    for name in cameras[0]:
        values = np.array([camera[name] for camera in cameras])
        # An episode is a duplicate only if all its cameras are.
        least = name in AT_LEAST and name != 'near_duplicate'
        if np.isnan(values).all():
            worst[name] = float('nan')
        else:
            worst[name] = float(np.nanmin(values) if least else np.nanmax(values))
    worst['cycle_error'] = float('nan') if inverse_dynamics is None else cycle_error(views, inverse_dynamics)
    return worst


@dataclass(frozen=True)
class Gates:
    """`measure`, with what it needs of a job."""

    segmenter: Segmenter
    inverse_dynamics: InverseDynamics | None = None
    window: int | None = 16

    def check(self, views: Views) -> None:
        """Raise ValueError where inverse dynamics was trained on other episodes than those like `views`."""
        if self.inverse_dynamics is not None:
            self.inverse_dynamics.check(views, 'frames')

    def __call__(self, source: Views, views: Views, others: Sequence[Views] = ()) -> dict[str, float]:
        return measure(source, views, self.segmenter, others, self.inverse_dynamics, self.window)

    def reduced(self, views: Views) -> Views:
        """What later variants are compared with: a kept one's clips at the segmenter's size."""
        fitted = {camera: _fitted(camera, clip, self.segmenter) for camera, clip in views.items()}
        return {camera: InteractionClip(frames, labels) for camera, (frames, labels) in fitted.items()}


def _fitted(camera: str, clip: InteractionClip, segmenter: Segmenter) -> tuple[np.ndarray, np.ndarray]:
    """Frames and labels at the segmenter's size."""
    if clip.labels is None:
        raise ValueError(f'{camera}: expected masks, got none')
    framing = Framing(clip.frames.shape[1:3], tuple(segmenter.config.sample_size))
    if framing.source == framing.model:
        return clip.frames, clip.labels
    return framing.fit_frames(clip.frames), framing.fit_labels(clip.labels)


def _measure_camera(
    camera: str, source: Views, clip: InteractionClip, others: Sequence[Views], segmenter, window: int | None
) -> dict[str, float]:
    frames, asked = _fitted(camera, clip, segmenter)
    recorded, recorded_labels = _fitted(camera, source[camera], segmenter)
    seen = segmenter.read(frames, asked[0])
    still = recorded if np.array_equal(asked, recorded_labels) else None
    references = [
        (recorded, recorded_labels),
        *(_fitted(camera, other[camera], segmenter) for other in others),
    ]
    return {
        'actor_iou': actor_iou(seen, asked),
        'actor_centroid': actor_centroid(seen, asked),
        'object_permanence': object_permanence(seen, asked),
        'look_drift': look_drift(frames, asked) - look_drift(recorded, recorded_labels),
        'seam_jump': seam_jump(frames, window, still) if window else float('nan'),
        'near_duplicate': min(difference(frames, asked, *reference) for reference in references),
        'sharpness': sharpness(frames, asked) / sharpness(recorded, recorded_labels),
    }


def actor_iou(seen: np.ndarray, asked: np.ndarray) -> float:
    """Mean IoU of the actor in (T, H, W) label images over frames 1..; nan where it never comes."""
    values = [lb.iou(s == lb.ACTOR, a == lb.ACTOR) for s, a in zip(seen[1:], asked[1:], strict=True)]
    return float('nan') if np.isnan(values).all() else float(np.nanmean(values))


def actor_centroid(seen: np.ndarray, asked: np.ndarray) -> float:
    """90th percentile of the actor's centroid distance in pixels over frames 1.. that ask for it."""
    distances = []
    for s, a in zip(seen[1:], asked[1:], strict=True):
        if wanted := lb.centroid(a == lb.ACTOR):
            found = lb.centroid(s == lb.ACTOR)
            distances.append(float(np.hypot(*np.subtract(found, wanted))) if found else float(len(s)))
    return float(np.percentile(distances, 90)) if distances else float('nan')


def object_permanence(seen: np.ndarray, asked: np.ndarray) -> float:
    """Share of frames 1.. with an object asked for in which enough of it is seen; parts count as object."""
    seen, asked = (np.where(labels == lb.PART, lb.OBJECT, labels) == lb.OBJECT for labels in (seen, asked))
    wanted = asked[1:].sum(axis=(1, 2))
    counts = wanted >= FEW_PIXELS
    found = seen[1:].sum(axis=(1, 2))
    return float((found >= SEEN_SHARE * wanted)[counts].mean()) if counts.any() else float('nan')


def seam_steps(length: int, window: int) -> np.ndarray:
    """(length - 1,) bool, whether frames t and t + 1 come of different windows of `anchored_windows`."""
    if length <= window:
        return np.zeros(length - 1, bool)
    made_by = np.zeros(length, int)
    for number, (frames, known) in enumerate(anchored_windows(length, window)):
        made_by[frames[~known]] = number
    return np.diff(made_by) != 0


def look_drift(frames: np.ndarray, labels: np.ndarray) -> float:
    """The largest distance (of 255) of a label's mean colour over frames 1.. to that in frame 0.

    Of (T, H, W, 3) frames by their (T, H, W) labels; a label that frame 0 or all others lack does not count.
    """
    distances = [0.0]
    for label in lb.LABEL_NAMES:
        mask = labels == label
        if mask[0].any() and mask[1:].any():
            away = _mean_colour(frames[1:], mask[1:]) - _mean_colour(frames[:1], mask[:1])
            distances.append(float(np.abs(away).mean()))
    return max(distances)


def _mean_colour(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(3,) float64 of (T, H, W, 3) frames where their (T, H, W) bool mask is True."""
    width = frames.shape[2]
    return np.array(cv2.mean(frames.reshape(-1, width, 3), mask.reshape(-1, width).astype(np.uint8))[:3])


def seam_jump(frames: np.ndarray, window: int, recorded: np.ndarray | None = None) -> float:
    """The largest change over a seam of (T, H, W, 3) frames, as a multiple of the median change around it.

    Key frames, which the first window spreads over the clip, have seams on both sides. nan without seams.

    Args:
        recorded: a video of the same motion, whose own multiple at each step each is divided by.
    """
    seams = seam_steps(len(frames), window)
    if not seams.any():
        return float('nan')
    jumps = _jumps(frames)
    if recorded is not None:
        jumps = jumps / _jumps(recorded)
    return float(jumps[seams].max())


def _jumps(frames: np.ndarray) -> np.ndarray:
    """(T - 1,) change of each step as a multiple of the median of those around it."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3)) + STILL_CHANGE
    jumps = np.empty(len(change))
    for step in range(len(change)):
        around = np.arange(max(0, step - SEAM_REACH), min(len(change), step + SEAM_REACH + 1))
        jumps[step] = change[step] / np.median(change[around[around != step]])
    return jumps


def difference(
    frames: np.ndarray, labels: np.ndarray, other_frames: np.ndarray, other_labels: np.ndarray
) -> float:
    """How different two (T, H, W, 3) videos look or move: mean absolute difference (of 255).

    The larger of that of the whole picture and that of what is actor or object in either, so that repainting
    a small thing, or another motion before the same background, is a difference. Videos of different lengths
    are compared as far as both go.
    """
    length = min(len(frames), len(other_frames))
    away = cv2.absdiff(
        *(video[:length].reshape(len(video[0]) * length, -1, 3) for video in (frames, other_frames))
    )
    away = away.reshape(length, *frames.shape[1:])
    either = (labels[:length] | other_labels[:length]) != lb.BACKGROUND
    everywhere = np.ones_like(either)
    return float(max(_mean_colour(away, where).mean() for where in (everywhere, either)))


def sharpness(frames: np.ndarray, labels: np.ndarray) -> float:
    """Sharpness of frames 1.. of a (T, H, W, 3) video as a multiple of that of frame 0, which is a photo.

    Mean absolute Laplacian of grey on and around actor and object of (T, H, W) labels, or of everything where
    there are none; the median over frames.
    """
    size = max(3, round(0.03 * frames.shape[1]) * 2 + 1)
    values = []
    for frame, mask in zip(frames, lb.dilate(labels != lb.BACKGROUND, size), strict=True):
        edges = np.abs(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F))
        values.append(edges[mask].mean() if mask.any() else edges.mean())
    return float((np.median(values[1:]) + STILL_CHANGE) / (values[0] + STILL_CHANGE))


def cycle_error(views: Views, inverse_dynamics: InverseDynamics) -> float:
    """Mean absolute difference of actions read off an episode and those written, in the source's spread.

    Each action's difference is divided by its standard deviation in the source; one that never changes there
    does not count. nan where no actions are written, or none changes.
    """
    written = next(iter(views.values())).actions
    if written is None:
        return float('nan')
    read, _ = inverse_dynamics.actions(views, 'frames')  # the masks are those asked for: they prove nothing
    if read.shape != written.shape:
        raise ValueError(f'inverse_dynamics: expected actions {written.shape}, got {read.shape}')
    spread = inverse_dynamics.action_std
    changing = spread > 0
    if not changing.any():
        return float('nan')
    return float((np.abs(read - written).mean(axis=0)[changing] / spread[changing]).mean())
