"""Promises of the gates: each fires on its own damage, and not on what is as it should be."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation import gates
from mask2iv_ros.augmentation.gates import Gates, Thresholds, measure
from mask2iv_ros.augmentation.looks import Light, Look
from mask2iv_ros.clip import InteractionClip

SIZE = (48, 64)
RED, GREEN = np.array((220, 40, 40)), np.array((30, 190, 60))


class ColourSegmenter:
    """Reads red things as object and green ones as actor, in any light."""

    config = type('Config', (), {'sample_size': SIZE})

    def read(self, frames, labels):
        red, green = np.moveaxis(frames[..., :2].astype(int), -1, 0)
        seen = np.where(red > 2 * green, lb.OBJECT, np.where(green > 2 * red, lb.ACTOR, 0)).astype(np.uint8)
        return np.concatenate([labels[None], seen[1:]])


class Dynamics:
    """Is wrong by `error` in every action; of the source's two, only the first changes."""

    action_std = np.array([0.5, 0.0])

    def __init__(self, error):
        self.error = error

    def actions(self, views, inputs):
        assert inputs == 'frames'  # what the masks say was asked for
        return next(iter(views.values())).actions + self.error, None


def episode(length=40, speed=0.7, seed=0) -> InteractionClip:
    """A striped green actor that moves down beside a red object, before noise."""
    scene = np.random.default_rng(seed).integers(80, 140, (*SIZE, 3))
    frames, labels = (
        np.repeat(scene[None], length, axis=0).astype(np.uint8),
        np.zeros((length, *SIZE), np.uint8),
    )
    stripes = (0.8 + 0.2 * (np.arange(14) // 2 % 2))[:, None, None]
    for t in range(length):
        top = int(speed * t)
        frames[t, top : top + 14, 10:24] = GREEN * stripes
        labels[t, top : top + 14, 10:24] = lb.ACTOR
        frames[t, 30:40, 40:52] = RED
        labels[t, 30:40, 40:52] = lb.OBJECT
    actions = np.stack([np.sin(np.arange(length)), np.zeros(length)], axis=1).astype(np.float32)
    return InteractionClip(frames, labels, actions=actions)


def repainted(clip: InteractionClip) -> InteractionClip:
    return replace(clip, frames=Look(light=Light((0.8, 0.8, 0.7))).all_frames(clip.frames, clip.labels))


def values(made: InteractionClip, source: InteractionClip | None = None, **more) -> dict[str, float]:
    return measure({'front': source or episode()}, {'front': made}, ColourSegmenter(), **more)


def test_reduced_variants_compare_as_whole_ones():
    twice = [
        np.repeat(np.repeat(array, 2, axis=1), 2, axis=2) for array in (episode().frames, episode().labels)
    ]
    source = InteractionClip(*twice)
    other, made = ({'front': replace(source, frames=source.frames // part)} for part in (3, 2))
    gate = Gates(ColourSegmenter())
    reduced = gate.reduced(other)
    assert reduced['front'].frames.shape == (40, *SIZE, 3)
    for others in ([], [other]):
        want = gate({'front': source}, made, others)
        have = gate({'front': source}, made, [reduced for _ in others])
        np.testing.assert_equal(have, want)
    assert want['near_duplicate'] < gate({'front': source}, made)['near_duplicate']


def edited(change) -> InteractionClip:
    """A repainted episode whose frames `change` damages in place."""
    clip = repainted(episode())
    change(clip.frames)
    return clip


def _swap_halves(frames):
    frames[gates.seam_steps(40, 16).nonzero()[0][10] + 1 :] //= 2


def _freeze(frames):
    frames[1:] = frames[0]


def _shift_actor(frames):
    frames[1:] = np.roll(frames[1:], 9, axis=2)


def _erase_object(frames):
    frames[10:, 28:42, 38:54] = 90


def _fade(frames):
    frames[5:] = frames[5:] // 2 + 60


def _blur(frames):
    for frame in frames[1:]:
        frame[:] = cv2.GaussianBlur(frame, (0, 0), 3)


@pytest.mark.parametrize(
    ('damage', 'gate'),
    [
        (_freeze, 'actor_iou'),
        (_freeze, 'actor_centroid'),
        (_shift_actor, 'actor_iou'),
        (_erase_object, 'object_permanence'),
        (_swap_halves, 'seam_jump'),
        (_fade, 'look_drift'),
        (_blur, 'sharpness'),
    ],
)
def test_a_gate_fires_on_its_damage(damage, gate):
    assert gate in Thresholds().failures(values(edited(damage)))


def test_an_episode_as_it_should_be_passes():
    found = values(repainted(episode()), inverse_dynamics=Dynamics(0.1))
    assert Thresholds().failures(found) == []
    assert found['actor_iou'] == 1
    assert found['object_permanence'] == 1
    assert found['sharpness'] == pytest.approx(1, abs=0.05)


def test_a_copy_of_the_source_or_of_another_variant_is_a_duplicate():
    source, made = episode(), repainted(episode())
    assert Thresholds().failures(values(source)) == ['near_duplicate']
    assert values(made)['near_duplicate'] > 10
    assert values(made, others=[{'front': made}])['near_duplicate'] == 0
    assert values(made, others=[{'front': episode(seed=5)}])['near_duplicate'] > 3


def test_another_motion_before_the_same_background_is_no_duplicate():
    assert values(episode(speed=0.2))['near_duplicate'] > 10


def test_actions_that_the_frames_do_not_show_fail():
    made = repainted(episode())
    assert values(made)['cycle_error'] != values(made)['cycle_error']  # nan: not measured
    assert values(made, inverse_dynamics=Dynamics(0.0))['cycle_error'] == 0
    still = replace(made, actions=np.zeros_like(made.actions))
    assert Thresholds().failures(values(still, inverse_dynamics=Dynamics(0.4))) == []
    found = values(made, inverse_dynamics=Dynamics(2.0))
    assert found['cycle_error'] == pytest.approx(2 / 0.5, rel=1e-3)  # in the source's spread
    assert Thresholds().failures(found) == ['cycle_error']
    assert Thresholds(cycle_error=None).failures(found) == []


def test_the_worst_camera_counts():
    source, good, bad = episode(), repainted(episode()), edited(_erase_object)
    views = {'front': source, 'side': source}
    found = measure(views, {'front': good, 'side': bad}, ColourSegmenter())
    assert found['object_permanence'] == values(bad)['object_permanence'] < 0.5


def test_masks_without_an_actor_prove_nothing_and_fail():
    clip = episode()
    clip.frames[clip.labels == lb.ACTOR] = 100
    clip.labels[clip.labels == lb.ACTOR] = lb.BACKGROUND
    found = values(repainted(clip), clip)
    assert np.isnan([found['actor_iou'], found['actor_centroid']]).all()
    assert Thresholds().failures(found) == ['actor_iou', 'actor_centroid']
    assert Thresholds(actor_iou=None, actor_centroid=None).failures(found) == []


def test_where_nothing_else_can_be_measured_nothing_fails():
    clip = repainted(episode(length=16))
    grey = np.full_like(clip.frames, 90)
    empty = replace(clip, frames=grey, labels=np.zeros_like(clip.labels))
    found = measure({'front': empty}, {'front': empty}, ColourSegmenter())
    for gate in ('actor_iou', 'actor_centroid', 'object_permanence', 'seam_jump', 'cycle_error'):
        assert np.isnan(found[gate])
    assert Thresholds(actor_iou=None, actor_centroid=None, near_duplicate=None).failures(found) == []


def test_seams_are_where_windows_meet():
    assert not gates.seam_steps(16, 16).any()
    steps = gates.seam_steps(40, 16)
    assert steps[0]  # frame 0 is a key frame
    assert 0 < steps.sum() < 39


def test_wrong_input_is_refused():
    clip = episode()
    with pytest.raises(ValueError, match=r"views: expected cameras \['front'\], got \['side'\]"):
        measure({'front': clip}, {'side': clip}, ColourSegmenter())
    with pytest.raises(ValueError, match='front: expected masks'):
        values(replace(clip, labels=None))
    with pytest.raises(ValueError, match='expected one of actor_iou'):
        Thresholds().failures({})
