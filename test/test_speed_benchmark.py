"""The speed benchmark counts and times what it says."""

import json

import pytest
import speed

from tiny_model import build_tiny_model


@pytest.fixture(scope='module', autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, 'PUBLIC_STEPS', 6)  # 50 take a while
        yield


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp('speed')
    model = build_tiny_model(folder / 'model')
    speed.main(['--model', str(model), '--device', 'cpu', '--runs', '2', '--output', str(folder / 'speed')])
    assert 'tiny' in (folder / 'speed.md').read_text()
    return json.loads((folder / 'speed.json').read_text())


def test_parts_add_up_to_the_call(report):
    for row in report['rows'].values():
        assert len(row['runs']) == 2
        for run in row['runs']:
            assert sum(seconds for part, seconds in run.items() if part != 'total') == pytest.approx(
                run['total']
            )
            assert min(run.values()) > 0


def test_work_is_counted_by_steps(report):
    reference, ours = (report['rows'][name]['parts'] for name in ('reference', 'ours'))
    assert report['rows']['reference']['steps'] == 6
    assert report['rows']['ours']['steps'] == 2
    for stage in (1, 2):
        for work in ('FLOPs', 'weight bytes'):
            times = 3 if work == 'FLOPs' else 3 * 4 / _bytes_a_weight(report)
            assert reference[f'denoise {stage}'][work] == times * ours[f'denoise {stage}'][work] > 0
        assert reference[f'decode {stage}']['FLOPs'] == ours[f'decode {stage}']['FLOPs'] > 0


def test_masks_alone_leave_out_the_second_stage(report):
    assert not {'encode 2', 'denoise 2', 'decode 2'} & set(report['rows']['masks only']['parts'])


def test_scaling_tells_work_time_and_memory(tmp_path, monkeypatch):
    model = build_tiny_model(tmp_path / 'model')
    monkeypatch.setattr(speed, 'SCALES', {'num_samples': (1, 2), 'num_frames': (8, 16), 'resolution': (1, 2)})
    arguments = ['--model', str(model), '--device', 'cpu', '--runs', '1', '--output', str(tmp_path / 'out')]
    speed.main([*arguments, '--scaling'])
    report = json.loads((tmp_path / 'out.json').read_text())
    found = {what: [row[what] for row in rows] for what, rows in report['scaling'].items()}
    height, width = report['scaling']['resolution'][0]['resolution']
    expected = [[height, width], [2 * height, 2 * width]]
    assert found == {'num_samples': [1, 2], 'num_frames': [8, 16], 'resolution': expected}
    for rows in report['scaling'].values():
        assert all(row['seconds'] > 0 and row['peak memory bytes'] > 1e8 for row in rows)
    first, second = report['scaling']['num_samples']
    assert second['clips an hour'] == pytest.approx(2 * 3600 / second['seconds'])
    assert (tmp_path / 'out.png').stat().st_size
    assert first['clips an hour'] == pytest.approx(3600 / first['seconds'])


def _bytes_a_weight(report) -> int:
    return {'torch.float32': 4, 'torch.bfloat16': 2}[report['rows']['ours']['dtype']]
