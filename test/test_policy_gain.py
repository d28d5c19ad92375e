"""The benchmark of policies: rows are resumable and comparable, rollouts execute what a policy says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.data.metaworld import record_clip
from mask2iv_ros.labels import ACTOR

pytest.importorskip('metaworld')

import policy_gain as gain

TASK = 'button-press-topdown'


@pytest.fixture(scope='module')
def real(tmp_path_factory) -> Path:
    """Two episodes at native rate."""
    root = tmp_path_factory.mktemp('real') / 'train'
    with LeRobotClipWriter(root, robot_type='sawyer') as writer:
        for seed in (0, 1):
            writer.add(record_clip(TASK, seed, 48, 64, stride=4, camera_jitter=0))
    return root


@pytest.fixture(scope='module')
def edited(real, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('made')
    gain.main([str(out), '--make', 'every_frame', '--data', f'{real}:1', '--variants', '2'])
    return out / 'data/every_frame'


@pytest.fixture(scope='module')
def made(real, edited, tmp_path_factory):
    """Arguments that made a row and a table, and their folder."""
    out = tmp_path_factory.mktemp('out')
    arguments = [out, '--row', 'real', '--data', real, edited, '--real-share', '0.5', '--steps', '2']
    arguments += ['--seeds', '0', '--episodes', '1', '--looks', 'training', 'strong']
    arguments = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gain, 'BATCH', 2)
        gain.main([*arguments, '--table', '--results', str(out / 'table')])
        gain.main(arguments)  # nothing is left to do
    return arguments, out


def test_a_row_trains_tries_and_is_not_done_twice(made):
    _, out = made
    lines = [json.loads(text) for text in (out / 'real.jsonl').read_text().splitlines()]
    assert [line['look'] for line in lines] == ['training', 'strong']
    assert all(line['seed'] >= gain.FIRST_SEED and line['task'] == TASK for line in lines)
    assert all(0 < line['actions'] <= gain.MAX_ACTIONS for line in lines)


def test_the_table_tells_rows_data_and_intervals(made):
    _, out = made
    text = (out / 'table.md').read_text()
    assert '| real | ' in text
    assert re.search(r'data/every_frame \(\d+ episodes\), 50% of a batch real', text)
    assert (out / 'table.png').exists()
    assert json.loads((out / 'table.json').read_text())['rows']['real']['looks']['strong']['episodes'] == 1


def test_a_row_made_with_other_settings_is_refused(made):
    arguments, _ = made
    with pytest.raises(ValueError, match=r"was made with .*'steps': 2.*, asked for is .*'steps': 3"):
        gain.main([*arguments, '--steps', '3'])


def test_lerobot_loads_the_policy_that_a_row_leaves(made, real):
    from lerobot.policies.act.modeling_act import ACTPolicy

    _, out = made
    policy = ACTPolicy.from_pretrained(out / 'real/0/policy')
    assert policy.config.chunk_size == gain.CHUNK
    assert (out / 'real/0/policy/policy_preprocessor.json').exists()


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(real, tmp_path, monkeypatch):
    monkeypatch.setattr(gain, 'BATCH', 2)
    monkeypatch.setattr(gain, 'CHECKPOINT_EVERY', 2)
    settings = {'transforms': True, 'real_share': None}
    demonstrations = gain.load([str(real)])
    whole = gain.train(demonstrations, tmp_path / 'whole', 5, settings, 4)[0]
    draw, drawn = gain.Demonstrations.draw, []

    def stop(self, *args):
        drawn.append(1)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(self, *args)

    monkeypatch.setattr(gain.Demonstrations, 'draw', stop)
    with pytest.raises(KeyboardInterrupt):
        gain.train(demonstrations, tmp_path / 'stopped', 5, settings, 4)
    resumed = gain.train(demonstrations, tmp_path / 'stopped', 5, settings, 4)[0]
    assert len(drawn) == 6  # two steps again, not four
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_rollout_executes_what_the_policy_says(real):
    """A policy that knows the expert's actions solves, under any look; one that stays does not."""
    demonstrations = gain.load([str(real)])
    seed = gain.evaluation_seeds(TASK, demonstrations.frame_size, 1)[0]
    known = torch.from_numpy(record_clip(TASK, seed, 48, 64, stride=4, camera_jitter=0).actions)

    class Knows:
        def __init__(self, actions):
            self.actions = actions

        def reset(self):
            self.said = 0

        def predict_action_chunk(self, observation):
            assert observation['observation.images.front'].shape == (3, *gain.SIZE)
            start, self.said = self.said, self.said + gain.EXECUTED
            rows = torch.arange(start, start + gain.CHUNK).clamp(max=len(self.actions) - 1)
            return self.actions[rows][None]

    def play(policy, look):
        return gain.play(policy, lambda x: x, lambda x: x, demonstrations, TASK, seed, look)

    assert play(Knows(known), 'training')['success']
    assert play(Knows(known), 'strong')['success']
    stays = play(Knows(known[:1]), 'training')
    assert (stays['success'], stays['actions']) == (False, gain.MAX_ACTIONS)


