"""Promises of the ways to make new episodes."""

from dataclasses import replace

import numpy as np
import pytest

from mask2iv_ros.augmentation.looks import Look, Looks
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.clip import InteractionClip
from tiny_model import build_tiny_pipeline


def _clip(length: int, **more) -> InteractionClip:
    frames = np.full((length, 48, 64, 3), 90, np.uint8)
    labels = np.zeros((length, 48, 64), np.uint8)
    labels[:, 10:20, 10:22] = 1
    for t in range(length):
        labels[t, 24:44, 10 + t : 20 + t] = 2
    actions = np.arange(length * 2, dtype=np.float32).reshape(length, 2)
    return InteractionClip(frames, labels, task='push', actions=actions, states=actions + 1, **more)


def _red_object(frame, labels, rng):
    edited = frame.copy()
    edited[labels == 1] = 255, 0, 0
    return edited


@pytest.fixture(scope='module')
def tiny_pipeline():
    return build_tiny_pipeline()


@pytest.mark.parametrize('length', [5, 21])
def test_same_motion_keeps_all_but_the_pixels(tiny_pipeline, length):
    clip = _clip(length)
    (made,) = SameMotion(tiny_pipeline, _red_object)({'front': clip}, seed=3).values()
    assert np.array_equal(made.actions, clip.actions)
    assert np.array_equal(made.states, clip.states)
    assert np.array_equal(made.labels, clip.labels)
    assert made.task == 'push'
    assert made.frames.shape == clip.frames.shape
    assert made.frames.dtype == np.uint8
    assert np.array_equal(made.frames[0], _red_object(clip.frames[0], clip.labels[0], None))
    assert not np.array_equal(made.frames[1:], clip.frames[1:])


def test_same_motion_depends_on_the_seed_alone(tiny_pipeline):
    method, views = SameMotion(tiny_pipeline, _red_object), {'front': _clip(9)}
    first, again, other = (method(views, seed)['front'].frames for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_record_tells_the_look_that_was_painted():
    clip = _clip(9)
    rng = np.random.default_rng(0)
    room = rng.integers(0, 255, (48, 64 + 80, 3), dtype=np.uint8)
    moving = replace(clip, frames=np.stack([room[:, 8 * t : 8 * t + 64] for t in range(9)]))
    method = SameMotion(None, Looks(background=1, distractors=1), keep='everything')
    for seed in range(4):
        made = method({'front': moving}, seed)['front']
        look = Look.from_description(made.source['augmentation']['look'])
        assert look == look.for_moving_camera()
        np.testing.assert_array_equal(made.frames, look.all_frames(moving.frames, moving.labels))


def test_same_motion_needs_masks(tiny_pipeline):
    clip = _clip(9)
    clip.labels = None
    with pytest.raises(ValueError, match='front: expected masks'):
        SameMotion(tiny_pipeline, _red_object)({'front': clip}, seed=0)
