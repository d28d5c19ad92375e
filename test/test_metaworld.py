"""Simulated scenes: the right part carries the object label, cameras are calibrated, everything repeats."""

import json

import numpy as np
import pytest

from mask2iv_ros.data import metaworld
from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.metaworld import Scene, record_clip, record_clips, record_episode, replay, simulate
from mask2iv_ros.data.metaworld_tasks import (
    BENCHMARK_TASKS,
    FIXED_VIEWS,
    GOAL_TASKS,
    HELD_OUT_CAMERA,
    HELD_OUT_TASKS,
    SIM8_TASKS,
    SIZES,
    TASKS,
    VARIED_VIEW,
    VARIED_VIEWS,
    VIEWS,
)
from mask2iv_ros.labels import ACTOR, OBJECT

pytest.importorskip('metaworld')

SIZE = {'height': 96, 'width': 128}
CAMERAS = (*VIEWS, *FIXED_VIEWS)

#: What else moves: a nail, a thermos flask (a body without a name), and the button of the coffee machine.
MOVES_ALONG = {'hammer': {'nail_link'}, 'stick-push': {''}, 'stick-pull': {''}, 'coffee-pull': {'cmbutton'}}


@pytest.fixture(scope='module', params=['door-open', 'hammer', 'faucet-close', 'push'])
def clip(request):
    return record_clip(request.param, 1, **SIZE)


@pytest.fixture(scope='module')
def views():
    return record_clips('drawer-open', 5, CAMERAS, **SIZE, num_frames=3)


def test_expert_solves_the_task_before_the_camera(clip):
    assert clip.source['success']
    assert clip.frames.shape == (16, 96, 128, 3)
    assert clip.task == TASKS[clip.source['task']].text
    assert set(np.unique(clip.labels)) == {0, OBJECT, ACTOR}


def test_object_and_actor_are_well_visible(clip):
    assert (clip.labels[0] == OBJECT).mean() > 0.003
    assert ((clip.labels == ACTOR).mean(axis=(1, 2)) > 0.005).mean() > 0.8


def test_the_object_label_moves_in_the_picture(clip):
    first, last = clip.labels[0] == OBJECT, clip.labels[-1] == OBJECT
    assert (first & last).sum() < 0.75 * (first | last).sum()


def test_hand_follows_the_commands(clip):
    assert clip.actions.dtype == clip.states.dtype == np.float32
    np.testing.assert_allclose(clip.actions[:-1, :3], clip.states[1:, :3], atol=0.12)
    assert np.abs(np.diff(clip.states[:, :3], axis=0)).max() > 0.01


def test_times_are_those_of_the_simulation(clip):
    times = clip.source['frame_times']
    assert times[0] == 0
    np.testing.assert_allclose(np.diff(times), times[-1] / 15, atol=0.0126)  # one control step is 12.5 ms


