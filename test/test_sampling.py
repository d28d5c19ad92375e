"""Clip sampling: every frame is where it should be."""

import numpy as np

from mask2iv_ros.data.sampling import spread_frames


def test_spread_frames_reach_both_ends_evenly():
    assert spread_frames(31, 16).tolist() == list(range(0, 31, 2))
    frames = spread_frames(100, 16)
    assert (frames[0], frames[-1]) == (0, 99)
    assert set(np.diff(frames)) <= {6, 7}


def test_short_episodes_repeat_frames():
    assert spread_frames(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert spread_frames(1, 4).tolist() == [0, 0, 0, 0]
