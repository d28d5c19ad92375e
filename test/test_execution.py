"""Plans become hand motion: on a drawn robot that carries or pushes a box, and in a simulated episode."""

import argparse
import json
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera
from mask2iv_ros.planning.arm_appearance import COMPONENTS, ArmAppearance
from mask2iv_ros.planning.execution import (
    FRUITLESS_STEPS,
    LIFTED,
    STUCK_STEPS,
    Gripper,
    HandController,
    HandMotion,
    Observation,
    Waypoint,
    choose_plan,
    hand_path,
    plan_hand_motion,
    random_hand_motion,
)
from mask2iv_ros.planning.rollout import MAX_REPLANS, Planned, execute
from tiny_model import build_tiny_pipeline

SIZE = (120, 160)
GRIPPER = Gripper()
BOX = np.array((0.05, 0.65, 0.02))
HALF = 0.02  #: of the box
START = np.array((0.0, 0.6, 0.2))


def look_at(eye, target) -> Camera:
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((right, np.cross(forward, right), forward), axis=1)
    pose[:3, 3] = eye
    return Camera(np.array(((160.0, 0, 79.5), (0, 160.0, 59.5), (0, 0, 1))), pose)


CAMERA = look_at((0.9, 0.1, 0.8), (0.0, 0.62, 0.1))


def project(points):
    inside = (np.atleast_2d(points) - CAMERA.cam_to_world[:3, 3]) @ CAMERA.cam_to_world[:3, :3]
    pixels = inside @ CAMERA.intrinsics.T
    return pixels[:, :2] / pixels[:, 2:], inside[:, 2]


def hull(points) -> np.ndarray:
    """(H, W) bool: the convex hull of points in the picture."""
    image = np.zeros(SIZE, np.uint8)
    pixels = np.round(project(points)[0]).astype(np.int32)
    cv2.fillConvexPoly(image, cv2.convexHull(pixels), 1)
    return image > 0


def block(centre, half) -> np.ndarray:
    return np.asarray(centre) + np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T * half


def draw(hand, box=None) -> np.ndarray:
    """Labels of a hand that hangs from an elbow, which hangs on a shoulder; and of a box."""
    elbow = np.array((hand[0] * 0.6, (hand[1] - 0.1) * 0.7, 0.45))
    arm = hull(block(np.add(hand, (0, 0, 0.02)), (0.03, 0.05, 0.065)))
    arm |= hull(np.concatenate((block(np.add(hand, (0, 0, 0.1)), 0.03), block(elbow, 0.03))))
    arm |= hull(np.concatenate((block(elbow, 0.03), block((0, -0.1, 0.3), 0.05))))
    return lb.combine_masks(hull(block(box, HALF)) if box is not None else np.zeros(SIZE, bool), arm)


def observe(hand, box) -> Observation:
    """Depth is of the table and of the box's surface towards the camera."""
    labels = draw(hand, box)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    rays = np.stack(((xs - 79.5) / 160, (ys - 59.5) / 160, np.ones(SIZE)), axis=-1)
    rays = rays @ CAMERA.cam_to_world[:3, :3].T
    origin = CAMERA.cam_to_world[:3, 3]
    with np.errstate(divide='ignore', invalid='ignore'):
        depth = np.where(rays[..., 2] < 0, -origin[2] / rays[..., 2], 0)
        sides = (box + HALF * -np.sign(rays) - origin) / rays  # of a convex box the last plane entered
    depth[labels == lb.OBJECT] = sides.max(axis=-1)[labels == lb.OBJECT]
    return Observation(labels, depth.astype(np.float32), CAMERA, np.array(hand), 1.0)


@pytest.fixture(scope='module')
def arm() -> ArmAppearance:
    rng = np.random.default_rng(0)
    hands = rng.uniform((-0.3, 0.4, 0.05), (0.3, 0.85, 0.4), (500, 3))
    return ArmAppearance.fit(np.array([draw(hand) == lb.ACTOR for hand in hands]), hands)


