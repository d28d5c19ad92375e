"""The ROS 2 node: lifecycle, requests, topics, diagnostics.

One executor thread runs every callback and never waits for a request: callbacks of long requests are
coroutines that wait for a future, which the model thread (`ModelWorker`) or the export thread completes. The
executor is single-threaded on purpose: the multi-threaded one of rclpy 7 has an open busy loop, and 7.1.9
broke actions under it. torch is imported by the model thread while it loads, so the node starts fast.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import Transition
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header

from mask2iv_ros.action import GenerateInteraction as GenerateAction
from mask2iv_ros.image_messages import read_stamp
from mask2iv_ros.msg import InteractionPlan, InteractionRequest
from mask2iv_ros.planning.request import InvalidRequest, Plan
from mask2iv_ros.resources import set_environment
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.export import ExportError, export_plans
from mask2iv_ros.ros.frames import Frames
from mask2iv_ros.ros.kept_plans import KeptPlans
from mask2iv_ros.ros.model_worker import Demands, Job, ModelWorker, Outcome, Progress, describe_error
from mask2iv_ros.ros.parameters import TABLE, declare_parameters, declare_reliability, read_limits
from mask2iv_ros.ros.perception_buffer import PerceptionBuffer
from mask2iv_ros.ros.plan_player import PlanPlayer
from mask2iv_ros.ros.requests import INPUTS, Limits, read_request
from mask2iv_ros.ros.transport import offered_by_all, use_large_shared_memory
from mask2iv_ros.srv import ExportDemonstration
from mask2iv_ros.srv import GenerateInteraction as GenerateService

LOADING = 'loading the model'
CHECK_PERIOD = 1.0  # seconds between two looks at the input topics, and between two diagnostics
ARRIVAL_PATIENCE = 5.0  # seconds after activation in which a request waits for the first messages
RESULT_TIMEOUT = 10  # seconds that the action server keeps a result; one can hold 20 MB a plan
SHUTDOWN_PATIENCE = 4.0  # seconds for the last answers; ros2 launch escalates after 5


def _reported(transition):
    """Log what a lifecycle callback raises; rclpy turns it into ERROR without a word."""

    @wraps(transition)
    def wrapper(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._last_error = f'{transition.__name__}: {type(error).__name__}: {error}'
            self.get_logger().error(f'{self._last_error}\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR

    return wrapper


class Mask2IVNode(LifecycleNode):
    """Serves GenerateInteraction (service and action) and ExportDemonstration.

    Parameters are in `mask2iv_ros.ros.parameters`. The model is loaded in `configure` and freed in `cleanup`;
    the input topics are heard only while active.
    """

    def __init__(self, **kwargs):
        super().__init__('mask2iv', **kwargs)
        declare_parameters(self, TABLE)
        self._state = 'unconfigured'
        self._worker = ModelWorker()
        self._exports = ThreadPoolExecutor(1, 'export')
        self._buffer = PerceptionBuffer(self._value('buffer_size'))
        # Simulated time went back: what a recording showed before it began anew lies in the future.
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._rewound = self.get_clock().create_jump_callback(backwards, post_callback=self._on_rewound)
        self._before_rewind = 0  # nanoseconds
        self._inputs = {}
        self._qos_problems: dict[str, str] = {}
        self._plans = KeptPlans()
        self._goals: dict[bytes, Job] = {}
        self._open_requests = 0
        self._last_request = 'none'
        self._active_since = 0.0
        self._last_error = ''
        self._no_path = self._no_actor = ''
        self._load_error = ''
        self._freeing: Future | None = None
        self._player = PlanPlayer(self)
        self._frames = Frames(self)

        waiting = ReentrantCallbackGroup()  # a waiting coroutine would block a mutually exclusive group
        name = '~/generate_interaction'
        self.create_service(GenerateService, name, self._on_generate, callback_group=waiting)
        self._action_server = ActionServer(
            self,
            GenerateAction,
            name,
            self._on_goal,
            cancel_callback=self._on_cancel,
            callback_group=waiting,
            result_timeout=RESULT_TIMEOUT,
        )
        self.create_service(
            ExportDemonstration, '~/export_demonstration', self._on_export, callback_group=waiting
        )
        service = self.resolve_service_name(name)
        self._client_of = {'service': service, 'action': f'{service}/_action/send_goal'}

        for name in INPUTS:
            declare_reliability(self, self._reliability_parameter(name))
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # Not the node's clock: under `use_sim_time` it stands still while a recording is paused.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(CHECK_PERIOD, self._publish_diagnostics, clock=self._steady)
        self.create_timer(CHECK_PERIOD, self._adapt_inputs, clock=self._steady)
        self._guard_change_state(waiting)

    # Lifecycle

    async def autostart(self):
        """Configure and activate."""
        if await self._load() and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    @_reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fail if there is no model. It is loaded before, because a transition cannot wait for it."""
        if not self._worker.device:
            return TransitionCallbackReturn.FAILURE
        self._enter('inactive')
        return super().on_configure(state)

    @_reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the input topics and accept requests."""
        self._buffer = PerceptionBuffer(self._value('buffer_size'))
        for name in INPUTS:
            self._subscribe(name, ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
        self._adapt_inputs()
        self._active_since = time.monotonic()
        self._enter('active')
        return super().on_activate(state)

    @_reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel all requests and stop listening."""
        self._stop_work('the node was deactivated')
        self._enter('inactive')
        return super().on_deactivate(state)

    @_reported
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model, and forget the plans."""
        self._freeing = self._worker.free()
        self._plans.clear()
        self._enter('unconfigured')
        return super().on_cleanup(state)

    @_reported
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel all requests; the process frees the rest."""
        self._stop_work('the node is shutting down')
        self._enter('finalized')
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a transition that raised."""
        self._stop_work('a lifecycle transition failed')
        self._freeing = self._worker.free()
        self._enter('unconfigured')
        return TransitionCallbackReturn.SUCCESS

    def _enter(self, state: str):
        self._state = state
        self.get_logger().info(f'{state}')

    def _stop_work(self, reason: str):
        self._worker.cancel_all(reason)
        self._player.stop()
        for subscription in self._inputs.values():
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._qos_problems.clear()
        self._buffer.clear()

    def _on_rewound(self, jump: TimeJump):
        self._before_rewind = self.get_clock().now().nanoseconds - jump.delta.nanoseconds
        self._buffer.clear(keep='camera_info')  # latched, it would not come again

    def _on_input(self, name: str, serialised: bytes):
        if not self._is_from_before_rewind(read_stamp(serialised)):
            self._buffer.add(name, serialised)

    def _is_from_before_rewind(self, stamp: int) -> bool:
        """Whether a message was under way when simulated time went back: it is nearer to the time then."""
        now = self.get_clock().now().nanoseconds
        if now >= self._before_rewind:
            self._before_rewind = 0
        return stamp > now and abs(self._before_rewind - stamp) < stamp - now

    async def _load(self) -> bool:
        """Load the model that the parameters name, report it, and tell whether it can be configured now."""
        model, device, low_memory = map(self._value, ('model', 'device', 'low_memory'))
        start = time.perf_counter()
        self._state = LOADING
        work = self._worker.load(model, device, low_memory)
        await self._until_done(work)
        if self._state != LOADING:  # shut down
            return False
        self._state = 'unconfigured'
        error = work.exception()
        if error is None:
            self._load_error = ''
            seconds = time.perf_counter() - start
            self.get_logger().info(
                f'Loaded {self._worker.model_name} on {self._worker.device} in {seconds:.1f} s'
            )
            return True
        self._load_error = f'Cannot load the model {model or "(embedded)"} to {device}: {error}'
        self.get_logger().error(
            f'{self._load_error}. Set the parameters model and device, then configure the node again: '
            f'ros2 lifecycle set {self.get_fully_qualified_name()} configure (Python is {sys.executable})'
        )
        return False

    def _guard_change_state(self, waiting: ReentrantCallbackGroup):
        """Load and free the model around transitions, which cannot wait for it, and answer all callers.

        A transition that is not allowed now makes rclpy 7 raise, and the caller would hang.
        """
        service = self._service_change_state
        change_state = service.callback

        async def guarded(request, response):
            transition = request.transition
            is_configure = transition.label == 'configure' or (
                not transition.label and transition.id == Transition.TRANSITION_CONFIGURE
            )
            if is_configure and self._state == LOADING:
                self.get_logger().warning('The model is being loaded already')
                return response
            try:
                if is_configure and self._state == 'unconfigured':
                    await self._load()
                response = change_state(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().warning(f'No such transition from {self._state}: {error}')
                response.success = False
            if self._freeing is not None:
                await self._until_done(self._freeing)
            return response

        service.callback = guarded
        service.callback_group = waiting
        waiting.add_entity(service)

    # Input topics

    def _subscribe(self, name: str, reliability: ReliabilityPolicy, durability: DurabilityPolicy):
        if name in self._inputs:
            self.destroy_subscription(self._inputs[name])
        self._inputs[name] = self.create_subscription(
            INPUTS[name],
            name,
            partial(self._on_input, name),
            # A new profile each time: overrides are written into it.
            QoSProfile(depth=5, reliability=reliability, durability=durability),
            qos_overriding_options=QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH)),
            event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=lambda _: self._adapt_inputs(), use_default_callbacks=False
            ),
            raw=True,
        )

    def _adapt_inputs(self):
        """Ask each input's publishers for what they offer: reliable if all are, best effort otherwise.

        Best effort alone connects to every publisher, but Fast DDS then loses most images of VGA size. Where
        the reliability is not ours to choose, a publisher can be incompatible, which is reported. Where all
        are latched, as calibrations often are, what was published before is asked for too.
        """
        if self._inputs:  # active
            self._frames.listen(self._value('path_frame'), self._value('gravity_frame'))
        for name, subscription in list(self._inputs.items()):
            offers = [p.qos_profile for p in self.get_publishers_info_by_topic(subscription.topic_name)]
            wanted = self._value(self._reliability_parameter(name))
            reliability, durability = offered_by_all(offers)
            if wanted != 'auto':
                reliability = ReliabilityPolicy[wanted.upper()]
            if reliability != ReliabilityPolicy.RELIABLE:
                durability = DurabilityPolicy.VOLATILE
            asked = subscription.qos_profile
            if (asked.reliability, asked.durability) != (reliability, durability):
                self._subscribe(name, reliability, durability)
            self._report_incompatible(name, offers)

    def _report_incompatible(self, name: str, offers: list[QoSProfile]):
        """Keep in `_qos_problems`, and log once, why nothing arrives from a publisher on input `name`."""
        asked = self._inputs[name].qos_profile
        checks = [qos_check_compatible(offer, asked) for offer in offers]
        problems = [
            reason.removeprefix('ERROR: ').rstrip(';')
            for result, reason in checks
            if result == QoSCompatibility.ERROR
        ]
        if not problems:
            self._qos_problems.pop(name, None)
        elif name not in self._qos_problems:
            self._qos_problems[name] = problems[0]
            self.get_logger().warning(
                f'Nothing arrives from a publisher on {self._inputs[name].topic_name}: {problems[0]}. '
                f'Change the publisher, or the parameter {self._reliability_parameter(name)}'
            )

    def _reliability_parameter(self, name: str) -> str:
        return f'qos_overrides.{self.resolve_topic_name(name)}.subscription.reliability'

    def _describe_source(self, name: str) -> str:
        subscription = self._inputs[name]
        count = subscription.get_publisher_count()
        publishers = f'{count} publisher{"" if count == 1 else "s"}'
        if name in self._qos_problems:
            publishers += f', {self._qos_problems[name]}'
        return f'{subscription.topic_name} ({publishers})'

    async def _until_inputs_arrive(self):
        """Wait for the first message of each input that has a publisher, just after activation."""

        def is_waiting(name: str, subscription) -> bool:
            return self._buffer.newest(name) is None and self.count_publishers(subscription.topic_name) > 0

        while (  # none are left when the node is deactivated or shut down
            time.monotonic() < self._active_since + ARRIVAL_PATIENCE
            and any(is_waiting(name, subscription) for name, subscription in self._inputs.items())
        ):
            soon = rclpy.task.Future()
            timer = self.create_timer(0.05, partial(soon.set_result, None), clock=self._steady)
            await soon
            self.destroy_timer(timer)

    # Requests

    async def _on_generate(self, request, response):
        outcome = await self._generate(request.request, 'service', lambda _: None, lambda _: None)
        return self._fill(response, outcome)

    async def _on_goal(self, goal):
        def report(progress: Progress):
            feedback = GenerateAction.Feedback(
                stage=progress.stage,
                queue_position=progress.queue_position,
                step=progress.step,
                num_steps=progress.num_steps,
                fraction=progress.fraction,
            )
            if progress.preview is not None:
                feedback.preview = [write_image(labels, 'mono8') for labels in progress.preview]
            if rclpy.ok(context=self.context):
                goal.publish_feedback(feedback)

        goal_id = bytes(goal.goal_id.uuid)

        def remember(job: Job):
            self._goals[goal_id] = job
            if goal.is_cancel_requested:  # before there was a job to cancel
                job.cancel('cancelled by the client')

        try:
            outcome = await self._generate(goal.request.request, 'action', report, remember)
        finally:
            self._goals.pop(goal_id, None)
        if outcome.code == 'NONE':
            goal.succeed()
        elif outcome.code == 'CANCELLED' and goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return self._fill(GenerateAction.Result(), outcome)

    def _on_cancel(self, goal) -> CancelResponse:
        if job := self._goals.get(bytes(goal.goal_id.uuid)):
            job.cancel('cancelled by the client')
        return CancelResponse.ACCEPT

    async def _generate(
        self,
        message: InteractionRequest,
        door: str,
        on_progress: Callable[[Progress], None],
        on_accept: Callable[[Job], None],
    ) -> Outcome:
        self._open_requests += 1
        try:
            if not _is_complete(message):
                await self._until_inputs_arrive()
            job = self._accept(message, door, on_progress)
            on_accept(job)
            await self._until_done(job.future)
            outcome = job.future.result()
            if outcome.code == 'NONE':
                self._announce(job, outcome)
        except CancelledError:  # while it waited
            outcome = Outcome('CANCELLED', job.cancel_reason)
        except Exception as error:
            outcome = Outcome(*describe_error(error))
            if outcome.code == 'GENERATION_FAILED':
                self.get_logger().error(traceback.format_exc())
        finally:
            self._open_requests -= 1
        self._last_request = time.strftime('%Y-%m-%dT%H:%M:%S%z')
        if outcome.code != 'NONE':
            self._last_error = f'{outcome.code}: {outcome.message}'
            self.get_logger().warning(f'No plan: {self._last_error}')
        return outcome

    def _accept(self, message: InteractionRequest, door: str, on_progress: Callable[[Progress], None]) -> Job:
        if self._state != 'active':
            raise InvalidRequest('NOT_ACTIVE', f'the node is {self._state}, expected active')
        limits = Limits(**{row.name: self._value(row.name) for row in fields(Limits)})
        now = self.get_clock().now().nanoseconds
        observation = read_request(message, self._buffer, limits, now, self._describe_source)

        def clients() -> int:
            return self.count_clients(self._client_of[door])

        is_known = clients() > 0  # a new client may ask before all of it has been discovered
        job = Job(
            observation,
            self._demands(),
            self._frames,
            on_progress,
            lambda: is_known and clients() == 0,
            previews=door == 'action',
        )
        self._worker.submit(job, self._value('max_queue'))
        if observation.no_path and observation.no_path != self._no_path:
            self.get_logger().info(f'No 3-D path: {observation.no_path}')
        if observation.no_actor and not self._no_actor:
            self.get_logger().warning(f'No actor_mask: {observation.no_actor}')
        self._no_path, self._no_actor = observation.no_path, observation.no_actor
        return job

    def _demands(self) -> Demands:
        path_frame, gravity_frame = self._value('path_frame'), self._value('gravity_frame')
        self._frames.listen(path_frame, gravity_frame)
        refuse = self._value('refuse_failing_plans')
        limits = read_limits(self)
        return Demands(self._value('depth_model'), path_frame, gravity_frame, limits, refuse)

    def _announce(self, job: Job, outcome: Outcome):
        self._plans.add(outcome.plans, job.observation, self._value('max_plans'))
        plan, message = outcome.plans[0]
        failing = sum(not message.checks_passed for _, message in outcome.plans)
        self.get_logger().info(
            f'{len(outcome.plans)} plan(s) for {plan.task!r} in {outcome.seconds:.1f} s, '
            f'best score {plan.score:.2f}' + (f', {failing} fail their checks' if failing else '')
        )
        if self._state == 'active':  # after the answer, which the caller waits for
            self.executor.create_task(self._play, plan, message, job.observation.request.frame)

    def _play(self, plan: Plan, message: InteractionPlan, observed: np.ndarray):
        if self._state == 'active':  # still
            self._player.play(plan, message, observed)

    @staticmethod
    def _fill(result, outcome: Outcome):
        result.error_code = getattr(result, outcome.code)
        result.error_msg = outcome.message
        result.plans = [message for _, message in outcome.plans]
        return result

    async def _until_done(self, work: Future):
        """Wait for another thread's work without holding up the executor."""
        done = rclpy.task.Future()

        def wake(_):
            if self.executor is not None:
                self.executor.create_task(done.set_result, None)

        work.add_done_callback(wake)
        await done

    # Export

    async def _on_export(self, request, response):
        self._open_requests += 1
        try:
            plans = self._plans.find([bytes(plan_id.uuid) for plan_id in request.plan_ids])
            root = self._dataset_root()
            name = request.dataset_name or 'plans'
            work = self._exports.submit(export_plans, plans, root, name)
            await self._until_done(work)
            path, episodes = work.result()
            response.dataset_path, response.episode_indices = str(path), episodes
            self.get_logger().info(f'Wrote episodes {list(episodes)} to {path}')
        except ExportError as error:
            response.error_code, response.error_msg = getattr(response, error.code), str(error)
            self._last_error = f'{error.code}: {error}'
            self.get_logger().warning(f'No export: {self._last_error}')
        finally:
            self._open_requests -= 1
        return response

    def _dataset_root(self) -> Path:
        value = self._value('dataset_root')
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise ExportError('WRITE_FAILED', f'dataset_root {value!r}: {error}') from error

    # Diagnostics

    def _publish_diagnostics(self):
        level, text = DiagnosticStatus.OK, self._state
        if self._state == 'unconfigured' and self._load_error:
            level, text = DiagnosticStatus.ERROR, self._load_error
        elif self._qos_problems:
            level, text = DiagnosticStatus.WARN, f'incompatible QoS on {", ".join(self._qos_problems)}'
        elif self._state != 'active':
            level = DiagnosticStatus.WARN
        values = {
            'state': self._state,
            'model': self._worker.model_name,
            'device': self._worker.device,
            'requests running or waiting': self._worker.queue_length,
            'last request': self._last_request,
            'last error': self._last_error,
            'plans kept': len(self._plans),
            **self._gpu_memory(),
        }
        status = DiagnosticStatus(
            level=level,
            name=f'{self.get_fully_qualified_name()}: generation',
            message=text,
            hardware_id=self._worker.device,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        header = Header(stamp=self.get_clock().now().to_msg())
        self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))

    def _gpu_memory(self) -> dict[str, str]:
        if not self._worker.device.startswith('cuda'):
            return {}
        import torch

        used = torch.cuda.memory_allocated(self._worker.device)
        free, total = torch.cuda.mem_get_info(self._worker.device)
        return {
            'GPU memory of the model, MiB': f'{used / 2**20:.0f}',
            'GPU memory free, MiB': f'{free / 2**20:.0f} of {total / 2**20:.0f}',
        }

    def _value(self, name: str):
        return self.get_parameter(name).value

    @property
    def has_open_requests(self) -> bool:
        """Whether somebody still waits for an answer."""
        return self._open_requests > 0

    def close(self, timeout: float) -> bool:
        """End the threads after a shutdown transition. Returns whether they do within `timeout` seconds."""
        self._action_server.destroy()  # destroy_node forgets it
        self._exports.shutdown(wait=False, cancel_futures=True)
        return self._worker.shutdown(timeout) and not self.has_open_requests


