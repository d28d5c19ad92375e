"""The demo ends at once, and says why, when one of its processes does."""

import time

import pytest

from mask2iv_ros.ros.demo import run_demo
from mask2iv_ros.ros.node_process import NodeProcess


def test_a_process_that_dies_at_start_ends_the_demo_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'nonsense')  # the camera cannot render
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=rf'sim_camera ended with status 1; its log is {tmp_path}'):
        run_demo(tmp_path, 'drawer-open', 0, '')
    assert time.monotonic() - start < 300  # it would wait 900 s for the node alone
    assert 'MUJOCO_GL' in (tmp_path / 'sim_camera.log').read_text()


@pytest.mark.parametrize('error', [None, TimeoutError('no answer')])
def test_a_process_that_ended_is_named_whatever_else_happened(tmp_path, error):
    def use_it():
        with NodeProcess('node', {'max_queue': -3}, tmp_path / 'log.txt') as node:
            assert node.process.wait(60) == 2
            if error:
                raise error

    with pytest.raises(RuntimeError, match='node ended with status 2'):
        use_it()
    assert 'max_queue' in (tmp_path / 'log.txt').read_text()
