"""From a request in image pixels to plans in the same pixels: checks, framing, sampling, scoring.

This is the one road to the model for the node and `mask2iv generate`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.framing import Framing
from mask2iv_ros.interpolation import stretch_labels
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.planning.checks import sample_spread
from mask2iv_ros.planning.motion import mask_motion, restore_motion
from mask2iv_ros.planning.request import GenerationRequest, InvalidRequest, Plan, check_request

#: Called after each denoising step with stage, steps done, steps in all, and a preview or None: (T, h, w)
#: uint8 label images as stage 1 sees them at that step (first sample, model resolution).
ProgressCallback = Callable[[str, int, int, np.ndarray | None], None]

#: Previews are decoded after the first step of stage 1, then while they take no more of its time: at full
#: size decoding costs twice a step.
PREVIEW_SHARE = 0.2

#: What the score of a plan means: alone, and beside other samples of the same request.
PERMANENCE = (
    'share of predicted frames in which the object is visible with 0.5 to 2 times its observed area, in 0..1'
)
AGREEMENT = "mean IoU of the object's masks with those of the request's other samples, in 0..1"


class Cancelled(Exception):  # noqa: N818 - raised on purpose, not an error
    """Raise it from a progress callback to stop between two denoising steps."""


def generate_plans(
    pipeline: Mask2IVPipeline,
    request: GenerationRequest,
    progress: ProgressCallback | None = None,
    previews: bool = True,
) -> list[Plan]:
    """Plan `request.num_samples` interactions, best score first.

    `previews` False leaves them out of the calls of `progress`; else they come as `PREVIEW_SHARE` allows.

    Raises:
        InvalidRequest: see `check_request`; also EMPTY_MASK if object or goal are lost at the model's
            resolution, and INVALID_PARAMETER for more steps than the model has timesteps.
        Cancelled: if `progress` raised it.
    """
    start = time.perf_counter()
    check_request(request)
    max_steps = pipeline.scheduler.config.num_train_timesteps
    if request.num_inference_steps > max_steps:
        raise InvalidRequest(
            'INVALID_PARAMETER',
            f'num_inference_steps {request.num_inference_steps}, expected at most the {max_steps} timesteps '
            f'of {pipeline.config.name}',
        )
    num_frames = request.num_frames or pipeline.config.num_frames
    if num_frames < pipeline.config.num_frames:
        raise InvalidRequest(
            'INVALID_PARAMETER',
            f'num_frames {num_frames}, expected at least the {pipeline.config.num_frames} of '
            f'{pipeline.config.name}',
        )
    # The plan lasts as long as the model's; whole frames a second, which videos and datasets need.
    fps = pipeline.config.fps
    if num_frames > pipeline.config.num_frames:
        fps = max(1, round(fps * (num_frames - 1) / (pipeline.config.num_frames - 1)))
    framing = Framing(request.frame.shape[:2], tuple(pipeline.config.sample_size))
    labels = _fit_object(framing, request.labels, 'object_mask without the actor')
    goal = request.goal_labels
    if goal is not None:
        goal = _fit_object(framing, goal, 'the goal in the image')
    count = request.num_samples

    def batch(image: np.ndarray) -> np.ndarray:
        return np.repeat(image[None], count, axis=0)

    image = batch(framing.fit_frames(request.frame))
    generators = [torch.Generator().manual_seed(request.seed + i) for i in range(count)]
    clock = {'preprocess': time.perf_counter() - start}
    preview_time = 0.0

    def on_step_end(stage, step: int, _timestep: int, tensors: dict) -> dict:
        nonlocal preview_time
        preview, now = None, time.perf_counter()
        if previews and stage.stage == 'trajectory' and preview_time <= PREVIEW_SHARE * (now - mark):
            predicted, first = tensors['pred_original_sample'][:1], tensors['first'][:1]
            preview = stage.latents_to_labels(predicted, first, labels[None])[0]
            preview_time += time.perf_counter() - now
        progress(stage.stage, step + 1, stage.num_timesteps, preview)
        return {}

    sampling = {'num_inference_steps': request.num_inference_steps or None, 'generator': generators}
    if progress is not None:
        sampling['callback_on_step_end'] = on_step_end
    mark = time.perf_counter()
    trajectories = pipeline.trajectory(
        image,
        batch(labels),
        request.task.strip(),
        None if goal is None else batch(goal),
        guidance_scale=request.guidance_scale,
        callback_on_step_end_tensor_inputs=('pred_original_sample', 'first'),
        **sampling,
    ).labels
    if num_frames != trajectories.shape[1]:
        trajectories = np.stack([stretch_labels(trajectory, num_frames) for trajectory in trajectories])
    clock['trajectory'] = time.perf_counter() - mark
    mark = time.perf_counter()
    videos = None if request.trajectory_only else pipeline.video(image, trajectories, **sampling).frames
    pipeline.maybe_free_model_hooks()
    clock['video'] = time.perf_counter() - mark

    mark = time.perf_counter()
    plans = []
    meaning = PERMANENCE if count == 1 else AGREEMENT
    scores = [object_permanence(trajectories[0])] if count == 1 else sample_agreement(trajectories)
    for i, trajectory in enumerate(trajectories):
        restored = framing.restore_labels(trajectory)
        restored[0] = request.labels
        frames = None
        if videos is not None:
            frames = framing.restore_frames(videos[i])
            frames[0] = request.frame
        plans.append(
            Plan(
                labels=restored,
                frames=frames,
                task=request.task,
                seed=request.seed + i,
                model_name=pipeline.config.name,
                score=float(scores[i]),
                score_meaning=meaning,
                motion=restore_motion(mask_motion(trajectory), framing),
                fps=fps,
                timings=clock,
            )
        )
    if count > 1:
        spread = sample_spread(np.stack([plan.motion.position for plan in plans]))
        for plan in plans:
            plan.position_spread = spread
    clock['postprocess'] = time.perf_counter() - mark
    return sorted(plans, key=lambda plan: -plan.score)


def warm_up(pipeline: Mask2IVPipeline):
    """Make a plan in one step, after which libraries are loaded, kernels chosen and memory is taken."""
    frame = np.zeros((*pipeline.config.sample_size, 3), np.uint8)
    mask = np.zeros(frame.shape[:2], bool)
    mask[frame.shape[0] // 4 : frame.shape[0] // 2, frame.shape[1] // 4 : frame.shape[1] // 2] = True
    generate_plans(pipeline, GenerationRequest(frame, mask, task='warm up', num_inference_steps=1))


def sample_agreement(samples: np.ndarray) -> np.ndarray:
    """(S,) mean IoU of the object in frames 1.. of each of (S, T, H, W) labels with the S - 1 others.

    What most samples predict is most likely right: over clips it ranks as the IoU with the truth does
    (`benchmarks/score_ranking.py`).
    """
    objects = lb.object_mask(samples)[:, 1:]
    agreement = np.zeros((len(samples), len(samples)))
    for i, j in itertools.combinations(range(len(samples)), 2):
        ious = [lb.iou(a, b) for a, b in zip(objects[i], objects[j], strict=True)]
        # Where both lost the object they agree, on something wrong.
        agreement[i, j] = agreement[j, i] = np.nan_to_num(ious).mean()
    return agreement.sum(axis=1) / (len(samples) - 1)


def object_permanence(labels: np.ndarray) -> float:
    """Score of (T, H, W) labels alone: see `PERMANENCE`."""
    areas = lb.object_mask(labels).sum(axis=(1, 2))
    ratio = areas[1:] / areas[0]
    return float(((ratio >= 0.5) & (ratio <= 2)).mean())


def _fit_object(framing: Framing, labels: np.ndarray, name: str) -> np.ndarray:
    """`labels` in the model's frame. Raises InvalidRequest EMPTY_MASK if no object pixel is left."""
    fitted = framing.fit_labels(labels)
    if not (fitted == lb.OBJECT).any():
        height, width = framing.model
        raise InvalidRequest(
            'EMPTY_MASK',
            f"{name} covers {int((labels == lb.OBJECT).sum())} pixels, too few to be seen at the model's "
            f'{width}x{height}',
        )
    return fitted