def test_the_training_look_is_what_was_recorded(real):
    """Encoding aside, the policy sees at evaluation what it saw in training; other looks differ."""
    recorded = open_dataset(real).read(0).frames[0].astype(float)
    scene = gain._scene(TASK, (48, 64))
    offset, cameras = gain.draw_scene(TASK, 0, camera_jitter=0)
    errors = {}
    is_arm = open_dataset(real).read(0).labels[0] == ACTOR
    for look in ('strong', 'surroundings', 'training'):
        changes = gain.LOOKS[look][0]
        scene.vary(np.random.default_rng((0, 2)) if changes else None, **(changes or {}))
        scene.reset(0, offset)
        error = np.abs(scene.render_colour(cameras['front'], 45.0) - recorded)
        errors[look] = error[~is_arm].mean(), error[is_arm].mean()
    assert max(errors['training']) < 8
    assert min(errors['strong']) > 25
    assert errors['surroundings'][0] > 25
    assert errors['surroundings'][1] < errors['strong'][1] / 2  # what the light does


def test_a_chunk_ends_with_its_episode(real):
    demonstrations = gain.load([f'{real}:1'])
    last = int(demonstrations.last[0])
    batch = demonstrations.batch(torch.tensor([0, last - 1]))
    assert batch['action_is_pad'].sum(1).tolist() == [0, gain.CHUNK - 2]
    assert torch.equal(batch['action'][0], demonstrations.actions[: gain.CHUNK])
    assert torch.equal(batch['action'][1, 2], demonstrations.actions[last])


def test_the_share_of_real_frames_in_a_batch_is_what_was_asked_for(real, edited):
    demonstrations = gain.load([str(real), str(edited)])
    assert demonstrations.episodes == (2, 2)
    for asked in (0.25, 0.75):
        rows = demonstrations.draw(2000, asked, torch.Generator().manual_seed(0))
        assert (demonstrations.origin[rows] == 0).float().mean() == pytest.approx(asked, abs=0.05)


def test_edited_frames_keep_motion_and_masks_and_differ_between_variants(real, edited):
    source, variants = open_dataset(real), open_dataset(edited)
    before = source.read(0)
    for variant in range(2):
        after = variants.read(variant)
        for name in ('labels', 'actions', 'states'):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        told = after.source['augmentation']
        assert (told['mode'], told['variant']) == ('every_frame', variant)
        assert np.abs(after.frames.astype(int) - before.frames).mean() > 3
    assert np.abs(variants.read(0).frames[0].astype(int) - variants.read(1).frames[0]).mean() > 3


def test_the_replay_table_counts_what_the_expert_solves(tmp_path):
    gain.main(
        [str(tmp_path), '--replay', '--tasks', TASK, '--episodes', '2', '--results', str(tmp_path / 'gain')]
    )
    text = (tmp_path / 'gain_replay.md').read_text()
    assert f'| {TASK} | 2/2 | 2/2 | 2/2 | 2/2 |' in text
    assert '| all | 2/2 |' in text


def test_data_that_does_not_fit_is_named(real):
    with pytest.raises(ValueError, match=rf"expected 3 episodes a task, got .*'{TASK}': 2"):
        gain.load([f'{real}:3'])
    with pytest.raises(ValueError, match='has no episode of hammer'):
        gain.load([str(real)], ['hammer'])


def test_intervals_are_those_of_the_literature():
    """Newcombe (1998), Stat. Med. 17:873, example (a) of table II: 56 of 70 against 48 of 80."""

    def found(solved, count):
        lines = [
            {'train_seed': 0, 'task': 'a', 'seed': i, 'look': 'strong', 'success': i < solved}
            for i in range(count)
        ]
        twice = gain.share(lines + [{**line, 'train_seed': 1} for line in lines])
        once = gain.share(lines)  # the same placements tell no more if they are met again
        assert all(once[key] == twice[key] for key in ('success', 'low', 'high'))
        return once

    low, high = gain.wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))
    gap = gain.difference(found(56, 70), found(48, 80))
    assert gap == pytest.approx((20.0, 5.24, 33.39), abs=0.02)
