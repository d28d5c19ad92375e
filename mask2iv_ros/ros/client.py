"""The planner's door: `InteractionClient` hides services, the action and spinning behind a few verbs."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one since Python 3.11

import numpy as np
import rclpy
from geometry_msgs.msg import Point
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from mask2iv_ros.action import GenerateInteraction as GenerateAction
from mask2iv_ros.msg import InteractionPlan, InteractionRequest
from mask2iv_ros.ros.conversions import write_image
from mask2iv_ros.ros.received_plan import ReceivedPlan
from mask2iv_ros.srv import ExportDemonstration

DISCOVERY_TIMEOUT = 10.0  # seconds
CHECK_PERIOD = 1.0  # seconds between two looks whether the node is still there
ACCEPTANCE_TIMEOUT = 30.0  # seconds; the node accepts at once, unless it was restarted meanwhile


class InteractionError(Exception):
    """The node refused or failed. `code` is the error code's value, `name` its name, e.g. 'EMPTY_MASK'."""

    def __init__(self, code: int, name: str, message: str):
        super().__init__(f'{name}: {message}')
        self.code = code
        self.name = name


class InteractionClient:
    """Talks to one mask2iv node, from any thread, also from a callback of another node.

    It has its own context, node and spinning thread, so it never waits for the caller's executor. Use it as a
    context manager, or call `close`.

        with InteractionClient('/mask2iv') as client:
            client.wait_until_ready()
            plan = client.generate(task='open the drawer')
            print(plan.path, plan.contact_frame)  # a ReceivedPlan

    Args:
        node: name of the mask2iv node, with its namespace.
    """

    def __init__(self, node: str = '/mask2iv'):
        self._context = rclpy.Context()
        # Without the program's ROS arguments: its node name would become this one's, its `use_sim_time` would
        # stop the clock by which it is noticed that the mask2iv node has gone.
        rclpy.init(args=[], context=self._context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
        self._node = rclpy.create_node(
            f'interaction_client_{uuid.uuid4().hex[:8]}',  # a planner may have several
            context=self._context,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._name = node
        self._state = self._node.create_client(GetState, f'{node}/get_state')
        self._export = self._node.create_client(ExportDemonstration, f'{node}/export_demonstration')
        self._action = ActionClient(self._node, GenerateAction, f'{node}/generate_interaction')
        self._accepting = None  # the newest goal's handle, once the node has accepted it
        self._sent: tuple[Future, float] | None = None  # that goal's future, and when it was sent
        self._futures: dict[Future, rclpy.task.Future | None] = {}  # with the goal's handle, once it is sent
        self._calls: deque[Callable[[], None]] = deque()
        self._subscription = None
        self._subscribing = threading.Lock()
        self._published: deque[bytes] = deque(maxlen=1)  # the newest plan on ~/plan, serialised
        self._node.create_timer(CHECK_PERIOD, self._give_up_if_gone)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='interaction_client', daemon=True)
        self._thread.start()

    def __enter__(self) -> InteractionClient:
        return self

    def __exit__(self, *_):
        self.close()

    def wait_until_ready(self, timeout: float = 300.0):
        """Return once the node is active. Raises TimeoutError with the state it is in."""
        end = time.monotonic() + timeout
        state = 'not there'
        while time.monotonic() < end:
            if self._state.wait_for_service(0.2):
                try:
                    current = self._ask(self._state, GetState.Request(), 1.0).current_state
                except (TimeoutError, ConnectionError):
                    continue
                if current.id == State.PRIMARY_STATE_ACTIVE and self._action.wait_for_server(1.0):
                    return
                state = current.label
            time.sleep(0.1)
        raise TimeoutError(
            f'{self._name} is {state} after {timeout} s, expected active; its log says if it is loading'
        )

    def generate(
        self, request: InteractionRequest | None = None, timeout: float | None = None, **fields
    ) -> ReceivedPlan:
        """Ask for a plan, wait, and return the best; the others are its `alternatives`.

        Args:
            request: see `make_request` for the keywords that can be given instead.
            timeout: seconds, after which the node is told to stop; None waits as long as a node is there,
                even if it was killed and started anew meanwhile, which goes unnoticed for DDS's 20 seconds.

        Raises InteractionError, TimeoutError, or ConnectionError if the node leaves; see `generate_async`.
        """
        plan = self.generate_async(request, **fields)
        try:
            return plan.result(timeout)
        except FutureTimeoutError:
            if plan.done():  # its own, or it came just now
                return plan.result()
            goal = self._futures.pop(plan, None)  # now nobody waits, and what was not sent never will be
            self._in_thread(lambda: _cancel(goal))
            raise TimeoutError(f'no answer after {timeout} s; the node was told to stop') from None

    def generate_async(
        self,
        request: InteractionRequest | None = None,
        on_feedback: Callable[[GenerateAction.Feedback], None] | None = None,
        **fields,
    ) -> Future:
        """Start the action and return a future of the best plan, or of an InteractionError.

        A goal is sent when the node has accepted the one before, so that none is lost in a queue of DDS.
        `cancel` stops the newest call. The future gets a ConnectionError when the node has left: at once if
        it ended, after DDS's 20 seconds if it was killed. A killed node that is back by then goes unnoticed,
        so give `result` a timeout.

        Args:
            request: see `make_request` for the keywords that can be given instead.
            on_feedback: called in the client's thread, where it may `cancel`, but where `generate` and
                `export` would wait for themselves. What it raises is logged.

        Raises TimeoutError if the node is not there.
        """
        request = _request(request, fields)
        plan = Future()
        plan.set_running_or_notify_cancel()  # so plan.cancel() refuses: it could not stop the node

        def on_result(result):
            try:
                self._settle(plan, _plan(result.result().result))
            except Exception as error:
                self._settle(plan, error)

        def on_goal(goal):  # the node accepts every goal; reasons come with the result
            try:
                goal.result().get_result_async().add_done_callback(on_result)
            except Exception as error:
                self._settle(plan, error)
            self._run_calls()

        def send():
            if plan not in self._futures:  # the node has left, and the caller was told
                return
            try:
                self._sent = plan, time.monotonic()
                self._accepting = self._action.send_goal_async(GenerateAction.Goal(request=request), feedback)
                self._futures[plan] = self._accepting
                self._accepting.add_done_callback(on_goal)
            except Exception as error:
                self._settle(plan, error)

        feedback = on_feedback and (lambda message: on_feedback(message.feedback))
        self._require(self._action.wait_for_server)
        self._futures[plan] = None
        self._in_thread(send)
        return plan

    def cancel(self):
        """Ask the node to stop what was started last, without waiting for its answer.

        Its future then raises InteractionError CANCELLED, or has the plan if it was done already.
        """

        self._in_thread(lambda: _cancel(self._accepting))

    def latest_plan(self, timeout: float = 5.0) -> ReceivedPlan | None:
        """Return the newest plan that the node has published, whoever asked for it; just after its answer.

        The first call subscribes, so that only those who call this pay for the transport. Until a first plan
        has come, a call waits up to `timeout` seconds for it; None if there is none.
        """
        with self._subscribing:
            if self._subscription is None:
                latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
                topic = f'{self._name}/plan'
                self._subscription = self._node.create_subscription(
                    InteractionPlan, topic, lambda data: self._published.append(data), latched, raw=True
                )
        end = time.monotonic() + timeout
        while not self._published and time.monotonic() < end:
            time.sleep(0.01)
        if not self._published:
            return None
        return ReceivedPlan(deserialize_message(self._published[-1], InteractionPlan))

    def export(
        self, plans: list[ReceivedPlan] | None = None, dataset_name: str = '', timeout: float | None = None
    ) -> tuple[str, list[int]]:
        """Write plans (None: the newest) to a LeRobot dataset of the node; its folder and the new episodes.

        Raises InteractionError, TimeoutError or ConnectionError.
        """
        ids = [plan.message.id for plan in plans or []]
        request = ExportDemonstration.Request(plan_ids=ids, dataset_name=dataset_name)
        self._require(self._export.wait_for_service)
        answer = self._ask(self._export, request, timeout)
        _raise_error(answer)
        return answer.dataset_path, list(answer.episode_indices)

    def close(self):
        """Stop the thread and leave the graph; futures that still wait get a RuntimeError.

        Raises RuntimeError in that thread, for example in `on_feedback`: it cannot wait for its own end.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError('close() was called by a callback of the client, expected another thread')
        if not self._context.ok():
            return
        self._context.try_shutdown()
        self._thread.join()
        for plan in list(self._futures):
            self._settle(plan, RuntimeError('the client was closed before the node had answered'))
        self._executor.shutdown()
        self._action.destroy()  # destroy_node forgets action clients, and the graph would still show this one
        self._node.destroy_node()

    def _require(self, wait_for_server: Callable[[float], bool]):
        """Wait for discovery: what is sent before it is lost without an error."""
        if not wait_for_server(DISCOVERY_TIMEOUT):
            raise TimeoutError(f'{self._name} is not there after {DISCOVERY_TIMEOUT} s; does the node run?')

    def _ask(self, service, request, timeout: float | None):
        """Call a service and block until it has answered; the client's thread completes the future."""
        future = service.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        end = float('inf') if timeout is None else time.monotonic() + timeout
        while not done.wait(max(0.0, min(CHECK_PERIOD, end - time.monotonic()))):
            if time.monotonic() >= end:
                service.remove_pending_request(future)
                raise TimeoutError(f'no answer after {timeout} s')
            if not service.service_is_ready():
                service.remove_pending_request(future)
                raise self._gone()
        return future.result()

    def _gone(self) -> ConnectionError:
        return ConnectionError(f'{self._name} has left before it answered')

    def _give_up_if_gone(self):
        if self._futures and not self._action.server_is_ready():
            self._calls.clear()
            self._accepting = None
            for plan in list(self._futures):
                self._settle(plan, self._gone())
        if self._accepting is not None and not self._accepting.done():
            plan, sent = self._sent
            if time.monotonic() - sent > ACCEPTANCE_TIMEOUT:
                self._settle(plan, self._gone())
                self._accepting = None
                self._run_calls()

    def _settle(self, plan: Future, outcome: ReceivedPlan | Exception):
        """End a future of `generate_async`, unless it has ended already."""
        if plan not in self._futures:
            return
        self._futures.pop(plan, None)
        if isinstance(outcome, Exception):
            plan.set_exception(outcome)
        else:
            plan.set_result(outcome)

    def _in_thread(self, call: Callable[[], None]):
        """Run `call` in the client's thread, after earlier ones.

        rclpy 7 drops an answer to the action that comes while another thread is still sending, and runs the
        newest task first.
        """
        self._calls.append(call)
        self._executor.create_task(self._run_calls)

    def _run_calls(self):
        while self._calls and (self._accepting is None or self._accepting.done()):
            self._calls.popleft()()

    def _spin(self):
        while self._context.ok():
            try:
                self._executor.spin()
            except ExternalShutdownException:
                return
            except Exception:  # of a callback; without this thread all later calls would wait for ever
                self._node.get_logger().error(f'A callback failed:\n{traceback.format_exc()}')


def _cancel(goal: rclpy.task.Future | None):
    """Cancel an action's goal when the server has accepted it."""
    if goal is not None:
        goal.add_done_callback(lambda goal: goal.result().cancel_goal_async())


def make_request(
    image: np.ndarray | Image | None = None,
    object_mask: np.ndarray | Image | None = None,
    actor_mask: np.ndarray | Image | None = None,
    goal_mask: np.ndarray | Image | None = None,
    goal_pixel: tuple[float, float] | None = None,
    header: Header | None = None,
    **fields,
) -> InteractionRequest:
    """Build a request; what is left out is the node's to choose.

    Args:
        image: (H, W, 3) uint8 RGB, or a message. None: the newest on the node's topic; so for the masks.
        object_mask, actor_mask, goal_mask: (H, W), not 0 where the object or actor is, or a message.
        goal_pixel: (x, y) pixel where the object's centre should end.
        header: stamp and frame of an image that is given as an array.
        fields: task, num_samples, seed, num_inference_steps, trajectory_only.
    """
    request = InteractionRequest(**fields)
    if image is not None:
        request.image = image if isinstance(image, Image) else write_image(image, 'rgb8', header)
    for name, mask in (('object_mask', object_mask), ('actor_mask', actor_mask), ('goal_mask', goal_mask)):
        if mask is not None:
            if not isinstance(mask, Image):
                mask = write_image((np.asarray(mask) != 0).astype(np.uint8), 'mono8', header)
            setattr(request, name, mask)
    if goal_pixel is not None:
        request.goal_pixel = [Point(x=float(goal_pixel[0]), y=float(goal_pixel[1]))]
    return request


def _request(request: InteractionRequest | None, fields: dict) -> InteractionRequest:
    if request is None:
        return make_request(**fields)
    if fields:
        raise TypeError(f'expected a request or its fields, got a request and {", ".join(fields)}')
    return request


def _plan(answer) -> ReceivedPlan:
    _raise_error(answer)
    if not answer.plans:  # the default answer, which rclpy gives for a goal that it does not know
        text = 'the answer is empty: the node rejected or lost the goal, for example by a restart'
        raise InteractionError(answer.GENERATION_FAILED, 'GENERATION_FAILED', text)
    best, *others = answer.plans
    return ReceivedPlan(best, others)


def _raise_error(answer):
    if answer.error_code:
        names = (
            name for name in dir(answer) if name.isupper() and getattr(answer, name) == answer.error_code
        )
        raise InteractionError(answer.error_code, next(names, 'UNKNOWN'), answer.error_msg)