@pytest.mark.parametrize('task', ['drawer-open', 'hammer', 'faucet-open'])
def test_recorded_actions_solve_the_task_again(task):
    clip = record_clip(task, 1, 32, 48, stride=4)
    assert clip.fps == 20
    np.testing.assert_allclose(clip.source['frame_times'], np.arange(len(clip)) / 20)
    assert replay(clip)
    assert not replay(clip, clip.actions[: len(clip) // 3])
    shifted = clip.actions + np.float32((0.15, 0, 0.1, 0))
    assert not replay(clip, shifted)


def test_a_rate_must_be_whole_and_spread_frames_have_no_executable_actions():
    with pytest.raises(ValueError, match=r'stride: expected one of 1, 2, 4, .* got 3'):
        record_clip('push', 1, 32, 48, stride=3)
    with pytest.raises(ValueError, match='recorded with a stride'):
        replay(record_clip('push', 1, 32, 48, num_frames=2))


def test_cameras_that_do_not_move_see_every_seed_from_the_same_place():
    poses = [
        record_clip('push', seed, 32, 48, num_frames=2, camera_jitter=0).camera.cam_to_world
        for seed in (1, 2)
    ]
    np.testing.assert_array_equal(*poses)


def test_the_hand_comes_from_afar_and_touches_the_object(clip):
    assert not clip.contact[0]
    assert clip.contact.any()


def test_the_goal_is_the_whole_object_where_it_ends_without_the_arm(clip):
    goal, last = clip.goal == OBJECT, clip.labels[-1]
    assert set(np.unique(clip.goal)) == {0, OBJECT}
    assert (goal | (last != OBJECT)).mean() > 0.995  # closing seams may differ at the rim of the arm
    assert (goal & (last == ACTOR)).any()  # the hand is in front of it
    assert not (goal & (last == 0)).sum() > 20


def test_what_no_camera_sees_can_be_measured_in_each_frame():
    seen = []

    def look(scene, poses):
        seen.append((scene.object_centre(), tuple(poses)))

    clip = record_clip('drawer-open', 5, 24, 32, num_frames=3, on_frame=look)
    assert [names for _, names in seen] == [tuple(VIEWS)] * 3
    np.testing.assert_array_equal(seen[-1][0], clip.goal_point)
    assert np.linalg.norm(seen[-1][0] - seen[0][0]) > 0.1


def project(point, camera):
    inside = np.linalg.inv(camera.cam_to_world) @ np.append(point, 1)
    return (camera.intrinsics @ (inside[:3] / inside[2]))[:2]


def test_the_goal_point_is_where_the_goal_mask_is_in_every_camera(views):
    for clip in views.values():
        ys, xs = np.nonzero(clip.goal)
        x, y = project(clip.goal_point, clip.camera)
        assert xs.min() < x < xs.max()
        assert ys.min() < y < ys.max()


@pytest.mark.parametrize('name', CAMERAS)
def test_the_camera_matrix_and_depth_put_hand_and_table_where_they_are(views, name):
    clip = views[name]
    height, width = clip.labels.shape[1:]
    pixels = np.stack((*np.meshgrid(np.arange(width), np.arange(height)), np.ones((height, width))))
    rays = np.einsum('ij,jhw->hwi', np.linalg.inv(clip.camera.intrinsics), pixels)
    pose = clip.camera.cam_to_world
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
    points = (rays * clip.depth[0, ..., None]) @ pose[:3, :3].T + pose[:3, 3]
    on_table = (np.abs(points[..., 0]) < 0.3) & (points[..., 1] > 0.45) & (points[..., 1] < 0.6)
    on_table &= clip.labels[0] == 0
    assert np.median(np.abs(points[on_table][:, 2])) < 0.003
    hand = points[clip.labels[0] == ACTOR] - clip.states[0, :3]
    assert np.linalg.norm(hand, axis=1).min() < 0.06


def test_no_camera_is_upside_down(views):
    for name, clip in views.items():
        right, down, _ = clip.camera.cam_to_world[:3, :3].T
        assert abs(right[2]) < (1e-9 if name in VIEWS else 0.15)
        assert down[2] < -0.5


def test_a_varied_camera_stands_where_another_one_does():
    places = [metaworld.camera_place(VARIED_VIEW, seed) for seed in range(60)]
    assert set(places) == set(VARIED_VIEWS)
    for place in ('front', 'mw_corner2'):  # one that seeds move, and one that they do not
        seed = places.index(place)
        clips = record_clips('push', seed, (VARIED_VIEW, place), **SIZE, num_frames=2)
        varied, there = clips.values()
        np.testing.assert_array_equal(varied.frames, there.frames)
        np.testing.assert_array_equal(varied.camera.cam_to_world, there.camera.cam_to_world)


def test_cameras_share_one_run_and_do_not_depend_on_each_other(views):
    assert tuple(views) == CAMERAS
    alone = record_clips('drawer-open', 5, ('corner3',), **SIZE, num_frames=3)['corner3']
    for name in ('frames', 'labels', 'depth', 'goal', 'actions', 'states', 'contact', 'goal_point'):
        np.testing.assert_array_equal(getattr(views['corner3'], name), getattr(alone, name), err_msg=name)
    poses = [clip.camera.cam_to_world for clip in views.values()]
    assert not any(np.allclose(a, b, atol=0.05) for i, a in enumerate(poses) for b in poses[:i])
    assert all(clip.source == alone.source for clip in views.values())


def test_half_of_the_late_clips_begin_on_the_way():
    begins = []
    for seed in range(8):
        whole, late = (
            record_clip('button-press', seed, **SIZE, num_frames=2, late_starts=is_late)
            for is_late in (False, True)
        )
        begins.append(late.source['frame_times'][0])
        assert whole.source['frame_times'][0] == 0
        assert late.source['frame_times'][1] == whole.source['frame_times'][1]
        assert begins[-1] <= 0.7 * whole.source['frame_times'][1]
        assert (begins[-1] > 0) == (not np.array_equal(late.frames[0], whole.frames[0]))
    assert 2 <= sum(begin > 0 for begin in begins) <= 6


def test_the_default_is_what_the_embedded_model_was_trained_on():
    """Numbers of the dataset that trained it; other draws for camera or hand would change them."""
    clip = record_clip('door-open', 0, **SIZE, num_frames=2)
    np.testing.assert_allclose(
        clip.camera.cam_to_world[:3, 3], (0.50804991, 0.08713571, 0.62481368), atol=1e-7
    )
    np.testing.assert_allclose(clip.states[0, :3], (0.0281453, 0.6045216, 0.2132056), atol=1e-4)
    assert clip.task == 'open the door'


@pytest.mark.parametrize('task', TASKS)
def test_the_object_is_what_the_task_moves_and_nothing_fixed(task):
    scene = Scene(task, 60, 80)
    model, data = scene.model, scene.data
    for seed in range(4):
        states, *_, success = scene.run_expert(seed, np.zeros(3))
        if success is not None:
            break
    poses = []
    for state in (states[0], states[-1]):
        scene.restore(state)
        poses.append(np.hstack((data.xpos, data.xmat)))
    moved = np.abs(poses[1] - poses[0]).max(axis=1) > 0.02
    object_bodies = set(model.geom_bodyid[scene.is_object])
    actor_bodies = set(model.geom_bodyid[scene.is_actor])
    assert object_bodies
    assert all(moved[list(object_bodies)])
    assert not object_bodies & actor_bodies
    rest = set(np.flatnonzero(moved)) - object_bodies - actor_bodies
    names = {model.body(body).name for body in rest if model.body_geomnum[body]}
    assert names - {'mocap'} <= MOVES_ALONG.get(task, set())  # the mocap marker is invisible
    drawn_actor = scene.is_actor & (model.geom_group == metaworld.ACTOR_GROUP)
    np.testing.assert_array_equal(model.geom_group == metaworld.ACTOR_GROUP, drawn_actor)


def test_every_meta_world_task_with_an_object_is_there():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    known = {name.removesuffix('-v3') for name in ALL_V3_ENVIRONMENTS}
    assert set(BENCHMARK_TASKS) == known - {'reach', 'reach-wall'}
    for task in BENCHMARK_TASKS:
        assert 3 <= len(set(TASKS[task].texts)) == len(TASKS[task].texts) <= 6


@pytest.mark.parametrize('task', GOAL_TASKS)
def test_a_goal_tasks_object_ends_wherever_the_seed_says(task):
    clips = [record_clip(task, seed, **SIZE, num_frames=2) for seed in range(4)]
    ends = np.stack([clip.goal_point for clip in clips])
    assert all(clip.source['success'] for clip in clips)
    assert (np.ptp(ends[:, :2], axis=0) > 0.1).all()  # Meta-World's own push has a strip of 0.2 m by 0.1 m
    (low, high), inside = TASKS[task].placements, 0.1  # grasped, it is carried above the table
    assert (ends > np.array(low[3:]) - inside).all()
    assert (ends < np.array(high[3:]) + inside).all()


def test_tasks_are_told_apart_by_their_texts():
    texts = [text for task in TASKS.values() for text in task.texts]
    assert len(set(texts)) == len(texts)


def test_a_clip_depends_on_task_and_seed_alone():
    options = {**SIZE, 'num_frames': 3}
    first = record_clip('drawer-open', 7, **options)
    record_clip('drawer-open', 8, **options, variation=True)
    again = record_clip('drawer-open', 7, **options)
    other = record_clip('drawer-open', 9, **options)
    for name in ('frames', 'labels', 'depth', 'actions', 'states'):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    assert (first.labels != other.labels).any()


def test_open_scenes_do_not_disturb_each_other():
    pose = metaworld._draw_camera(np.random.default_rng(0), TASKS['push'], VIEWS['front'], 1)

    def picture(scene):
        scene.restore(scene.run_expert(0, np.zeros(3))[0][0])
        return scene.render(pose, 45.0)[0]

    first = Scene('push', 96, 128)
    alone = picture(first)
    second = Scene('hammer', 120, 160)
    picture(second)
    np.testing.assert_array_equal(picture(first), alone)
    del second  # frees its textures and meshes, and no others
    np.testing.assert_array_equal(picture(first), alone)


def test_variation_changes_the_look_and_not_what_happens():
    plain, varied, again, other = (
        record_clip('push', seed, **SIZE, num_frames=2, variation=variation)
        for seed, variation in ((1, False), (1, True), (1, True), (3, True))
    )
    np.testing.assert_array_equal(plain.states, varied.states)
    np.testing.assert_array_equal(varied.frames, again.frames)
    assert abs(plain.frames.mean((0, 1, 2)) - varied.frames.mean((0, 1, 2))).max() > 3
    assert abs(other.frames.mean((0, 1, 2)) - varied.frames.mean((0, 1, 2))).max() > 3
    assert (varied.source['variation'], plain.source['variation']) == (True, False)


def test_variation_leaves_a_red_handle_reddish():
    clip = record_clip('hammer', 1, **SIZE, num_frames=2, variation=True)
    red, green, blue = clip.frames[0][clip.labels[0] == OBJECT].astype(int).T
    assert ((red > 2 * green) & (red > 2 * blue)).mean() > 0.2


def test_texts_are_drawn_from_the_seed_if_asked_for():
    texts = [
        record_clip('push', seed, 24, 32, num_frames=2, paraphrase=True).task for seed in (1, 2, 3, 4, 5, 1)
    ]
    assert texts[0] == texts[-1]
    assert 1 < len(set(texts)) <= len(TASKS['push'].texts)
    assert set(texts) <= set(TASKS['push'].texts)


def test_a_goal_that_the_scene_hides_is_shown_as_silhouette():
    clip = record_clip('pick-place-wall', 0, num_frames=2)
    assert not (clip.labels[-1] == OBJECT).any()  # behind the wall
    x, y = project(clip.goal_point, clip.camera)
    assert clip.goal[round(y), round(x)] == OBJECT
    np.testing.assert_array_equal(record_clip('pick-place-wall', 0, num_frames=2).goal, clip.goal)


def test_an_expert_that_fails_gives_way_to_the_next_seed():
    assert not record_clip('door-open', 2, **SIZE, num_frames=2).source['success']
    source = record_episode('door-open', 'train', 2, **SIZE, num_frames=2)['front'].source
    assert source['success']
    assert source['seed'] == 2 + metaworld.RETRY_STRIDE


def test_an_object_hidden_at_first_gives_way_to_the_next_seed():
    hidden = record_clip('door-lock', 2, **SIZE, num_frames=2)
    assert hidden.source['success']
    assert not (hidden.labels[0] == OBJECT).any()
    clip = record_episode('door-lock', 'train', 2, **SIZE, num_frames=2)['front']
    assert clip.source['seed'] > metaworld.RETRY_STRIDE
    assert (clip.labels[0] == OBJECT).mean() > metaworld.MIN_VISIBLE


def test_splits_share_no_seed():
    last = (metaworld.MAX_RETRIES + 1) * metaworld.RETRY_STRIDE - 1
    first = metaworld.FIRST_SEED
    assert first['train'] + last < first['test']
    assert first['test'] + last < first['test_tasks']
    assert first['test_camera'] == first['test']  # the same episodes from elsewhere


@pytest.mark.parametrize('size', SIZES)
def test_what_is_held_out_is_in_no_training_split(size):
    splits = SIZES[size]
    assert not set(splits['train'].tasks) & set(HELD_OUT_TASKS)
    assert HELD_OUT_CAMERA not in splits['train'].cameras
    assert splits['train'].tasks == splits['test'].tasks
    assert set(splits) <= set(metaworld.FIRST_SEED)
    if size not in ('sim8', 'execution', 'scenes', 'goals'):
        assert set(splits['test_tasks'].tasks) <= set(HELD_OUT_TASKS)
        assert splits['test_camera'].cameras == (HELD_OUT_CAMERA,)
    if size in ('small', 'full'):
        assert {*splits['train'].tasks, *splits['test_tasks'].tasks} == set(BENCHMARK_TASKS)


def test_sim8_is_the_default_of_simulate():
    assert SIZES['sim8']['train'].tasks == SIM8_TASKS
    assert (SIZES['sim8']['train'].episodes, SIZES['sim8']['test'].episodes) == (120, 10)


def test_simulate_makes_and_goes_on_with_a_dataset_of_several_cameras(tmp_path):
    options = {'split': 'test', 'tasks': ('faucet-open', 'hammer'), 'num_frames': 3, **SIZE}
    options['cameras'] = ('front', 'corner')
    short = simulate(tmp_path, episodes=1, workers=1, **options)
    longer = simulate(tmp_path, episodes=2, workers=2, **options)
    assert longer == json.loads((tmp_path / 'test.json').read_text())
    assert longer['episodes'][:2] == short['episodes']
    assert longer['counts'] == {'faucet-open': 2, 'hammer': 2}
    reader = open_dataset(tmp_path / 'test')
    assert set(reader.episode(0).masked) == {'front', 'corner'}
    for index, row in enumerate(longer['episodes']):
        task = ('faucet-open', 'hammer')[index % 2]
        expected = record_episode(task, 'test', index // 2, cameras=('front', 'corner'), num_frames=3, **SIZE)
        for camera, clip in expected.items():
            stored = reader.read(index, camera=camera)
            np.testing.assert_array_equal(stored.labels, clip.labels)
            np.testing.assert_array_equal(stored.goal, clip.goal)
            np.testing.assert_array_equal(stored.contact, clip.contact)
            np.testing.assert_array_equal(stored.goal_point, clip.goal_point)
            assert stored.source['sha256'] == clip.source['sha256'] == row['sha256']
    with pytest.raises(ValueError, match='hammer 0 belongs'):
        simulate(tmp_path, episodes=2, workers=1, **{**options, 'tasks': ('hammer', 'faucet-open')})
    for name, made, asked in (('variation', False, True), ('stride', None, 4)):
        with pytest.raises(ValueError, match=f'made with {name} {made}, asked for {asked}'):
            simulate(tmp_path, episodes=2, workers=1, **{name: asked}, **options)
    assert longer['stride'] is None


@pytest.mark.parametrize(
    'wrong', [{'split': 'valid'}, {'tasks': ('fold-shirt',)}, {'episodes': 0}, {'cameras': ('wrist',)}]
)
def test_wrong_requests_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=r'unknown (split|task|camera)|episodes: expected'):
        simulate(tmp_path, **wrong)
    with pytest.raises(ValueError, match="unknown task 'fold-shirt'; known: "):
        record_clip('fold-shirt', 0)
