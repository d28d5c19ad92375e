"""The one thread that owns the model, and the queue of requests in front of it.

Loading, generating and freeing all happen in this thread, so no lock guards the pipeline and freeing waits
for a running request by itself. Outcomes are values, not exceptions: a traceback would keep a failed
request's tensors.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np

from mask2iv_ros.framing import Framing
from mask2iv_ros.msg import InteractionPlan
from mask2iv_ros.planning.assess import check_plans, lift_plans
from mask2iv_ros.planning.checks import PlanLimits, passed
from mask2iv_ros.planning.request import InvalidRequest, Plan
from mask2iv_ros.ros.frames import Frames
from mask2iv_ros.ros.requests import Observation

ABANDONED_CHECK_PERIOD = 0.5  # seconds; asking the middleware for its clients is not free

#: What torch, CUDA and OpenCV say in their several kinds of error.
OUT_OF_MEMORY = ('out of memory', 'not enough memory', 'insufficient memory', "can't allocate memory")


@dataclass(frozen=True)
class Progress:
    """State of a job, as the action's feedback gives it; `preview`: (T, h, w) uint8 labels."""

    stage: str
    queue_position: int = 0
    step: int = 0
    num_steps: int = 0
    fraction: float = 0.0
    preview: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the name of an error code, why, and the plans with their messages, best first."""

    code: str = 'NONE'
    message: str = ''
    plans: list[tuple[Plan, InteractionPlan]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Demands:
    """What plans have to be, by the node's parameters; see `mask2iv_ros.ros.parameters`.

    `limits` are those of `checks.*`; plans that fail them are left out if `refuse_failing_plans`.
    """

    depth_model: str
    path_frame: str
    gravity_frame: str
    limits: PlanLimits
    refuse_failing_plans: bool


class Job:
    """One accepted request. `future` gives its Outcome, and is cancelled if the job was while it waited.

    Args:
        frames: to look frames of `demands` up.
        on_progress: called with a `Progress` from any thread.
        is_abandoned: tells that nobody waits for the result any more; such a job is cancelled.
        previews: whether `on_progress` makes use of previews, which cost time.
    """

    def __init__(
        self,
        observation: Observation,
        demands: Demands,
        frames: Frames,
        on_progress: Callable[[Progress], None],
        is_abandoned: Callable[[], bool],
        previews: bool,
    ):
        self.observation = observation
        self.demands = demands
        self.frames = frames
        self.on_progress = on_progress
        self.is_abandoned = is_abandoned
        self.previews = previews
        self.submitted = time.perf_counter()
        self.future: Future | None = None
        self.cancel_reason = ''

    def cancel(self, reason: str):
        """Stop the job before its next denoising step, or at once if it still waits."""
        self.cancel_reason = reason
        self.future.cancel()


class ModelWorker:
    """Runs jobs in order; see the module's text. `device` is where the model is, '' without a model."""

    def __init__(self):
        self.device = ''
        self.model_name = ''
        self._pipeline = None
        self._pool = ThreadPoolExecutor(1, 'model')
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def load(self, model: str, device: str, low_memory: bool) -> Future:
        """Load the pipeline; arguments as of `load_pipeline`."""
        return self._pool.submit(self._load, model, device, low_memory)

    def free(self) -> Future:
        """Forget the pipeline and give its memory back, after the job that runs."""
        return self._pool.submit(self._free)

    def submit(self, job: Job, max_waiting: int):
        """Queue a job. Raises InvalidRequest QUEUE_FULL if `max_waiting` jobs wait behind the running one."""
        with self._lock:
            position = len(self._jobs)
            if position > max_waiting:
                raise InvalidRequest(
                    'QUEUE_FULL',
                    f'{position - 1} requests are waiting already, expected at most {max_waiting} '
                    "(the node's parameter max_queue); try again later",
                )
            self._jobs.append(job)
            job.future = self._pool.submit(self._run, job)
        job.future.add_done_callback(lambda _: self._leave_queue(job))
        if position:
            job.on_progress(Progress('queued', position))

    def cancel_all(self, reason: str):
        """Cancel every job that runs or waits."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel(reason)

    @property
    def queue_length(self) -> int:
        """Jobs that run or wait."""
        return len(self._jobs)

    def shutdown(self, timeout: float) -> bool:
        """End the thread. Returns whether it came to an end within `timeout` seconds."""
        idle = self._pool.submit(int)
        self._pool.shutdown(wait=False)
        return not wait([idle], timeout).not_done

    def _leave_queue(self, job: Job):
        with self._lock:
            place = self._jobs.index(job)
            del self._jobs[place]
            moved = [
                (position, other) for position, other in enumerate(self._jobs) if position >= max(place, 1)
            ]
        for position, other in moved:
            other.on_progress(Progress('queued', position))

    def _load(self, model: str, device: str, low_memory: bool):
        from diffusers.utils import logging

        from mask2iv_ros.pipelines.loading import load_pipeline
        from mask2iv_ros.planning.generate import warm_up

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        pipeline = load_pipeline(model, device, low_memory=low_memory)
        pipeline.set_progress_bar_config(disable=True)
        device = str(pipeline._execution_device)  # `device` is where offloaded networks wait
        warm_up(pipeline)
        self._pipeline, self.device, self.model_name = pipeline, device, pipeline.config.name

    def _free(self):
        self._pipeline, self.device, self.model_name = None, '', ''
        _return_memory()

    def _run(self, job: Job) -> Outcome:
        try:
            return self._generate(job)
        except Exception as error:
            code, text = describe_error(error)
            if job.cancel_reason:
                code, text = 'CANCELLED', job.cancel_reason
            if code == 'GENERATION_FAILED':
                traceback.print_exc()
        _return_memory()  # only here, because the error's traceback held tensors
        return Outcome(code, text)

    def _generate(self, job: Job) -> Outcome:
        from mask2iv_ros.planning.generate import Cancelled, generate_plans
        from mask2iv_ros.ros.plans import plan_message

        started = last_check = time.perf_counter()
        observation, request = job.observation, job.observation.request
        stages = ('trajectory',) if request.trajectory_only else ('trajectory', 'video')
        framing = Framing(request.frame.shape[:2], tuple(self._pipeline.config.sample_size))

        def report(stage: str, step: int, num_steps: int, preview: np.ndarray | None):
            nonlocal last_check
            now = time.perf_counter()
            if now - last_check > ABANDONED_CHECK_PERIOD:
                last_check = now
                if job.is_abandoned():
                    job.cancel_reason = 'no client is waiting for the result any more'
            if job.cancel_reason:
                raise Cancelled
            fraction = (stages.index(stage) + (step / num_steps if num_steps else 0)) / len(stages)
            if preview is not None:
                (top, left), (height, width) = framing.offset, framing.inner
                preview = preview[:, top : top + height, left : left + width]
            job.on_progress(Progress(stage, 0, step, num_steps, fraction, preview))

        if job.is_abandoned():
            job.cancel_reason = 'no client is waiting for the result any more'
        report('trajectory', 0, 0, None)
        plans = generate_plans(self._pipeline, request, report, job.previews)

        message_start = time.perf_counter()
        path_frame = self._lift(plans, job)
        plans = check_plans(plans, job.demands.limits)
        if job.demands.refuse_failing_plans:
            refused = plans
            plans = [plan for plan in plans if passed(plan.checks)]
            if not plans:
                return Outcome('CHECKS_FAILED', _describe_failures(refused))
        messages = [plan_message(plan, observation.header, path_frame) for plan in plans]
        done = time.perf_counter()
        for plan, message in zip(plans, messages, strict=True):
            message.buffer_time = observation.buffer_time
            message.queue_time = started - job.submitted
            message.preprocess_time = plan.timings['preprocess']
            message.trajectory_time = plan.timings['trajectory']
            message.video_time = 0.0 if plan.frames is None else plan.timings['video']
            message.message_time = plan.timings['postprocess'] + done - message_start
        return Outcome(plans=list(zip(plans, messages, strict=True)), seconds=done - started)

    @staticmethod
    def _lift(plans: list[Plan], job: Job) -> str:
        """Give the plans their 3-D paths, or the reason why they have none. Returns the paths' frame.

        Frames are looked up now, after the model's seconds: by then tf has what belongs to the image.
        """
        observation, demands = job.observation, job.demands
        frame, to_frame, up, notes = observation.header.frame_id, None, None, []
        no_path = observation.no_path
        if demands.path_frame and not no_path:
            to_frame, no_path = job.frames.to_frame(demands.path_frame, observation.header)
            frame = demands.path_frame
        if no_path:
            for plan in plans:
                plan.path_note = no_path
            return frame
        if demands.gravity_frame:
            up, reason = job.frames.up(demands.gravity_frame, observation.header)
            notes = [f'up is unknown: {reason}'] if reason else []
        lift_plans(plans, observation.geometry, demands.depth_model, up, to_frame)
        for plan in plans:
            plan.path_note = '; '.join([plan.path_note, *notes])
        return frame


def _describe_failures(plans: list[Plan]) -> str:
    failures = [
        f'seed {plan.seed}: '
        + ', '.join(f'{check.name} ({check.reason})' for check in plan.checks if not check.passed)
        + (f' [no path: {plan.path_note}]' if plan.path is None and plan.path_note else '')
        for plan in plans
    ]
    return (
        f'all {len(plans)} plans failed the checks of the parameters checks.*; ask for more samples or '
        f'another seed. {"; ".join(failures)}'
    )


def describe_error(error: Exception) -> tuple[str, str]:
    """Name of the error code for what went wrong with a request, and a text for the user."""
    if isinstance(code := getattr(error, 'code', None), str):  # InvalidRequest, ImageError
        return code, str(error)
    text = f'{type(error).__name__}: {" ".join(str(error).split())}'
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in OUT_OF_MEMORY):
        return 'OUT_OF_MEMORY', f'{text}; ask for fewer samples or a smaller image, or free memory'
    return 'GENERATION_FAILED', text


def _return_memory():
    gc.collect()
    if (torch := sys.modules.get('torch')) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