def plan(*ways, box=BOX, carried_from=None, frames=16):
    """(T, H, W) labels of a hand that goes from point to point; the box goes along from one of them on."""
    points = np.array(ways)
    times = np.linspace(0, len(points) - 1, frames)
    hands = np.stack([np.interp(times, np.arange(len(points)), column) for column in points.T], axis=1)
    held = times >= carried_from if carried_from is not None else np.zeros(frames, bool)
    boxes = np.array(
        [np.add(box, (hand - points[carried_from] if h else 0)) for hand, h in zip(hands, held, strict=True)]
    )
    return np.array([draw(hand, at) for hand, at in zip(hands, boxes, strict=True)])


GRASP = BOX - GRIPPER.tip
GOAL = np.add(GRASP, (-0.15, 0.1, 0.2))
LIFT = (START, np.add(GRASP, (0, 0, 0.1)), GRASP, np.add(GRASP, (0, 0, 0.1)), GOAL)


def test_the_silhouette_tells_where_the_hand_is_also_in_depth(arm):
    hands = np.random.default_rng(1).uniform((-0.25, 0.45, 0.08), (0.25, 0.8, 0.35), (40, 3))
    found = arm.locate(np.array([draw(hand) for hand in hands]))
    assert np.median(np.linalg.norm(found - hands, axis=1)) < 0.01
    assert np.linalg.norm(arm.error) < 0.03  # what it says of itself


def test_a_covered_part_of_the_arm_does_not_move_it(arm):
    hand = np.array((0.05, 0.6, 0.15))
    labels = draw(hand)
    around = project(hand)[0][0].round().astype(int)
    covered = np.s_[around[1] : around[1] + 8, around[0] - 6 : around[0] + 6]
    errors = []
    for label in (lb.OBJECT, lb.BACKGROUND):
        labels[covered] = label
        errors.append(np.linalg.norm(arm.locate(labels[None])[0] - hand))
    assert errors[0] < min(0.035, errors[1] / 2)


def test_no_arm_no_position(arm):
    assert np.isnan(arm.locate(np.zeros((1, *SIZE), np.uint8))).all()


def test_what_was_learned_is_kept(arm, tmp_path):
    arm.save(tmp_path / 'arm.npz')
    labels = draw(START)[None]
    np.testing.assert_array_equal(ArmAppearance.load(tmp_path / 'arm.npz').locate(labels), arm.locate(labels))


def test_too_few_poses_are_refused():
    with pytest.raises(ValueError, match=f'more than {COMPONENTS} masks'):
        ArmAppearance.fit(np.zeros((10, *SIZE), bool), np.zeros((10, 3)))


def test_what_the_plan_lifts_is_grasped_from_above_and_carried_its_way(arm):
    motion = plan_hand_motion(observe(START, BOX), plan(*LIFT, carried_from=2), arm)
    assert motion.kind == 'grasp', motion
    above, down, close, *way = motion.waypoints
    assert (above.grip, down.grip, close.grip) == (-1, -1, 1)
    assert close.steps > 0
    np.testing.assert_allclose(down.position[:2], GRASP[:2], atol=0.015)
    assert above.position[2] > down.position[2] + LIFTED
    assert all(point.grip == 1 for point in way)
    np.testing.assert_allclose(way[-1].position, GOAL, atol=0.035)


def test_what_the_plan_does_not_lift_is_pushed_with_closed_fingers_beyond_its_end(arm):
    beside = np.add(GRASP, (0, -0.07, 0))
    labels = plan(START, beside, np.add(beside, (0, 0.15, 0)), carried_from=1)
    motion = plan_hand_motion(observe(START, BOX), labels, arm)
    assert motion.kind == 'push', motion
    assert all(point.grip == 1 for point in motion.waypoints)
    np.testing.assert_allclose(motion.waypoints[-1].position[[0, 2]], beside[[0, 2]], atol=0.03)
    assert motion.waypoints[-1].position[1] > beside[1] + 0.15


class Beside:
    """An arm whose hand is told `shift` metres beside where it is, as in masks that a model has drawn."""

    def __init__(self, arm: ArmAppearance, shift):
        self.arm, self.shift = arm, shift

    def locate(self, labels: np.ndarray) -> np.ndarray:
        return self.arm.locate(labels) + self.shift


