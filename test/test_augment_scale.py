"""The scale benchmark measures what the command does by default, and keeps its rows beside its memory."""

import json

import pytest

pytest.importorskip('lerobot')

import augment_scale
from test_augment_job import write_source


def test_rows_say_what_was_asked_and_memory_joins_them(tmp_path):
    source, output = write_source(tmp_path / 'source', episodes=2), tmp_path / 'scale'
    common = [str(source), '--cameras', 'top', '-o', str(output)]
    augment_scale.main([*common, '--variants', '2', '--drawn', '0', '--workers'])
    augment_scale.main([*common, '--flat', '3'])
    report = json.loads(output.with_suffix('.json').read_text())
    (row,) = report['rows'].values()
    assert (row['command'], row['episodes'], row['failed']) == ('--variants 2 --ungated --device auto', 4, 0)
    assert row['seconds_in_all'] > 4 / row['episodes_per_hour'] * 3600 > 0
    assert report['memory']['episodes'] == 4
    assert len(report['memory']['megabytes']) == 4
    text = output.with_suffix('.md').read_text()
    assert '2 episodes of `source`, 10 frames of 48x64 an episode' in text  # 9.5
    assert '| repainted | this process | 4 |' in text
    assert 'Memory over 4 repainted episodes' in text
