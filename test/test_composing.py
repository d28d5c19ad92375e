"""Promises of what is kept of recorded frames while a model draws the rest."""

from dataclasses import replace

import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.composing import (
    STATIC_SHARE,
    background,
    background_change,
    compose,
    still_backdrop,
    still_background,
)
from mask2iv_ros.augmentation.looks import Look, Looks, Pictures
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.clip import InteractionClip
from tiny_model import build_tiny_pipeline

SIZE = (48, 64)


def _clip(camera_speed: int = 0) -> InteractionClip:
    scene = np.kron(np.random.default_rng(0).integers(60, 180, (12, 40)), np.ones((4, 4))).astype(np.uint8)
    frames, labels = [], np.zeros((6, *SIZE), np.uint8)
    for t in range(6):
        left = t * camera_speed
        frames.append(np.repeat(scene[:, left : left + 64, None], 3, axis=2))
        labels[t, 5 * t : 5 * t + 15, 20:35] = lb.ACTOR
        frames[t][labels[t] == lb.ACTOR] = 10, 200, 10
    labels[:, 40:46, 50:60] = lb.OBJECT
    return InteractionClip(np.stack(frames), labels, task='push', source={'episode': '7'})


@pytest.fixture(scope='module')
def tiny_pipeline():
    return build_tiny_pipeline()


def test_a_moving_camera_is_told_from_one_that_stands_still():
    still, moving = _clip(), _clip(camera_speed=4)
    assert background_change(still.frames, still.labels) == 0
    assert background_change(moving.frames, moving.labels) > 10 * STATIC_SHARE


def test_the_backdrop_is_seen_outside_of_the_band_alone():
    clip = _clip()
    drawn, backdrop = np.zeros_like(clip.frames), np.full_like(clip.frames, 200)
    kept = background(clip.labels)
    composed = compose(drawn, backdrop, kept)
    assert not composed[clip.labels != lb.BACKGROUND].any()
    assert not composed[~kept].any()
    assert (composed[kept] == 200).mean() > 0.9


def test_what_was_uncovered_since_frame_0_is_not_still_background():
    labels = _clip().labels
    uncovered = (labels[5] == lb.BACKGROUND) & (labels[0] == lb.ACTOR)
    assert background(labels)[5][uncovered].any()
    assert not still_background(labels)[5][uncovered].any()


def test_a_given_picture_gets_the_shadows_of_the_recorded_motion():
    source = np.full((2, *SIZE, 3), 160, np.uint8)
    source[1, :, :30] = 80
    lit = still_backdrop(np.full((*SIZE, 3), 100, np.uint8), source)
    assert np.array_equal(lit[0], np.full((*SIZE, 3), 100))
    assert abs(lit[1, :, :20].mean() - 51) < 2
    assert (lit[1, :, 40:] == 100).all()


def test_a_still_cameras_background_is_the_recorded_one_in_the_new_look(tiny_pipeline):
    clip = _clip()
    looks = Looks(object=0, distractors=0)
    (made,) = SameMotion(tiny_pipeline, looks)({'front': clip}, seed=3).values()
    record = made.source['augmentation']
    truth = Look.from_description(record['look']).all_frames(clip.frames, clip.labels)
    assert record['kept'] == 'background'
    assert made.source['episode'] == '7'
    assert 'augmentation' not in clip.source
    kept = background(clip.labels)
    assert (made.frames == truth)[kept].mean() > 0.9
    assert (made.frames != truth)[1:][clip.labels[1:] == lb.ACTOR].any()


def test_with_a_moving_camera_or_if_told_so_the_model_draws_all(tiny_pipeline):
    still, moving = _clip(), _clip(camera_speed=4)
    (made,) = SameMotion(tiny_pipeline, Looks())({'front': moving}, seed=3).values()
    assert made.source['augmentation']['kept'] == 'nothing'
    (bare,) = SameMotion(tiny_pipeline, Looks(), keep='nothing')({'front': still}, seed=3).values()
    (kept,) = SameMotion(tiny_pipeline, Looks())({'front': still}, seed=3).values()
    assert bare.source['augmentation']['kept'] == 'nothing'
    assert bare.source['augmentation']['look'] == kept.source['augmentation']['look']
    assert not np.array_equal(bare.frames[1:], kept.frames[1:])