def _is_complete(message: InteractionRequest) -> bool:
    """Whether nothing can be added from the topics; for that, an image needs a stamp."""
    return bool(message.image.data and message.object_mask.data and message.image.header.stamp == Time())


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; waiting callers still get an answer. Returns the exit status."""
    set_environment()
    use_large_shared_memory()
    # rclpy's own handlers would invalidate the context before the node can say goodbye.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    executor = SingleThreadedExecutor()
    try:
        node = Mask2IVNode()
    except (ParameterException, ValueError) as error:
        rclpy.logging.get_logger('mask2iv').fatal(f'A parameter has a wrong value: {error}')
        rclpy.shutdown()
        return 2
    executor.add_node(node)
    if node.get_parameter('autostart').value:
        executor.create_task(node.autostart)

    def spin_some(timeout: float = 0.5):
        try:
            executor.spin_once(timeout_sec=timeout)
        except ExternalShutdownException:
            stop.set()
        except Exception:  # of one callback, e.g. a message that cannot be decoded; the model stays loaded
            node.get_logger().error(f'A callback failed:\n{traceback.format_exc()}')

    while not stop.is_set():
        spin_some()
    if rclpy.ok():
        with contextlib.suppress(rclpy_implementation.RCLError):  # finalized already
            node.trigger_shutdown()
        patience = time.monotonic() + SHUTDOWN_PATIENCE
        while node.has_open_requests and time.monotonic() < patience:
            spin_some()
        for _ in range(3):  # an action's result is a task of its own
            spin_some(0.1)
    is_idle = node.close(timeout=1.0)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    if not is_idle:
        # A thread imports torch or decodes, which nothing can interrupt; there is nothing to save.
        sys.stdout.flush()
        os._exit(0)
    return 0


if __name__ == '__main__':
    sys.exit(main())
