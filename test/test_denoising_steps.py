"""The benchmark of denoising steps compares like with like."""

import json

import denoising_steps
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from tiny_model import build_tiny_model


def test_a_loss_is_what_is_worse_than_with_the_most_steps():
    few, most = np.array([1.0, 2.0]), np.array([2.0, 2.0])
    assert denoising_steps.loss(few, most, more_is_better=True)['mean'] == pytest.approx(0.25)
    assert denoising_steps.loss(few, most, more_is_better=False)['mean'] == pytest.approx(-0.25)


def test_every_number_of_steps_is_a_row(tmp_path, capsys):
    labels = np.zeros((4, 32, 48), np.uint8)
    for t in range(4):
        labels[t, 10:20, 6 + 3 * t : 16 + 3 * t] = lb.OBJECT
        labels[t, 12:16, 2 + 3 * t : 6 + 3 * t] = lb.ACTOR
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for shade in (40, 80, 90):
            writer.add(
                InteractionClip(lb.labels_to_rgb(labels) // 2 + np.uint8(shade), labels, task='push it')
            )
    model = build_tiny_model(tmp_path / 'model')
    arguments = [str(tmp_path / 'data'), '--work', str(tmp_path / 'work'), '--model', str(model)]
    arguments += ['--device', 'cpu', '--output', str(tmp_path / 'out')]
    denoising_steps.main([*arguments, '--steps', '3', '1'])
    rows = json.loads((tmp_path / 'out.json').read_text())['rows']
    assert list(rows) == ['1', '3']
    assert rows['1']['object IoU']['loss']['clips'] == 3
    assert not any('loss' in rows['3'][name] for name in denoising_steps.METRICS)
    for steps, row in rows.items():
        assert row['seconds'] > 0
        written = json.loads((tmp_path / 'work' / steps / 'test.json').read_text())['summary']['all clips']
        for name, (key, metric, _) in denoising_steps.METRICS.items():
            assert row[name]['mean'] == written[key][metric]['mean']
    assert (tmp_path / 'out.png').stat().st_size
    assert '| 1 |' in (tmp_path / 'out.md').read_text()