@pytest.mark.parametrize(
    'shift', [(0.07, 0, 0), (-0.07, 0, 0), (0, 0.14, 0), (0, 0, 0.07), (0.06, 0.06, 0.04)]
)
def test_a_push_told_beside_the_object_is_brought_behind_it(arm, shift):
    """The plan pushes along y: x and z of the finger tips must be the box's where they pass it."""
    behind = np.add(GRASP, (0, -0.07, 0))
    labels = plan(START, behind, np.add(behind, (0, 0.15, 0)), carried_from=1)
    motion = plan_hand_motion(observe(START, BOX), labels, Beside(arm, shift))
    assert motion.kind == 'push', motion
    tips = np.array([point.position for point in motion.waypoints]) + GRIPPER.tip
    push = tips[tips[:, 1].argmin() :]
    assert push[0, 1] < BOX[1] - HALF  # behind it
    assert push[-1, 1] > BOX[1] + HALF
    passing = push[np.abs(push[:, 1] - BOX[1]).argmin()]
    assert (np.abs(passing - BOX)[[0, 2]] < HALF + 0.01).all()


def test_a_push_that_is_behind_its_object_goes_its_own_way(arm):
    behind = np.add(GRASP, (0, -0.07, 0))
    labels = plan(START, behind, np.add(behind, (0, 0.15, 0)), carried_from=1)
    seen = observe(START, BOX)
    hands = hand_path(arm.locate(labels), START)
    way = [point.position for point in plan_hand_motion(seen, labels, arm).waypoints]
    np.testing.assert_allclose(way[:-1], hands[1 : len(way)], atol=0.015)


def test_what_slides_along_between_the_fingers_is_held(arm):
    far = np.add(GRASP, (-0.15, 0.1, 0))
    motion = plan_hand_motion(observe(START, BOX), plan(START, GRASP, far, carried_from=1), arm)
    assert motion.kind == 'grasp', motion
    np.testing.assert_allclose(motion.waypoints[1].position[:2], GRASP[:2], atol=0.01)
    heights = [point.position[2] for point in motion.waypoints[3:]]
    np.testing.assert_allclose(heights, motion.waypoints[2].position[2], atol=0.02)  # not lifted
    np.testing.assert_allclose(motion.waypoints[-1].position[:2], far[:2], atol=0.02)


def test_a_touch_in_the_first_frame_alone_is_a_push(arm):
    touching = np.add(GRASP, (0, -0.03, 0))
    labels = np.array([draw(touching, BOX), *(draw(np.add(START, (0, 0, 0.01 * t)), BOX) for t in range(7))])
    motion = plan_hand_motion(observe(touching, BOX), labels, arm)
    assert motion.kind == 'push', motion
    assert motion.waypoints


def test_an_arm_that_rises_alone_carries_nothing(arm):
    labels = plan(START, GRASP, np.add(GRASP, (0, 0, 0.15)))
    assert plan_hand_motion(observe(START, BOX), labels, arm).kind != 'grasp'


def test_an_object_in_the_hand_is_carried_on_from_where_it_is(arm):
    hand, box = np.add(GRASP, (0, 0, 0.1)), np.add(BOX, (0, 0, 0.1))
    labels = plan(hand, np.add(hand, (-0.12, 0.1, 0.05)), box=box, carried_from=0)
    motion = plan_hand_motion(observe(hand, box), labels, arm, holding=True)
    assert motion.kind == 'carry'
    np.testing.assert_allclose(motion.waypoints[-1].position, np.add(hand, (-0.12, 0.1, 0.05)), atol=0.035)


def test_an_object_that_the_plan_leaves_where_it_is_is_let_go(arm):
    hand, box = np.add(GRASP, (0, 0, 0.1)), np.add(BOX, (0, 0, 0.1))
    motion = plan_hand_motion(
        observe(hand, box), plan(hand, hand, box=box, carried_from=0), arm, holding=True
    )
    assert motion.kind == 'place'
    assert motion.waypoints[-1].grip == -1


def test_without_an_arm_in_the_plan_the_object_is_pushed_from_behind_its_motion(arm):
    seen = observe(START, BOX)
    boxes = np.linspace(BOX, np.add(BOX, (-0.12, 0, 0)), 8)
    labels = np.array([draw(START, box) for box in boxes])
    labels[1:][labels[1:] == lb.ACTOR] = lb.BACKGROUND
    motion = plan_hand_motion(seen, labels, arm)
    assert motion.kind == 'push'
    assert motion.waypoints[1].position[0] > BOX[0] + 0.04
    assert motion.waypoints[-1].position[0] < BOX[0] - 0.1


