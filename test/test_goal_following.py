"""The benchmark of goals tells one that is followed from one that is overlooked."""

import json
import sys
from types import SimpleNamespace

import goal_following
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from tiny_model import build_tiny_model


@pytest.fixture
def clip() -> InteractionClip:
    labels = np.zeros((8, 32, 48), np.uint8)
    for t in range(8):
        labels[t, 10:16, 6 + 2 * t : 12 + 2 * t] = lb.OBJECT
    return InteractionClip(lb.labels_to_rgb(labels) // 2 + np.uint8(40), labels, task='push it')


class Follower:
    """Takes the object to the goal at once, or overlooks it and draws the truth."""

    config = SimpleNamespace(sample_size=(32, 48))

    def __init__(self, truth: np.ndarray, overlooks: bool):
        self.truth, self.overlooks = truth, overlooks

    def trajectory(self, image, labels, task, goal, generator):
        end = self.truth[-1:] if goal is None or self.overlooks else goal
        return SimpleNamespace(labels=np.concatenate((self.truth[:-1], end))[None])


@pytest.mark.parametrize('overlooks', [False, True])
def test_a_goal_is_followed_or_not(clip, overlooks, monkeypatch):
    monkeypatch.setattr(goal_following, 'SHIFTS', (4, 8))
    monkeypatch.setattr(goal_following, 'LEAST_WAY', 1)
    rows = goal_following.judge(Follower(clip.labels, overlooks), clip, 0)
    assert rows['mask']['IoU'] == rows['text']['all frames'] == 1
    for row in ('mask, moved', 'mask, on the way'):
        assert rows[row]['followed'] == pytest.approx(float(not overlooks))
        assert (rows[row]['distance'] < 0.1) != overlooks


def test_an_object_that_stays_tells_nothing(clip):
    still = InteractionClip(clip.frames, clip.labels[:1].repeat(8, 0), task='push it')
    assert goal_following.judge(Follower(still.labels, False), still, 0) is None


def test_a_model_is_judged(clip, tmp_path, monkeypatch):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        writer.add(clip)
    model = build_tiny_model(tmp_path / 'model')
    output = tmp_path / 'out'
    arguments = [tmp_path / 'data', '--model', model, '--output', output]
    monkeypatch.setattr(sys, 'argv', ['goal_following.py', *map(str, arguments)])
    goal_following.main()
    rows = json.loads(output.with_suffix('.json').read_text())['rows']
    assert {'text', 'text and mask', 'mask', 'box', 'point'} <= set(rows)
    assert '| text and mask |' in output.with_suffix('.md').read_text()
