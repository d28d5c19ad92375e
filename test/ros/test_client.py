"""The planner's client with nodes that misbehave, and with careless callers: no call waits for ever."""

import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import rclpy
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future

from mask2iv_ros.action import GenerateInteraction
from mask2iv_ros.msg import InteractionPlan, InteractionRequest
from mask2iv_ros.ros.client import InteractionClient, InteractionError, make_request
from ros_harness import Peer, until

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Server:
    """An action server with the node's interface, which does what a test tells it to."""

    def __init__(self, peer):
        self.accepts = True
        self.execute = None
        self.node = peer.node
        self.server = ActionServer(
            peer.node,
            GenerateInteraction,
            '/other/generate_interaction',
            self.run,
            goal_callback=lambda _: GoalResponse.ACCEPT if self.accepts else GoalResponse.REJECT,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    async def run(self, goal):
        result = self.execute(goal)
        return await result if inspect.isawaitable(result) else result


@pytest.fixture(scope='module')
def server(peer):
    server = Server(peer)
    yield server
    server.server.destroy()


@pytest.fixture
def client(server):
    with InteractionClient('/other') as client:
        yield client


def answer(goal) -> GenerateInteraction.Result:
    goal.succeed()
    return GenerateInteraction.Result(plans=[InteractionPlan(task=goal.request.request.task)])


def test_the_best_plan_comes_with_its_alternatives(client, server, peer):
    def execute(goal):
        goal.succeed()
        return GenerateInteraction.Result(plans=[InteractionPlan(seed=seed) for seed in (7, 5, 6)])

    server.execute = execute
    plan = client.generate_async(task='push')
    peer.spin_until(plan.done)
    assert plan.result().message.seed == 7
    assert [other.message.seed for other in plan.result().alternatives] == [5, 6]


def test_there_is_no_latest_plan_before_the_first_one_and_then_the_newest(client, peer):
    assert client.latest_plan(timeout=0.2) is None
    publisher = peer.node.create_publisher(InteractionPlan, '/other/plan', LATCHED)
    for task in ('first', 'second'):
        publisher.publish(InteractionPlan(task=task))
    until(lambda: client.latest_plan().message.task == 'second')
    with InteractionClient('/other') as late:
        assert late.latest_plan().message.task == 'second'  # which was published before it came
    peer.node.destroy_publisher(publisher)


def test_a_rejected_goal_is_an_error(client, server, peer):
    server.accepts = False
    plans = client.generate_async(task='push')
    peer.spin_until(plans.done)
    server.accepts = True
    with pytest.raises(InteractionError, match='GENERATION_FAILED: the answer is empty'):
        plans.result()


def test_an_answer_is_heard_that_comes_while_the_goal_is_still_being_sent(client, server, peer):
    class SlowHandle:
        def __init__(self, handle):
            self.handle = handle

        def __getattr__(self, name):
            return getattr(self.handle, name)

        def send_goal_request(self, request):
            number = self.handle.send_goal_request(request)
            time.sleep(0.5)
            return number

    client._action._client_handle = SlowHandle(client._action._client_handle)
    server.execute = answer
    plans = []
    caller = threading.Thread(target=lambda: plans.append(client.generate_async(task='push')))
    caller.start()
    peer.spin_until(lambda: plans and plans[0].done())
    caller.join()
    assert plans[0].result().message.task == 'push'


def test_goals_are_sent_in_the_order_of_the_calls(client, server, peer):
    seen = []

    def execute(goal):
        seen.append(goal.request.request.task)
        return answer(goal)

    server.execute = execute
    busy = threading.Event()
    client._executor.create_task(busy.wait, 5)  # the client's thread has no time for them yet
    plans = [client.generate_async(task=str(i)) for i in range(3)]
    busy.set()
    peer.spin_until(lambda: all(future.done() for future in plans))
    assert seen == ['0', '1', '2']


def test_no_goal_is_lost_of_many_at_once(client, server, peer):
    server.execute = answer
    plans = [client.generate_async(task=str(i)) for i in range(300)]
    peer.spin_until(lambda: all(future.done() for future in plans), timeout=120)
    assert [future.result().message.task for future in plans] == [str(i) for i in range(300)]


def test_a_node_that_leaves_ends_what_waits_for_it():
    peer = Peer('leaver')
    executing = []
    never = Future()

    async def execute(goal):
        executing.append(goal)
        await never

    action = ActionServer(peer.node, GenerateInteraction, '/leaver/generate_interaction', execute)
    with InteractionClient('/leaver') as client:
        plans = [client.generate_async(task='push') for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            plans.append(pool.submit(client.generate, task='push'))
            peer.spin_until(lambda: len(executing) == 3)
            action.destroy()
            for future in plans:
                with pytest.raises(ConnectionError, match='/leaver has left before it answered'):
                    future.result(10)
        peer.close()


def test_a_call_that_times_out_stops_the_node(client, server, peer):
    goals, end = [], Future()

    async def execute(goal):
        goals.append(goal)
        await end
        goal.canceled()
        return GenerateInteraction.Result()

    server.execute = execute
    with ThreadPoolExecutor() as pool:
        call = pool.submit(client.generate, task='too slow', timeout=1.0)
        peer.spin_until(lambda: goals and goals[0].is_cancel_requested)
        end.set_result(None)
        with pytest.raises(TimeoutError, match=r'no answer after 1.0 s; the node was told to stop'):
            call.result(10)
    server.execute = answer
    with ThreadPoolExecutor() as pool:
        call = pool.submit(client.generate, task='next')
        peer.spin_until(call.done)
    assert call.result().message.task == 'next'


def test_a_call_that_times_out_before_it_was_sent_is_never_sent(client, server, peer, monkeypatch):
    executed = []
    server.execute = lambda goal: executed.append(goal.request.request.task) or answer(goal)
    first = client.generate_async(task='first')  # not accepted as long as the peer does not spin
    with pytest.raises(TimeoutError, match='no answer after'):
        client.generate(task='second', timeout=0.2)
    third = client.generate_async(task='third')
    peer.spin_until(lambda: first.done() and third.done())
    assert executed == ['first', 'third']


def test_a_goal_that_is_never_accepted_does_not_block_the_next(client, server, peer, monkeypatch):
    monkeypatch.setattr('mask2iv_ros.ros.client.ACCEPTANCE_TIMEOUT', 1.0)
    server.execute = answer
    send, lost = client._action.send_goal_async, rclpy.task.Future()
    monkeypatch.setattr(client._action, 'send_goal_async', lambda *_: lost)  # as by a node that was restarted
    first = client.generate_async(task='first')
    with pytest.raises(ConnectionError, match='/other has left'):
        first.result(10)
    monkeypatch.setattr(client._action, 'send_goal_async', send)
    second = client.generate_async(task='second')
    peer.spin_until(second.done)
    assert second.result().message.task == 'second'


def test_closing_ends_what_still_waits(server, peer):
    server.execute = answer
    with InteractionClient('/other') as client:
        plans = client.generate_async(task='push')  # which nobody answers, because the peer does not spin
    with pytest.raises(RuntimeError, match='closed'):
        plans.result(0)
    peer.spin_for(0.5)


def test_closing_in_a_callback_is_refused_and_changes_nothing(client, server, peer):
    refused = []

    def on_feedback(_):
        with pytest.raises(RuntimeError, match='by a callback of the client') as refusal:
            client.close()
        refused.append(refusal)

    def execute(goal):
        goal.publish_feedback(GenerateInteraction.Feedback())
        return answer(goal)

    server.execute = execute
    plans = client.generate_async(task='push', on_feedback=on_feedback)
    peer.spin_until(plans.done)
    assert plans.result().message.task == 'push'
    until(lambda: refused)


def test_a_server_that_fails_is_an_error(client, server, peer):
    def fail(goal):
        raise ValueError('broken server')

    server.execute = fail
    plans = client.generate_async(task='push')
    peer.spin_until(plans.done)
    with pytest.raises(InteractionError, match='GENERATION_FAILED: the answer is empty'):
        plans.result()


def test_an_answer_that_cannot_be_read_reaches_the_caller(client, server, peer, monkeypatch):
    def fail(_):
        raise ValueError('cannot read this')

    server.execute = answer
    monkeypatch.setattr('mask2iv_ros.ros.client._plan', fail)
    plans = client.generate_async(task='push')
    peer.spin_until(plans.done)
    with pytest.raises(ValueError, match='cannot read this'):
        plans.result()


def test_a_failing_feedback_callback_stops_nothing(client, server, peer):
    seen = threading.Event()

    def on_feedback(_):
        seen.set()
        raise ValueError('careless caller')

    def execute(goal):
        goal.publish_feedback(GenerateInteraction.Feedback())
        return answer(goal)

    server.execute = execute
    for task in ('first', 'second'):
        plans = client.generate_async(task=task, on_feedback=on_feedback)
        peer.spin_until(plans.done)
        assert plans.result().message.task == task
        assert seen.wait(5)


def test_the_future_itself_cannot_be_cancelled(client, server, peer):
    server.execute = answer
    plans = client.generate_async(task='push')
    assert not plans.cancel()
    peer.spin_until(plans.done)
    assert plans.result().message.task == 'push'


def test_a_request_and_its_fields_exclude_each_other():
    with InteractionClient('/nobody') as client:
        for ask in (client.generate, client.generate_async):
            with pytest.raises(TypeError, match='got a request and task, seed'):
                ask(InteractionRequest(), task='push', seed=3)
            with pytest.raises(TypeError, match='got a request and task'):
                ask(make_request(task='pull'), task='push')