@pytest.mark.parametrize('lost', ['object', 'contact', 'depth'])
def test_a_plan_that_shows_nothing_to_do_says_what_is_missing(arm, lost):
    seen, labels = observe(START, BOX), plan(START, START)
    if lost == 'object':
        labels = np.where(labels == lb.OBJECT, lb.BACKGROUND, labels)
    if lost == 'depth':
        seen.depth[:] = 0
    motion = plan_hand_motion(seen, labels, arm)
    assert (motion.kind, motion.waypoints) == ('none', [])
    assert lost in motion.reason


def test_random_motion_takes_the_object_and_stays_within_reach():
    motion = random_hand_motion(observe(START, BOX), np.random.default_rng(0))
    np.testing.assert_allclose(motion.waypoints[1].position[:2], BOX[:2], atol=0.02)
    goal = motion.waypoints[-1].position
    np.testing.assert_array_equal(goal, np.clip(goal, GRIPPER.reach_low, GRIPPER.reach_high))


class Cart:
    """A robot without arm: it goes where it is told, unless it is blocked."""

    success, opening = False, 0.3

    def __init__(self, blocked=False):
        self.hand, self.blocked, self.looked = START.copy(), blocked, 0

    def observe(self, colour=False):
        self.looked += 1
        return observe(self.hand, BOX)

    def step(self, velocity, grip):
        if not self.blocked:
            self.hand = self.hand + 0.01 * velocity


def test_the_controller_goes_from_waypoint_to_waypoint():
    cart = Cart()
    way = [Waypoint(np.add(START, (0.1, 0, 0)), 1.0), Waypoint(np.add(START, (0.1, 0.1, 0)), -1.0, steps=3)]
    controller = HandController(HandMotion('push', way, ''))
    for _ in range(60):
        velocity, grip = controller.command(cart.hand)
        cart.step(velocity, grip)
    assert controller.done
    np.testing.assert_allclose(cart.hand, way[-1].position, atol=0.015)


def test_a_hand_that_does_not_move_is_stuck():
    controller = HandController(HandMotion('push', [Waypoint(START + 1, 1.0)], ''))
    for _ in range(STUCK_STEPS):
        controller.command(START)
    assert not controller.stuck
    controller.command(START)
    assert controller.stuck


def test_a_hand_that_trembles_is_stuck_later():
    controller = HandController(HandMotion('push', [Waypoint(START + 1, 1.0)], ''))
    for step in range(FRUITLESS_STEPS + 1):
        assert not controller.stuck
        controller.command(START + 0.005 * (step % 2))
    controller.command(START)
    controller.command(START)
    assert controller.stuck


def test_a_stuck_hand_plans_again_at_most_five_times(arm):
    cart = Cart(blocked=True)
    labels = plan(*LIFT, carried_from=2)
    rollout = execute(cart, Planned(lambda _seen: [labels], arm), max_steps=150)
    assert (rollout.success, rollout.steps) == (False, 150)
    assert len(rollout.motions) == cart.looked == 1 + MAX_REPLANS == 6
    assert rollout.started[1] == STUCK_STEPS + 1


def test_the_plan_is_chosen_whose_hand_meets_the_object_in_space(arm):
    """Along the camera's ray the hand covers the same pixels of the box, and touches in the picture alone."""
    seen = observe(START, BOX)
    ray = CAMERA.cam_to_world[:3, 3] - GRASP
    before = GRASP + 0.12 * ray / np.linalg.norm(ray)
    apart = np.add(GRASP, (-0.25, 0.1, 0.1))
    plans = [plan(START, before, before), plan(START, apart, apart), plan(*LIFT, carried_from=2)]
    assert choose_plan(seen, plans, arm) == 2
    assert choose_plan(seen, plans[::-1], arm) == 0
    assert choose_plan(seen, plans[:2], arm) == 0  # one that does not even touch in the picture is worse
    assert choose_plan(seen, plans, None) == 0  # nothing tells them apart
    beside = np.add(GRASP, (-0.12, 0, 0))  # a hand that begins near the object, and goes away
    up = 0.3 * ray / np.linalg.norm(ray)
    away, touching = plan(beside, apart, apart), plan(beside, beside + up, GRASP + up, GRASP + up)
    assert choose_plan(observe(beside, BOX), [away, touching], arm) == 1
    policy = Planned(lambda _seen: plans, arm)
    assert policy(seen, holding=False).kind == 'grasp'
    np.testing.assert_array_equal(policy.labels, plans[2])


