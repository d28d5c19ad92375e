"""The lifecycle, from a missing model to a clean end; diagnostics say what the node is up to."""

import json
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from mask2iv_ros.ros.client import InteractionClient, InteractionError, make_request
from mask2iv_ros.ros.conversions import read_labels
from mask2iv_ros.srv import GenerateInteraction
from ros_harness import set_parameter

LONG = 900  # denoising steps


@pytest.fixture(scope='module')
def node(start_node):
    """Not started automatically, and without a model at first."""
    node = start_node(
        autostart='false',
        model='/no/such/model',
        **{'qos_overrides./image.subscription.reliability': 'reliable'},
    )
    return node


def change(peer, transition: str) -> bool:
    identifier = getattr(Transition, f'TRANSITION_{transition.upper()}')
    return peer.call(ChangeState, '/mask2iv/change_state', transition=Transition(id=identifier)).success


def state(peer) -> int:
    return peer.call(GetState, '/mask2iv/get_state', again=10).current_state.id


def generate(peer, **fields) -> GenerateInteraction.Response:
    return peer.call(GenerateInteraction, '/mask2iv/generate_interaction', request=make_request(**fields))


def diagnosis(peer) -> DiagnosticStatus:
    """The next diagnostic status of the node."""
    seen = []
    subscription = peer.node.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    peer.spin_until(lambda: seen)
    peer.node.destroy_subscription(subscription)
    return seen[0].status[0]


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_an_unconfigured_node_refuses_and_says_so(node, peer, scene):
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    answer = generate(peer, **scene, task='push')
    assert answer.error_code == GenerateInteraction.Response.NOT_ACTIVE
    assert 'unconfigured' in answer.error_msg
    assert diagnosis(peer).level == DiagnosticStatus.WARN
    assert diagnosis(peer).name == '/mask2iv: generation'


def test_a_transition_that_is_not_allowed_is_answered(node, peer):
    assert not change(peer, 'activate')
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED


def test_a_missing_model_fails_configure_with_a_reason_and_holds_up_nobody(node, peer):
    service = peer.node.create_client(ChangeState, '/mask2iv/change_state')
    assert service.wait_for_service(20)
    transition = Transition(id=Transition.TRANSITION_CONFIGURE)
    configured = service.call_async(ChangeState.Request(transition=transition))
    while diagnosis(peer).message != 'loading the model':  # it imports torch first
        assert not configured.done()
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert not change(peer, 'configure')  # a second time
    assert not configured.done()

    peer.spin_until(configured.done, timeout=120)
    peer.node.destroy_client(service)
    assert not configured.result().success
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    log = node.log.read_text()
    assert '/no/such/model has no model_index.json' in log
    assert 'Set the parameters model and device' in log
    status = diagnosis(peer)
    assert status.level == DiagnosticStatus.ERROR
    assert '/no/such/model' in status.message


def test_corrupt_weights_fail_configure_with_a_reason(node, peer, tiny_model, tmp_path):
    corrupt = tmp_path / 'corrupt'
    shutil.copytree(tiny_model, corrupt)
    weights = corrupt / 'video_unet/diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:5000])
    assert set_parameter(peer, 'model', string=str(corrupt)) == ''
    assert not change(peer, 'configure')
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert f'Cannot load the model {corrupt}' in node.log.read_text()