def test_keeping_everything_edits_each_recorded_frame_and_needs_no_model():
    clip = _clip()
    (made,) = SameMotion(None, Looks(), keep='everything')({'front': clip}, seed=3).values()
    look = Looks().draw(np.random.default_rng(3))
    assert np.array_equal(made.frames, look.all_frames(clip.frames, clip.labels))


def test_on_a_moving_background_nothing_has_a_place():
    looks, moving = Looks(object=0, light=0, background=1, texture=1), _clip(camera_speed=4)
    for seed in range(20):
        look = looks.draw(np.random.default_rng(seed))
        if look.distractors:
            break
    assert look.background.pattern != 'plain'
    (made,) = SameMotion(None, looks, keep='everything')({'front': moving}, seed=seed).values()
    plain = replace(look, background=replace(look.background, pattern='plain'), distractors=())
    assert np.array_equal(made.frames, plain.all_frames(moving.frames, moving.labels))


def test_every_clip_of_a_camera_has_its_own_movement():
    method, clips = SameMotion(None, Looks(), keep='everything'), [_clip(), _clip(camera_speed=4)]
    for clip in (*clips, *clips):
        again = SameMotion(None, Looks(), keep='everything')
        for seed in (1, 2):
            (made,), (fresh,) = (each({'front': clip}, seed).values() for each in (method, again))
            assert np.array_equal(made.frames, fresh.frames)


def test_a_given_picture_becomes_the_first_frame(tiny_pipeline):
    clip = _clip()
    picture = clip.frames[0] // 2
    method = SameMotion(tiny_pipeline, Pictures({'front': picture}, {'front': 'dark.png'}))
    (made,) = method({'front': clip}, seed=3).values()
    assert np.array_equal(made.frames[0], picture)
    assert made.source['augmentation'] == {'look': {'pictures': {'front': 'dark.png'}}, 'kept': 'background'}
    still = still_background(clip.labels)
    assert np.abs(made.frames.astype(int) - picture)[still].mean() < 2


def test_cameras_get_the_same_look():
    clip, other = _clip(), _clip(camera_speed=1)
    made = SameMotion(None, Looks(), keep='everything')({'front': clip, 'side': other}, seed=5)
    still, moving = (Look.from_description(made[name].source['augmentation']['look']) for name in made)
    assert still.for_moving_camera() == moving != still


def test_a_thing_has_one_new_colour_in_all_cameras():
    """Though one camera sees it somewhat brighter, and more of it."""
    rng = np.random.default_rng(0)
    colours, views = rng.integers(60, 180, (12, 3)), {}
    for camera, shift in (('front', 0), ('side', 9)):
        which = np.repeat(np.arange(12), rng.multinomial(60, np.full(12, 1 / 12)) + 3)
        frames = np.tile((colours[which] + shift).astype(np.uint8), (2, 40, 1, 1))
        views[camera] = InteractionClip(frames, np.zeros(frames.shape[:3], np.uint8), task='push'), which
    clips = {camera: clip for camera, (clip, _) in views.items()}
    method, away = SameMotion(None, Looks(light=0, texture=0, distractors=0), keep='everything'), []
    for seed in range(20):
        made = method(clips, seed)
        seen = [
            [np.median(made[camera].frames[0][:, which == k], axis=(0, 1)) for k in range(12)]
            for camera, (_, which) in views.items()
        ]
        away.append(np.abs(np.subtract(*seen)).max(axis=1))
    assert (np.array(away) > 60).mean() < 0.05


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match='keep: expected one of'):
        SameMotion(None, Looks(), keep='all')
    with pytest.raises(ValueError, match="'everything' needs Looks"):
        SameMotion(None, Pictures({}, {}), keep='everything')