def test_without_a_plan_the_hand_goes_up_to_look_again(arm):
    rollout = execute(Cart(), Planned(lambda _seen: [], arm), max_steps=20)
    assert [(motion.kind, motion.reason) for motion in rollout.motions] == [('none', 'there is no plan')]
    assert rollout.motions[0].waypoints[0].position[2] == GRIPPER.reach_high[2]


def test_what_is_held_stays_held_while_the_hand_looks_again():
    held = []

    class Policy:
        gripper, colour = GRIPPER, False
        kinds = iter(('grasp', 'none', 'carry', 'none', 'none', 'none'))

        def __call__(self, observation, holding):
            held.append(holding)
            kind = next(self.kinds)
            here = [Waypoint(observation.hand, 1.0)]
            return HandMotion(kind, [] if kind == 'none' else here, '')

    cart = Cart()
    cart.opening = 0.6  # something is between the fingers
    execute(cart, Policy(), max_steps=120)
    assert held[:3] == [False, True, True]


@pytest.fixture(scope='module')
def benchmark():
    pytest.importorskip('metaworld')
    import execute_metaworld

    return execute_metaworld


@pytest.fixture(scope='module')
def rows(benchmark, tmp_path_factory) -> Path:
    """One real episode of the oracle, with a robot that has looked at itself only shortly."""
    out = tmp_path_factory.mktemp('rows')
    benchmark.run(arguments(out, 'oracle'))
    return out


def arguments(out, row, episodes=1):
    options = {'tasks': ['handle-press'], 'cameras': ['corner2'], 'processes': 1, 'videos': 0}
    options |= {'first': 0, 'poses': 100, 'model': '', 'steps': 4, 'samples': 1}
    return argparse.Namespace(out=out, row=row, episodes=episodes, **options)


def test_true_plans_solve_a_real_episode(rows):
    (line,) = [json.loads(text) for text in (rows / 'oracle.jsonl').read_text().splitlines()]
    assert line['success'], line
    assert line['cause'] is None
    assert [path.name for path in rows.glob('*.npz')] == ['arm_corner2.npz']


def test_a_stopped_benchmark_goes_on(benchmark, rows):
    benchmark.run(arguments(rows, 'random'))
    file = rows / 'random.jsonl'
    first = file.read_text()
    file.write_text(first + '{"task": "handle-pr')  # killed while it wrote
    benchmark.run(arguments(rows, 'random', episodes=2))
    lines = file.read_text().splitlines()
    assert lines[0] + '\n' == first
    assert [json.loads(line)['seed'] - json.loads(lines[0])['seed'] for line in lines] == [0, 1]


@pytest.mark.parametrize('row', ['goal', 'video', 'one_stage'])
def test_plans_of_a_model_are_played_and_filmed(benchmark, rows, tmp_path, row):
    """Random weights, which plan nonsense: an episode is played to its end all the same."""
    pipeline = build_tiny_pipeline()
    if row == 'one_stage':
        pipeline.register_modules(trajectory_unet=None)
        pipeline.register_to_config(video_masks='none')
    pipeline.save_pretrained(tmp_path / 'model')
    args = arguments(rows, row)
    args.model, args.samples, args.videos = str(tmp_path / 'model'), 2, 1
    args.first, args.tasks = 3, ['hammer']  # which no chance solves
    benchmark.run(args)
    (line,) = [json.loads(text) for text in (rows / f'{row}.jsonl').read_text().splitlines()]
    assert (line['success'], line['steps'], line['samples']) == (False, 500, 2)
    assert line['cause'] is not None
    assert 1 <= len(line['plans']) <= MAX_REPLANS + 1
    frames = iio.imread(rows / 'videos' / f'{row}_hammer_corner2_3_failed.mp4', plugin='pyav')
    assert frames.shape[1:] == (240, 640, 3)
    assert len(frames) == 500 // benchmark.VIDEO_EVERY


