"""Simulated scenes: the right part carries the object label, the camera is calibrated, everything repeats."""

import json

import numpy as np
import pytest

from mask2iv_ros.data import metaworld
from mask2iv_ros.data.lerobot import read_clips
from mask2iv_ros.data.metaworld import TASKS, record_clip, record_episode, simulate
from mask2iv_ros.labels import ACTOR, OBJECT

pytest.importorskip('metaworld')

SIZE = {'height': 96, 'width': 128}


@pytest.fixture(scope='module', params=TASKS)
def clip(request):
    return record_clip(request.param, 1, **SIZE)


def test_expert_solves_every_task_before_the_camera(clip):
    assert clip.source['success']
    assert clip.frames.shape == (16, 96, 128, 3)
    assert clip.task == TASKS[clip.source['task']].text
    assert set(np.unique(clip.labels)) == {0, OBJECT, ACTOR}


def test_object_and_actor_are_well_visible(clip):
    pixels = (clip.labels == OBJECT).sum(axis=(1, 2)) / clip.labels[0].size
    assert pixels[0] > 0.005
    assert (pixels > 0.001).all()
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


def test_the_camera_matrix_and_depth_put_hand_and_table_where_they_are(clip):
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


@pytest.mark.parametrize('task', TASKS)
def test_the_object_is_what_the_task_moves_and_nothing_fixed(task):
    scene = metaworld._scene(task, **SIZE)
    model, data = scene.model, scene.data
    states, *_ = scene.run_expert(0, np.zeros(3))
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
    assert names <= {'mocap', 'nail_link'}  # the mocap marker is invisible; the hammer drives the nail


def test_a_clip_depends_on_task_and_seed_alone():
    first = record_clip('drawer-open', 7, **SIZE)
    record_clip('drawer-open', 8, **SIZE)
    again = record_clip('drawer-open', 7, **SIZE)
    other = record_clip('drawer-open', 9, **SIZE)
    for name in ('frames', 'labels', 'depth', 'actions', 'states'):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    assert (first.labels != other.labels).any()


def test_an_expert_that_fails_gives_way_to_the_next_seed():
    assert not record_clip('door-open', 2, **SIZE, num_frames=2).source['success']
    source = record_episode('door-open', 'train', 2, **SIZE, num_frames=2).source
    assert source['success']
    assert source['seed'] == 2 + metaworld.RETRY_STRIDE


def test_splits_share_no_seed():
    last = metaworld.FIRST_SEED['train'] + (metaworld.MAX_RETRIES + 1) * metaworld.RETRY_STRIDE - 1
    assert last < metaworld.FIRST_SEED['test']


def test_simulate_makes_goes_on_with_and_repeats_a_dataset(tmp_path):
    options = {'split': 'test', 'tasks': ('faucet-open', 'hammer'), 'num_frames': 4, **SIZE}
    short = simulate(tmp_path / 'a', episodes=1, workers=1, **options)
    longer = simulate(tmp_path / 'a', episodes=2, workers=1, **options)
    at_once = simulate(tmp_path / 'b', episodes=2, workers=2, **options)
    assert longer == at_once == json.loads((tmp_path / 'a/test.json').read_text())
    assert longer['episodes'][:2] == short['episodes']
    assert longer['counts'] == {'faucet-open': 2, 'hammer': 2}
    clips = list(read_clips(tmp_path / 'a/test'))
    assert [clip.source['task'] for clip in clips] == ['faucet-open', 'hammer'] * 2
    expected = record_episode('hammer', 'test', 1, num_frames=4, **SIZE)
    np.testing.assert_array_equal(clips[3].labels, expected.labels)
    assert clips[3].source == expected.source
    with pytest.raises(ValueError, match='hammer 0 belongs'):
        simulate(tmp_path / 'a', episodes=2, workers=1, **{**options, 'tasks': ('hammer', 'faucet-open')})


@pytest.mark.parametrize('wrong', [{'split': 'valid'}, {'tasks': ('fold-shirt',)}, {'episodes': 0}])
def test_wrong_requests_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=r'unknown (split|task)|episodes: expected'):
        simulate(tmp_path, **wrong)
    with pytest.raises(ValueError, match="unknown task 'fold-shirt'; known: door-open"):
        record_clip('fold-shirt', 0)
