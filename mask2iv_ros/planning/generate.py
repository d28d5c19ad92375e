"""From a request in image pixels to plans in the same pixels: checks, framing, sampling, scoring.

This is the one road to the model for the node, the command line and evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

#: Called after each denoising step with stage, steps done, steps in all, and for stage 1 the (T, h, w) uint8
#: label images as the model sees them at that step (first sample, model resolution; None in stage 2).
Progress = Callable[[str, int, int, np.ndarray | None], None]

SCORE_MEANING = (
    'share of predicted frames in which the object is visible with 0.5 to 2 times its observed area, in 0..1'
)


class InvalidRequest(ValueError):  # noqa: N818 - it names the request, as the error codes do
    """A request that cannot be served; `code` is the name of an error code of `GenerateInteraction`."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Cancelled(Exception):  # noqa: N818 - raised on purpose, not an error
    """Raise it from a progress callback to stop between two denoising steps."""


@dataclass
class GenerationRequest:
    """What to plan, in the pixel frame of `frame`.

    Attributes:
        frame: (H, W, 3) uint8 RGB.
        object_mask: (H, W) bool, the object to act on.
        actor_mask: (H, W) bool, the visible actor; None if it is not visible or not known.
        task: what to do, in words; '' if only a goal is given.
        goal_mask: (H, W) bool, where the object should end; None without.
        goal_pixel: (x, y) pixel where the object's centroid should end; None without.
        num_samples: plans to draw.
        seed: of the first plan; plan i has seed + i.
        num_inference_steps: denoising steps a stage; 0 for the model's default.
        trajectory_only: leave out stage 2.
    """

    frame: np.ndarray
    object_mask: np.ndarray
    actor_mask: np.ndarray | None = None
    task: str = ''
    goal_mask: np.ndarray | None = None
    goal_pixel: tuple[float, float] | None = None
    num_samples: int = 1
    seed: int = 0
    num_inference_steps: int = 0
    trajectory_only: bool = False


@dataclass
class Plan:
    """One answer, in the pixel frame of the request.

    Attributes:
        labels: (T, H, W) uint8 label images; labels[0] is the observation.
        frames: (T, H, W, 3) uint8 RGB video; None if only the trajectory was asked for.
        score, score_meaning: a plausibility score and what it measures.
        contact_frame: first frame in which actor and object touch, -1 if none.
        contact_pixel: (x, y) centre of the contact in that frame, or None.
        frame_period: seconds between frames.
        timings: seconds a stage: 'preprocess', 'trajectory', 'video', 'postprocess'.
    """

    labels: np.ndarray
    frames: np.ndarray | None
    task: str
    seed: int
    model_name: str
    score: float
    score_meaning: str
    contact_frame: int
    contact_pixel: tuple[float, float] | None
    frame_period: float
    timings: dict[str, float] = field(default_factory=dict)


def plan_to_clip(plan: Plan) -> InteractionClip:
    """The plan as a clip with its provenance; no actions or states, because none are known.

    Raises ValueError for a plan without video.
    """
    if plan.frames is None:
        raise ValueError('the plan has no video (trajectory only), and an episode needs one')
    return InteractionClip(
        frames=plan.frames,
        labels=plan.labels,
        task=plan.task,
        fps=1 / plan.frame_period,
        source={'generator': plan.model_name, 'seed': plan.seed, 'score': plan.score},
    )


def check_request(request: GenerationRequest) -> None:
    """Raise InvalidRequest, with what came and what was expected, for a request that makes no sense."""
    frame = request.frame
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InvalidRequest(
            'INVALID_PARAMETER', f'image: expected (H, W, 3) uint8 RGB, got {frame.shape} {frame.dtype}'
        )
    for name in ('object_mask', 'actor_mask', 'goal_mask'):
        mask = getattr(request, name)
        if mask is not None and mask.shape != frame.shape[:2]:
            raise InvalidRequest(
                'SIZE_MISMATCH',
                f'{name} is {mask.shape[1]}x{mask.shape[0]}, '
                f'the image {frame.shape[1]}x{frame.shape[0]} (width x height); they must be equal',
            )
    if not request.object_mask.any():
        raise InvalidRequest('EMPTY_MASK', 'object_mask has no object pixel; mark the object to act on')
    if request.goal_mask is not None and not request.goal_mask.any():
        raise InvalidRequest('EMPTY_MASK', 'goal_mask has no pixel; leave it empty to plan without a goal')
    if request.goal_pixel is not None:
        x, y = request.goal_pixel
        if not (0 <= x < frame.shape[1] and 0 <= y < frame.shape[0]):
            raise InvalidRequest(
                'INVALID_PARAMETER',
                f'goal pixel ({x:.1f}, {y:.1f}) is outside the {frame.shape[1]}x{frame.shape[0]} image',
            )
        if request.goal_mask is not None:
            raise InvalidRequest('INVALID_PARAMETER', 'give a goal mask or a goal pixel, not both')
    if not request.task.strip() and request.goal_mask is None and request.goal_pixel is None:
        raise InvalidRequest('NO_TASK_OR_GOAL', 'task text and goal are both empty; give at least one')
    if request.num_samples < 1 or request.num_inference_steps < 0:
        raise InvalidRequest(
            'INVALID_PARAMETER',
            f'num_samples {request.num_samples} (expected >= 1), '
            f'num_inference_steps {request.num_inference_steps} (expected >= 0)',
        )


