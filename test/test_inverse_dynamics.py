"""Promises of inverse dynamics, and of new motion that gets its actions from it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mask2iv_ros.augmentation.new_motion import NewMotion, draw_goal
from mask2iv_ros.cli import main
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import Subset, open_dataset
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.models.inverse_dynamics import InverseDynamics, InverseDynamicsModel
from mask2iv_ros.training.inverse_dynamics import InverseDynamicsOptions, train_inverse_dynamics
from mask2iv_ros.weights import hash_weights
from tiny_model import build_tiny_pipeline

OPTIONS = InverseDynamicsOptions(steps=100, batch_size=16, chunk=3, sample_size=(32, 48))
SIZE = (64, 96)


def episode(seed: int, length: int = 14) -> InteractionClip:
    """An arm that goes where actions (pixels a frame) say, over a noisy table; states are where it is."""
    rng = np.random.default_rng(seed)
    actions = np.repeat(rng.uniform(-4, 4, (length // 4 + 1, 2)), 4, axis=0)[:length].astype(np.float32)
    place = rng.uniform((25, 20), (70, 45)).astype(np.float32)
    table = rng.integers(60, 120, (*SIZE, 3), dtype=np.uint8)
    frames, labels, states = [], [], []
    for action in actions:
        x, y = place.round().astype(int)
        frame, mask = table.copy(), np.zeros(SIZE, np.uint8)
        mask[40:50, 8:18] = 1
        mask[max(0, y - 10) : y + 10, max(0, x - 10) : x + 10] = 2
        frame[mask == 1], frame[mask == 2] = (200, 60, 40), (30, 30, 160)
        frames.append(frame)
        labels.append(mask)
        states.append(place)
        place = np.clip(place + action, (12, 12), (84, 52)).astype(np.float32)
    return InteractionClip(
        np.stack(frames), np.stack(labels), 'push', 10.0, actions=actions, states=np.stack(states)
    )


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """A real LeRobot dataset of 16 episodes from one camera."""
    path = tmp_path_factory.mktemp('data') / 'pushes'
    with LeRobotClipWriter(path) as writer:
        for seed in range(16):
            writer.add({'front': episode(seed)})
    return path


@pytest.fixture(scope='module')
def trained(dataset, tmp_path_factory):
    """Folder and report of a short training."""
    out = tmp_path_factory.mktemp('trained') / 'model'
    return out, train_inverse_dynamics(open_dataset(dataset), out, options=OPTIONS)


@pytest.fixture(scope='module')
def inverse_dynamics(trained):
    return InverseDynamics.load(trained[0])


@pytest.fixture(scope='module')
def tiny_pipeline():
    return build_tiny_pipeline()


def tiny_network(chunk=3, **config) -> InverseDynamicsModel:
    torch.manual_seed(0)
    numbers = {f'{name}_mean': [0.0, 0.0] for name in ('action', 'state')}
    numbers |= {f'{name}_std': [1.0, 1.0] for name in ('action', 'state')}
    numbers |= {'action_min': [-9.0, -9.0], 'action_max': [9.0, 9.0]}
    return InverseDynamicsModel(
        image_size=SIZE, chunk=chunk, sample_size=(32, 48), **{'fps': 10.0, **numbers, **config}
    )


def test_held_out_errors_beat_the_mean_and_holding_still(trained):
    _, report = trained
    for name in ('actions', 'states'):
        found = {
            kind: np.mean(e['mean absolute'])
            for kind, e in report['held out'][name].items()
            if kind != 'deviation'
        }
        assert found['both'] < 0.75 * min(found['mean'], found['hold']), (name, found)


def test_held_out_episodes_are_not_trained_on_and_the_report_is_kept(trained):
    out, report = trained
    assert report['episodes']['held out'] == [0, 10]
    assert not set(report['episodes']['training']) & {0, 10}
    assert report['frames'] == {'training': 14 * 14, 'held out': 2 * 14}
    assert json.loads((out / 'report.json').read_text()) == report


def test_a_loaded_model_answers_as_the_saved_one(tmp_path):
    before = InverseDynamics(tiny_network())
    before.model.save_pretrained(tmp_path)
    after = InverseDynamics.load(tmp_path)
    for one, other in zip(
        before.actions({'front': episode(1)}), after.actions({'front': episode(1)}), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize('length', [1, 2, 4, 9])
def test_answers_of_overlapping_pairs_are_averaged(length):
    told = InverseDynamics(tiny_network(chunk=3))
    # The answer of any pair: actions 1, 2, 3 and states 10, 20, 30, 40, in both dimensions.
    last = told.model.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1, 1, 2, 2, 3, 3, 10, 10, 20, 20, 30, 30, 40, 40.0]))
    actions, states = told.actions({'front': episode(0, length)})
    pairs = range(max(1, length - 3))
    for t in range(length):
        at = min(t, max(0, length - 2))  # the last frame repeats the action before
        assert actions[t] == pytest.approx(np.mean([at - s + 1 for s in pairs if 0 <= at - s < 3]))
        assert states[t] == pytest.approx(np.mean([10 * (t - s + 1) for s in pairs if 0 <= t - s < 4]))


def test_actions_stay_inside_what_the_dataset_has():
    told = InverseDynamics(tiny_network(action_mean=[50.0, -50.0]))
    actions, _ = told.actions({'front': episode(0)})
    assert (actions == (9, -9)).all()


def test_recorded_actions_and_states_are_not_looked_at(inverse_dynamics):
    clip = episode(3)
    bare = replace(clip, actions=None, states=None)
    assert np.array_equal(
        inverse_dynamics.actions({'front': clip})[0], inverse_dynamics.actions({'front': bare})[0]
    )


def test_inputs_say_what_is_looked_at(inverse_dynamics):
    clip = episode(3)
    other_masks = replace(clip, labels=np.zeros_like(clip.labels))
    other_frames = replace(clip, frames=np.zeros_like(clip.frames))

    def told(clip, inputs):
        return inverse_dynamics.actions({'front': clip}, inputs)[0]

    assert np.array_equal(told(clip, 'frames'), told(other_masks, 'frames'))
    assert np.array_equal(told(clip, 'masks'), told(other_frames, 'masks'))
    assert not np.array_equal(told(clip, 'both'), told(other_masks, 'both'))


@pytest.mark.parametrize(
    ('change', 'expected', 'got'),
    [
        (lambda c: {'side': c}, "cameras ('front',)", "('side',)"),
        (lambda c: {'front': replace(c, frames=c.frames[:, 4:], labels=c.labels[:, 4:])}, '64, 96', '60, 96'),
        (lambda c: {'front': replace(c, actions=c.actions[:, :1])}, 'numbers in actions 2', 'got 1'),
        (lambda c: {'front': replace(c, states=c.states[:, :1])}, 'numbers in states 2', 'got 1'),
        (lambda c: {'front': replace(c, fps=30.0)}, 'frames a second 10,', 'got 30'),
        (lambda c: {'front': replace(c, labels=None)}, 'expected masks', 'got none'),
    ],
)  # fmt: skip
def test_another_dataset_is_refused_with_what_came_and_what_was_expected(
    inverse_dynamics, change, expected, got
):
    with pytest.raises(ValueError, match='inverse dynamics') as refused:
        inverse_dynamics.actions(change(episode(3)))
    assert expected in str(refused.value)
    assert got in str(refused.value)


def test_rates_that_lerobot_stores_alike_are_alike(inverse_dynamics):
    clip = episode(3)
    inverse_dynamics.check({'front': replace(clip, fps=9.99)})
    fractional = InverseDynamics(tiny_network(fps=9.99))
    fractional.check({'front': clip})


def test_an_action_that_never_changes_has_no_spread():
    told = InverseDynamics(tiny_network(action_std=[2.0, 1.0], action_min=[-9.0, 5.0], action_max=[9.0, 5.0]))
    assert told.action_std.tolist() == [2.0, 0.0]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='train inverse-dynamics'):
        InverseDynamics.load(tmp_path)


def test_a_dataset_without_actions_is_refused(tmp_path):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for seed in range(2):
            writer.add({'front': replace(episode(seed), actions=None)})
    with pytest.raises(ValueError, match='episode_000000: has no actions'):
        train_inverse_dynamics(open_dataset(tmp_path / 'data'), tmp_path / 'out', options=OPTIONS)


def test_a_stopped_training_is_continued_to_the_same_weights(dataset, tmp_path):
    options = replace(OPTIONS, steps=4, batch_size=2)
    reader = Subset(open_dataset(dataset), range(3))
    assert train_inverse_dynamics(reader, tmp_path / 'two', options=options, max_minutes=0) is None
    for name in ('one', 'two'):
        train_inverse_dynamics(reader, tmp_path / name, options=options)
    one, two = (InverseDynamics.load(tmp_path / name).model.state_dict() for name in ('one', 'two'))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_command_trains_and_measures_generated_episodes(dataset, tmp_path, tiny_pipeline, capsys):
    tiny_pipeline.save_pretrained(tmp_path / 'model')
    arguments = ['--steps', 2, '--chunk', 3, '--size', 32, 48, '--generate', 1, '--model', tmp_path / 'model']
    out = tmp_path / 'out'
    assert main([str(a) for a in ('train', 'inverse-dynamics', dataset, out, *arguments)]) == 0
    report = json.loads((out / 'report.json').read_text())
    assert report['generated']['episodes'] == [0]
    assert len(report['generated']['actions']['frames']['mean absolute']) == 2
    assert '| both, generated |' in capsys.readouterr().out
    assert InverseDynamics.load(out).cameras == ('front',)
    assert main(['train', 'inverse-dynamics', str(dataset), str(out), '--model', 'x']) == 1
    assert '--model: expected --generate' in capsys.readouterr().err


def test_a_finished_training_is_not_done_again(dataset, trained, tmp_path):
    out, report = shutil.copytree(trained[0], tmp_path / 'out'), json.loads(json.dumps(trained[1]))
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert train_inverse_dynamics(open_dataset(dataset), out, options=OPTIONS) == report
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    weights = hash_weights(out)
    (out / 'report.json').write_text('{}')
    shutil.rmtree(out / 'run')
    assert hash_weights(out) == weights  # whatever lies beside them


# --- new motion


def test_new_motion_keeps_the_beginning_and_infers_the_rest(tiny_pipeline, inverse_dynamics):
    clip = episode(5, length=21)
    (made,) = NewMotion(tiny_pipeline, inverse_dynamics, num_samples=2)({'front': clip}, seed=1).values()
    assert made.frames.shape == clip.frames.shape
    assert np.array_equal(made.frames[0], clip.frames[0])
    assert np.array_equal(made.labels[0], clip.labels[0])
    assert np.array_equal(made.states[0], clip.states[0])
    assert (made.fps, made.task) == (clip.fps, clip.task)
    actions, states = inverse_dynamics.actions({'front': made})
    assert np.array_equal(made.actions, actions)
    assert np.array_equal(made.states[1:], states[1:])
    assert made.depth is made.contact is made.goal_point is None
    assert made.source['augmentation'].keys() == {
        'task', 'goal_shift_pixels', 'plan_seed', 'plan_score', 'input_disagreement'
    }  # fmt: skip


def test_new_motion_depends_on_the_seed_alone(tiny_pipeline, inverse_dynamics):
    method, views = NewMotion(tiny_pipeline, inverse_dynamics, num_samples=1), {'front': episode(5)}
    first, again, other = (method(views, seed)['front'] for seed in (3, 3, 4))
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.actions, again.actions)
    assert first.source == again.source
    assert not np.array_equal(first.frames, other.frames)


def test_another_text_is_the_task_of_the_new_episode(tiny_pipeline, inverse_dynamics):
    method = NewMotion(tiny_pipeline, inverse_dynamics, texts=['pull'], num_samples=1)
    made = method({'front': episode(5)}, seed=0)['front']
    assert made.task == made.source['augmentation']['task'] == 'pull'
    assert made.goal is None


def test_without_inverse_dynamics_there_is_no_new_motion(tiny_pipeline):
    with pytest.raises(ValueError, match='nobody knows the actions'):
        NewMotion(tiny_pipeline, None)


def test_two_cameras_are_refused(tiny_pipeline, inverse_dynamics):
    views = {'front': episode(5), 'side': episode(5)}
    with pytest.raises(ValueError, match=r"one camera, got \('front', 'side'\)"):
        NewMotion(tiny_pipeline, inverse_dynamics)(views, seed=0)


def test_a_smaller_batch_makes_the_same(tiny_pipeline, inverse_dynamics):
    method, views = NewMotion(tiny_pipeline, inverse_dynamics, num_samples=3), {'front': episode(5)}
    whole = method(views, seed=0)['front']
    method.batch_size = 2  # as after running out of memory
    np.testing.assert_array_equal(method(views, seed=0)['front'].labels, whole.labels)


def test_new_motion_needs_something_to_do(tiny_pipeline, inverse_dynamics):
    clip = replace(episode(5), task='')
    clip.labels[-1] = 0
    with pytest.raises(ValueError, match='neither a text nor a goal'):
        NewMotion(tiny_pipeline, inverse_dynamics)({'front': clip}, seed=0)


def test_goals_stay_in_the_picture_and_near_the_recorded_one():
    clip = episode(5)
    clip.labels[-1][clip.labels[-1] == 1] = 0
    clip.labels[-1, 2:12, 84:94] = 1  # near the corner, 84 pixels from its start
    way = np.hypot(76, 38)
    shifts = []
    for seed in range(20):
        goal, shift = draw_goal(clip, 0.2, np.random.default_rng(seed))
        assert 98 <= (goal == 1).sum() <= 100
        assert not (goal == 2).any()
        shifts.append(shift)
    assert 0.02 * way < np.hypot(*np.transpose(shifts)).mean() < 0.2 * way
    assert np.array_equal(draw_goal(clip, 0, np.random.default_rng(0))[0] == 1, clip.labels[-1] == 1)