def test_episodes_of_another_model_are_refused(benchmark, tmp_path):
    kept = {'task': 'handle-press', 'camera': 'corner2', 'seed': benchmark.FIRST_SEED}
    file = tmp_path / 'trajectory.jsonl'
    (tmp_path / 'arm_corner2.npz').touch()
    args = arguments(tmp_path, 'trajectory')
    used = benchmark.model_used('', 4, 1)
    file.write_text(json.dumps(kept | used) + '\n')
    benchmark.run(args)
    for steps, samples in ((5, 1), (4, 6)):
        args.steps, args.samples = steps, samples
        with pytest.raises(ValueError, match=f"'denoising_steps': {steps}, 'samples': {samples}}}: give"):
            benchmark.run(args)
    args.steps, args.samples = 4, 1
    for line in (kept, kept | used | {'weights': '0' * 16}):  # of other weights, or nobody knows of which
        file.write_text(json.dumps(line) + '\n')
        with pytest.raises(ValueError, match=f"asked for is {{'weights': '{used['weights']}'"):
            benchmark.run(args)


def test_the_table_leaves_a_line_that_is_being_written(benchmark, rows, tmp_path):
    text = (rows / 'oracle.jsonl').read_text() + '{"task": "handle-pr'
    (tmp_path / 'oracle.jsonl').write_text(text)
    benchmark.write_table(tmp_path, tmp_path / 'table')
    assert (tmp_path / 'oracle.jsonl').read_text() == text


def test_a_row_stopped_mid_grid_without_success_has_a_table(benchmark, tmp_path):
    line = {'seed': 0, 'success': False, 'steps': 500, 'plans': []}
    line |= {'expert': True, 'seconds': 1, 'cause': 'no plan', 'moved': [0, 0, 0], 'wanted': [0, 0, 0.1]}
    cells = [('door-open', 'corner'), ('door-open', 'corner2'), ('handle-press', 'corner')]
    lines = [json.dumps({'task': task, 'camera': camera, **line}) for task, camera in cells]
    (tmp_path / 'random.jsonl').write_text('\n'.join(lines) + '\n')
    benchmark.write_table(tmp_path, tmp_path / 'table')
    text = (tmp_path / 'table.json').read_text()
    found = json.loads(text)['rows']['random']
    assert found['mean'] == 0
    assert found['cm off'] == pytest.approx(10)
    assert set(found['cells']['handle-press']) == {'corner'}
    assert 'NaN' not in text


def test_the_table_says_success_and_causes(benchmark, rows, tmp_path):
    benchmark.write_table(rows, tmp_path / 'table')
    found = json.loads((tmp_path / 'table.json').read_text())['rows']['oracle']
    assert found['mean'] == 100
    assert found['all']['episodes'] == 1
    assert (tmp_path / 'table' / 'oracle.jsonl').read_text() == (rows / 'oracle.jsonl').read_text()
    assert '| handle-press | 100 [21, 100] |' in (tmp_path / 'table.md').read_text()
    assert (tmp_path / 'table.png').stat().st_size > 1000


@pytest.mark.parametrize(
    ('moved', 'highest', 'touched', 'kinds', 'cause'),
    [
        ((0, 0, 0), 0, False, ['none'], 'no plan'),
        ((0, 0, 0), 0, False, ['push'], 'never touched'),
        ((0, 0, 0), 0, True, ['push'], 'touched, not moved'),
        ((0.05, 0, 0), 0.1, True, ['grasp'], 'grasp slipped'),
        ((-0.05, 0, 0), 0, True, ['push'], 'wrong direction'),
        ((0.05, 0, 0), 0, True, ['push'], 'moved, not there'),
    ],
)
def test_failures_are_told_apart(benchmark, moved, highest, touched, kinds, cause):
    start = np.zeros(3)
    wanted = np.array((0.2, 0, 0))
    assert benchmark.cause_of_failure(start, np.array(moved), wanted, highest, touched, kinds) == cause
