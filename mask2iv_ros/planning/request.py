"""What a planner is asked and what it answers, in the pixels of the image it is asked about.

`generate.py` makes the one from the other. This module does without torch, so that a process which only
passes requests and plans on, as the ROS 2 node's does until it loads a model, starts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.planning.checks import Check, passed
from mask2iv_ros.planning.motion import PHASE_NAMES, MaskMotion
from mask2iv_ros.planning.path import ObjectPath


class InvalidRequest(ValueError):  # noqa: N818 - it names the request, as the error codes do
    """A request that cannot be served; `code` is the name of an error code of `GenerateInteraction`."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass
class GenerationRequest:
    """What to plan, in the pixel frame of `frame`.

    Attributes:
        frame: (H, W, 3) uint8 RGB.
        object_mask: (H, W) bool, the object to act on.
        actor_mask: (H, W) bool, the visible actor; None if it is not visible or not known.
        task: what to do, in words; '' if only a goal is given.
        goal_mask: (H, W) bool, where the object should end; None without.
        goal_pixel: (x, y) pixel where the object's centroid should end; None without. A goal mask takes
            precedence over it.
        num_samples: plans to draw.
        seed: of the first plan; plan i has seed + i.
        num_inference_steps: denoising steps a stage; 0 for the model's default.
        trajectory_only: leave out stage 2.
        num_frames: frames of the plan; 0 for the model's. With more, the plan is finer in time, not longer:
            masks are interpolated between the model's frames, and the video is made for all of them.
        guidance_scale: see `MaskTrajectoryPipeline`; 1 for none, None for the model's. At least 0.
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
    num_frames: int = 0
    guidance_scale: float | None = None

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8 label image of what is observed."""
        return lb.combine_masks(self.object_mask, self.actor_mask)

    @property
    def goal_labels(self) -> np.ndarray | None:
        """(H, W) uint8 label image of where the object should end, None without a goal.

        For a goal pixel it is the object mask moved there; parts outside the image are cut.
        """
        if self.goal_mask is not None:
            return lb.combine_masks(self.goal_mask)
        if self.goal_pixel is not None:
            return lb.combine_masks(move_mask(self.object_mask, self.goal_pixel))
        return None


@dataclass
class Plan:
    """One answer, in the pixel frame of the request.

    Attributes:
        labels: (T, H, W) uint8 label images; labels[0] is the observation.
        frames: (T, H, W, 3) uint8 RGB video; None if only the trajectory was asked for.
        score, score_meaning: a plausibility score and what it measures.
        motion: of object and actor, measured on the model's masks, in pixels of the request.
        fps: frames a second.
        position_spread: (T,) float64 pixels, root mean square distance of the object's positions from their
            mean over the samples of the request; None for one sample.
        timings: seconds a stage: 'preprocess', 'trajectory', 'video', 'postprocess'.
        path, path_note, path_spread: 3-D path, None without; why its depth model or why no path; its spread
            as above in metres, (T,) float64. See `assess.lift_plans`.
        checks: what it was held against; see `assess.check_plans`.
    """

    labels: np.ndarray
    frames: np.ndarray | None
    task: str
    seed: int
    model_name: str
    score: float
    score_meaning: str
    motion: MaskMotion
    fps: float
    position_spread: np.ndarray | None = None
    timings: dict[str, float] = field(default_factory=dict)
    path: ObjectPath | None = None
    path_note: str = ''
    path_spread: np.ndarray | None = None
    checks: list[Check] = field(default_factory=list)


def plan_facts(plan: Plan) -> dict:
    """All but pictures and path, JSON-serialisable: lengths in pixels, angles in radians, None if unknown."""
    motion, spread = plan.motion, plan.position_spread
    per_frame = {
        'position': motion.position,
        'position_spread': np.full(len(motion), np.nan) if spread is None else spread,
        'visibility': motion.visibility,
        'area': motion.area,
        'extent': motion.extent,
        'orientation': motion.orientation,
        'rotation': motion.rotation,
        'rigidity': motion.rigidity,
        'actor_position': motion.actor_centroid,
        'actor_area': motion.actor_area,
        'actor_extent': motion.actor_extent,
        'actor_orientation': motion.actor_orientation,
    }
    known = {name: _jsonable(values) for name, values in per_frame.items()}
    return {
        'task': plan.task,
        'seed': plan.seed,
        'model_name': plan.model_name,
        'score': plan.score,
        'score_meaning': plan.score_meaning,
        'fps': plan.fps,
        'contact_frame': motion.contact_frame,
        'contact_pixel': motion.contact_pixel,
        'motion': [
            {'phase': PHASE_NAMES[int(motion.phases[t])], **{name: found[t] for name, found in known.items()}}
            for t in range(len(motion))
        ],
        'checks': [vars(check) for check in plan.checks],
        'checks_passed': passed(plan.checks),
        'timings': plan.timings,
    }


def _jsonable(values: np.ndarray) -> list:
    return np.where(np.isfinite(values), values.astype(object), None).tolist()


def plan_to_clip(
    plan: Plan, request: GenerationRequest, camera: Camera | None = None, source: dict | None = None
) -> InteractionClip:
    """The plan as a clip with its goal and provenance; without actions and states: a plan knows pixels only.

    Args:
        request: what the plan answers.
        camera: calibration of the camera that took the request's frame.
        source: provenance beside the generator's own (model, seed, score), JSON-serialisable.

    Raises ValueError for a plan without video.
    """
    if plan.frames is None:
        raise ValueError('the plan has no video (trajectory only), and an episode needs one')
    provenance = {
        'generated_by': 'mask2iv_ros',
        'model': plan.model_name,
        'seed': plan.seed,
        'score': plan.score,
        'score_meaning': plan.score_meaning,
    }
    return InteractionClip(
        frames=plan.frames,
        labels=plan.labels,
        task=plan.task,
        fps=plan.fps,
        goal=request.goal_labels,
        camera=camera,
        source=provenance | (source or {}),
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
    if request.goal_mask is None and request.goal_pixel is not None:
        x, y = request.goal_pixel
        if not (0 <= x < frame.shape[1] and 0 <= y < frame.shape[0]):
            raise InvalidRequest(
                'INVALID_PARAMETER',
                f'goal pixel ({x:.1f}, {y:.1f}) is outside the {frame.shape[1]}x{frame.shape[0]} image',
            )
    if not request.task.strip() and request.goal_mask is None and request.goal_pixel is None:
        raise InvalidRequest('NO_TASK_OR_GOAL', 'task text and goal are both empty; give at least one')
    if request.guidance_scale is not None and not 0 <= request.guidance_scale < np.inf:
        raise InvalidRequest(
            'INVALID_PARAMETER', f'guidance_scale {request.guidance_scale} (expected 0 or more)'
        )
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