def test_a_model_that_cannot_generate_fails_configure_with_a_reason(node, peer, tiny_model, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(tiny_model, broken)
    config = broken / 'model_index.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'video_residual_scale': 'nonsense'}))
    assert set_parameter(peer, 'model', string=str(broken)) == ''
    assert not change(peer, 'configure')
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert f'Cannot load the model {broken}' in node.log.read_text()


def test_a_device_that_is_not_there_fails_configure(node, peer, tiny_model):
    assert set_parameter(peer, 'model', string=str(tiny_model)) == ''
    assert set_parameter(peer, 'device', string='cuda:77') == ''
    assert not change(peer, 'configure')
    assert 'cuda:77' in node.log.read_text()
    assert set_parameter(peer, 'device', string='cpu') == ''


def test_with_the_right_parameters_the_same_node_comes_up(node, peer, scene):
    assert change(peer, 'configure')
    assert state(peer) == State.PRIMARY_STATE_INACTIVE
    answer = generate(peer, **scene, task='push')
    assert answer.error_code == GenerateInteraction.Response.NOT_ACTIVE
    assert 'inactive' in answer.error_msg
    assert change(peer, 'activate')
    assert generate(peer, **scene, task='push').error_code == GenerateInteraction.Response.NONE

    status = diagnosis(peer)
    assert (status.level, status.message) == (DiagnosticStatus.OK, 'active')
    assert values(status)['model'] == 'tiny'
    assert values(status)['device'] == status.hardware_id == 'cpu'
    assert values(status)['last request'] != 'none'


def test_incompatible_qos_is_reported(node, peer):
    # The node was told to ask for reliable images; a best-effort camera would then be silence.
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = peer.node.create_publisher(Image, 'image', best_effort)
    node.wait_for('qos_overrides./image.subscription.reliability')
    assert diagnosis(peer).message == 'incompatible QoS on image'
    answer = generate(peer, task='push')
    assert 'Best effort publisher and reliable subscription' in answer.error_msg

    peer.node.destroy_publisher(publisher)
    peer.spin_until(lambda: diagnosis(peer).message == 'active')
    assert '0 publishers)' in generate(peer, task='push').error_msg


def test_a_load_error_is_not_hidden_by_an_earlier_qos_problem(node, peer, tiny_model):
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = peer.node.create_publisher(Image, 'image', best_effort)
    peer.spin_until(lambda: diagnosis(peer).message == 'incompatible QoS on image')
    assert change(peer, 'deactivate')
    assert change(peer, 'cleanup')
    assert set_parameter(peer, 'model', string='/no/such/model') == ''
    assert not change(peer, 'configure')
    status = diagnosis(peer)
    assert (status.level, values(status)['state']) == (DiagnosticStatus.ERROR, 'unconfigured')
    assert '/no/such/model' in status.message
    peer.node.destroy_publisher(publisher)

    assert set_parameter(peer, 'model', string=str(tiny_model)) == ''
    assert change(peer, 'configure')
    assert change(peer, 'activate')


def test_inputs_are_reliable_exactly_if_all_publishers_are(node, peer):
    # Best effort alone would connect to all, but loses most large images even on one machine.
    def offers(policy):
        return peer.node.create_publisher(Image, 'object_mask', QoSProfile(depth=1, reliability=policy))

    def is_reliable() -> bool:
        subscriptions = peer.node.get_subscriptions_info_by_topic('/object_mask')
        return [s.qos_profile.reliability for s in subscriptions] == [ReliabilityPolicy.RELIABLE]

    assert not is_reliable()
    reliable = offers(ReliabilityPolicy.RELIABLE)
    peer.spin_until(is_reliable)
    best_effort = offers(ReliabilityPolicy.BEST_EFFORT)
    peer.spin_until(lambda: not is_reliable())
    peer.node.destroy_publisher(reliable)
    peer.node.destroy_publisher(best_effort)


def test_deactivation_cancels_requests(node, peer, scene):
    with InteractionClient() as client:
        plans = client.generate_async(**scene, task='push', num_inference_steps=LONG)
        waiting = client.generate_async(**scene, task='push')
        time.sleep(0.5)
        assert values(diagnosis(peer))['requests running or waiting'] == '2'
        assert change(peer, 'deactivate')
        for future in (plans, waiting):
            with pytest.raises(InteractionError, match='CANCELLED: the node was deactivated'):
                future.result(10)
    assert state(peer) == State.PRIMARY_STATE_INACTIVE


def test_cleanup_and_another_round(node, peer, scene):
    assert change(peer, 'cleanup')
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert values(diagnosis(peer))['model'] == ''
    assert change(peer, 'configure')
    assert change(peer, 'activate')
    assert generate(peer, **scene, task='push').error_code == GenerateInteraction.Response.NONE


def test_a_request_right_after_activation_waits_for_the_first_messages(node, peer, scene_messages):
    publishers = {name: peer.node.create_publisher(Image, name, 5) for name in scene_messages}

    def publish():
        stamp = peer.node.get_clock().now().to_msg()
        for name, message in scene_messages.items():
            message.header.stamp = stamp
            publishers[name].publish(message)

    timer = peer.node.create_timer(0.2, publish)
    assert change(peer, 'deactivate')
    assert change(peer, 'activate')
    answer = generate(peer, task='push')
    assert answer.error_msg == ''
    labels = read_labels(answer.plans[0].masks)[0]
    assert set(labels.ravel()) == {0, 1, 2}  # the optional actor was waited for too
    peer.node.destroy_timer(timer)
    for publisher in publishers.values():
        peer.node.destroy_publisher(publisher)


def test_a_request_that_brings_all_it_needs_waits_for_no_topic(node, peer, scene):
    silent = peer.node.create_publisher(Image, 'depth', 5)
    assert change(peer, 'deactivate')
    assert change(peer, 'activate')
    start = time.monotonic()
    assert generate(peer, **scene).error_code == GenerateInteraction.Response.NO_TASK_OR_GOAL
    assert time.monotonic() - start < 1.5  # others wait until 2 s after activation
    peer.node.destroy_publisher(silent)


def test_a_request_that_nobody_waits_for_is_dropped(node, peer, scene):
    # A client that leaves is known at once; one that is killed, after DDS's 20 seconds.
    with InteractionClient() as leaver:
        leaver.generate_async(**scene, task='push', num_inference_steps=LONG)
        time.sleep(0.5)
    node.wait_for('no client is waiting for the result', timeout=10)


def test_sigterm_answers_the_last_request_and_ends_cleanly(node, peer, scene):
    answers = []
    with InteractionClient() as client:

        def ask():
            with pytest.raises(InteractionError) as refusal:
                client.generate(**scene, task='push', num_inference_steps=LONG, timeout=30)
            answers.append(str(refusal.value))

        caller = threading.Thread(target=ask)
        client.wait_until_ready()
        caller.start()
        time.sleep(1.0)
        assert node.stop(signal.SIGTERM) == 0
        caller.join(10)
    assert answers == ['CANCELLED: the node is shutting down']
    log = node.log.read_text()
    assert 'finalized' in log
    assert 'Traceback' not in log.split('finalized')[1]


def test_autostart_with_a_missing_model_stays_alive_and_sigint_ends_it(start_node, peer):
    node = start_node(model='/no/such/model')
    node.wait_for('Set the parameters model and device')
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert node.stop(signal.SIGINT) == 0
    assert 'Traceback' not in node.log.read_text()


def test_sigterm_answers_a_request_that_waits_for_its_first_images(start_node, tiny_model, peer):
    silent = peer.node.create_publisher(Image, 'image', 5)
    node = start_node(model=tiny_model)
    with InteractionClient() as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready()
        call = pool.submit(client.generate, task='push', timeout=30)
        peer.spin_for(0.5)
        assert not call.done()
        assert node.stop(signal.SIGTERM) == 0
        with pytest.raises(InteractionError, match='NOT_ACTIVE: the node is finalized'):
            call.result(10)
    peer.node.destroy_publisher(silent)


def test_sigint_while_the_model_loads_ends_cleanly(start_node, tiny_model, peer):
    node = start_node(model=tiny_model)
    assert state(peer) == State.PRIMARY_STATE_UNCONFIGURED
    assert node.stop(signal.SIGINT) == 0
    assert 'Traceback' not in node.log.read_text()


@pytest.mark.parametrize(
    ('parameters', 'reason'),
    [({'max_queue': -3}, 'max_queue'), ({'num_samples': 9}, 'num_samples 9 > max_samples 8')],
)
def test_a_wrong_start_parameter_ends_the_node_with_a_reason(start_node, parameters, reason):
    node = start_node(**parameters)
    assert node.process.wait(20) == 2
    log = node.log.read_text()
    assert reason in log
    assert 'Traceback' not in log


def test_a_paused_clock_stops_nothing(start_node, tiny_model, peer, scene_messages):
    """Under `use_sim_time`, with a recording that is paused: time stands still, requests do not."""
    start_node(model=tiny_model, use_sim_time='true')
    paused = Clock(clock=Time(sec=1000))
    clock = peer.node.create_publisher(Clock, '/clock', 1)
    ticker = peer.node.create_timer(0.05, lambda: clock.publish(paused))
    publishers = {name: peer.node.create_publisher(Image, name, 5) for name in scene_messages}
    peer.spin_until(lambda: diagnosis(peer).message == 'active', 300)
    peer.spin_until(lambda: all(publisher.get_subscription_count() for publisher in publishers.values()))
    peer.spin_for(1.0)
    for name, message in scene_messages.items():
        message.header.stamp = paused.clock
        publishers[name].publish(message)
    frames = []
    video = peer.node.create_subscription(Image, '/mask2iv/video', frames.append, 10)
    peer.spin_until(lambda: peer.node.count_publishers('/mask2iv/video'))
    peer.spin_for(0.5)

    answer = generate(peer, task='push')
    assert answer.error_msg == ''
    assert answer.plans[0].header.stamp == paused.clock
    peer.spin_until(lambda: len(frames) == len(answer.plans[0].video))  # it plays on wall time
    assert {frame.header.stamp.sec for frame in frames} == {1000}
    peer.node.destroy_subscription(video)
    peer.node.destroy_timer(ticker)