def move_mask(mask: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Shift a boolean (H, W) mask so that its centroid lies at `pixel` (x, y); the rest is cut."""
    centre = lb.centroid(mask)
    if centre is None:
        raise ValueError('mask: expected at least one pixel, got none')
    shift = np.float32([[1, 0, pixel[0] - centre[0]], [0, 1, pixel[1] - centre[1]]])
    moved = cv2.warpAffine(mask.astype(np.uint8), shift, mask.shape[::-1], flags=cv2.INTER_NEAREST)
    return moved.astype(bool)


def generate_plans(
    pipeline: Mask2IVPipeline,
    request: GenerationRequest,
    progress: Progress | None = None,
    previews: bool = True,
) -> list[Plan]:
    """Plan `request.num_samples` interactions, best score first.

    `previews` False leaves them out of the calls of `progress`: decoding them doubles the time of stage 1.

    Raises:
        InvalidRequest: see `check_request`; also EMPTY_MASK if the object is lost at the model's resolution.
        Cancelled: if `progress` raised it.
    """
    start = time.perf_counter()
    check_request(request)
    framing = Framing(request.frame.shape[:2], tuple(pipeline.config.sample_size))
    labels = framing.fit_labels(lb.combine_masks(request.object_mask, request.actor_mask))
    if not (labels == lb.OBJECT).any():
        raise InvalidRequest(
            'EMPTY_MASK',
            f"object_mask covers {int(request.object_mask.sum())} pixels, too few to be seen at the model's "
            f'{framing.model[1]}x{framing.model[0]}, or all of it lies behind the actor',
        )
    goal_mask = request.goal_mask
    if request.goal_pixel is not None:
        goal_mask = move_mask(request.object_mask, request.goal_pixel)
    count = request.num_samples

    def batch(image: np.ndarray) -> np.ndarray:
        return np.repeat(image[None], count, axis=0)

    image = batch(framing.fit_frames(request.frame))
    goal = None if goal_mask is None else batch(framing.fit_labels(lb.combine_masks(goal_mask)))
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(count)]
    clock = {'preprocess': time.perf_counter() - start}

    def on_step_end(stage, step: int, _timestep: int, tensors: dict) -> dict:
        preview = None
        if previews and stage.stage == 'trajectory':
            predicted, first = tensors['pred_original_sample'][:1], tensors['first'][:1]
            preview = stage.latents_to_labels(predicted, first, labels[None])[0]
        progress(stage.stage, step + 1, len(stage.scheduler.timesteps), preview)
        return {}

    sampling = {'num_inference_steps': request.num_inference_steps or None, 'generator': generators}
    if progress is not None:
        sampling['callback_on_step_end'] = on_step_end
    mark = time.perf_counter()
    trajectories = pipeline.trajectory(
        image,
        batch(labels),
        request.task.strip(),
        goal,
        callback_on_step_end_tensor_inputs=('pred_original_sample', 'first'),
        **sampling,
    ).labels
    clock['trajectory'] = time.perf_counter() - mark
    mark = time.perf_counter()
    videos = None if request.trajectory_only else pipeline.video(image, trajectories, **sampling).frames
    clock['video'] = time.perf_counter() - mark

    mark = time.perf_counter()
    plans = []
    for i, trajectory in enumerate(trajectories):
        restored = framing.restore_labels(trajectory)
        restored[0] = lb.combine_masks(request.object_mask, request.actor_mask)
        frames = None
        if videos is not None:
            frames = framing.restore_frames(videos[i])
            frames[0] = request.frame
        contact = lb.contact_frame(trajectory, _contact_size(framing.model))
        plans.append(
            Plan(
                labels=restored,
                frames=frames,
                task=request.task,
                seed=request.seed + i,
                model_name=pipeline.config.name,
                score=score_trajectory(trajectory),
                score_meaning=SCORE_MEANING,
                contact_frame=contact,
                contact_pixel=None if contact < 0 else _contact_pixel(restored[contact], framing),
                frame_period=1 / pipeline.config.fps,
                timings=clock,
            )
        )
    clock['postprocess'] = time.perf_counter() - mark
    return sorted(plans, key=lambda plan: -plan.score)


def score_trajectory(labels: np.ndarray) -> float:
    """Object permanence of (T, H, W) labels: see `SCORE_MEANING`."""
    areas = ((labels == lb.OBJECT) | (labels == lb.PART)).sum(axis=(1, 2))
    ratio = areas[1:] / areas[0]
    return float(((ratio >= 0.5) & (ratio <= 2)).mean())


def _contact_size(size: tuple[int, int]) -> int:
    """The paper's 7 pixels at 320 x 512, at least 3, scaled to `size` and odd."""
    return max(3, round(7 * size[0] / 320) // 2 * 2 + 1)


def _contact_pixel(labels: np.ndarray, framing: Framing) -> tuple[float, float] | None:
    scale = framing.source[0] / framing.inner[0]
    size = round(_contact_size(framing.model) * scale) // 2 * 2 + 1
    return lb.centroid(lb.contact_band(labels, size))
