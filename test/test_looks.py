"""Promises of new looks for a scene whose masks are known."""

import json

import cv2
import numpy as np
import pytest

from mask2iv_ros.augmentation.looks import (
    LOOKS_VERSION,
    PATTERNS,
    SHAPES,
    Distractor,
    Light,
    Look,
    Looks,
    Pictures,
    Surface,
    find_materials,
)
from mask2iv_ros.labels import dilate

RED = ((2.0, 0.6, 0.6), (2.0, 0.6, 0.6))
BLUE = ((0.4, 0.8, 3.0), (0.4, 0.8, 3.0))
#: Of the pictures that seeds 0 to 5 make of `scene`.
MEANS = [74.66, 126.01, 84.51, 92.7, 141.72, 59.53]


@pytest.fixture
def scene():
    """A noisy grey picture with an object and an actor."""
    frame = np.random.default_rng(0).integers(80, 120, (96, 128, 3)).astype(np.uint8)
    labels = np.zeros((96, 128), np.uint8)
    labels[50:70, 20:40] = 1
    labels[5:60, 70:90] = 2
    return frame, labels


def _changed(a, b):
    return (a != b).any(axis=-1)


def test_a_seed_decides_everything(scene):
    first, again, other = (Looks()(*scene, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_look_does_not_depend_on_the_picture(scene):
    looks, generator = Looks(), np.random.default_rng(3)
    look = looks.draw(generator)
    looks(*scene, other := np.random.default_rng(3))
    assert generator.random() == other.random()
    assert looks.draw(np.random.default_rng(3)) == look


@pytest.mark.parametrize('seed', range(20))
def test_every_look_changes_the_picture_and_is_made_again_of_its_description(scene, seed):
    look = Looks().draw(np.random.default_rng(seed))
    made = Look.from_description(json.loads(json.dumps(look.describe())))
    assert made == look
    assert np.array_equal(made(*scene), look(*scene))
    assert _changed(look(*scene), scene[0]).mean() > 0.01


def test_chances_of_zero_leave_parts_alone():
    draws = [Looks(object=0, light=0, distractors=0).draw(np.random.default_rng(s)) for s in range(20)]
    assert all(look.background and not (look.object or look.light or look.distractors) for look in draws)


def test_paint_stays_on_its_region(scene):
    frame, labels = scene
    object_, actor = dilate(labels == 1, 7), dilate(labels == 2, 7)  # outlines are soft
    changed = _changed(Look(object=Surface(RED))(frame, labels), frame)
    assert not changed[~(object_ | actor)].any()
    assert changed[labels == 1].mean() > 0.99
    changed = _changed(Look(background=Surface(BLUE))(frame, labels), frame)
    assert not changed[~dilate(labels == 0, 7)].any()
    assert changed[labels == 0].mean() > 0.99


def test_an_outline_keeps_nothing_of_the_old_colours():
    """Pixels that mix object and background are made of the new colours, on both sides."""
    share = np.zeros((60, 80), np.float32)
    share[20:40, 30:50] = 1
    share = cv2.GaussianBlur(share, (0, 0), 1.0)[..., None]
    frame = (share * (250, 0, 0) + (1 - share) * (100, 100, 100)).astype(np.uint8)
    dark_blue = Surface(BLUE, (0.3, 0.3))
    look = Look(object=dark_blue, background=dark_blue)
    painted = look(frame, (share[..., 0] > 0.5).astype(np.uint8)).astype(int)
    assert painted[..., 0].max() < 20  # no red is left
    assert (painted[..., 2] >= painted[..., 0]).all()


def test_paint_has_its_colour_and_keeps_the_shading(scene):
    frame, labels = scene
    painted = Look(object=Surface(RED))(frame, labels)[55:65, 25:35].astype(float)
    was = frame[55:65, 25:35].astype(float) @ (0.299, 0.587, 0.114)
    assert painted.mean(axis=(0, 1))[0] > 3 * painted.mean(axis=(0, 1))[2]
    assert np.corrcoef(painted[..., 0].ravel(), was.ravel())[0, 1] > 0.95


@pytest.mark.parametrize('pattern', PATTERNS[1:])
def test_a_pattern_is_the_same_at_every_size(pattern):
    grey, none = np.full((96, 128, 3), 90, np.uint8), np.zeros((96, 128), np.uint8)
    look = Look(background=Surface(BLUE, (0.5, 1.5), pattern=pattern, period=0.4, angle=0.5, seed=1))
    small = look(grey, none).astype(float)
    assert small.std(axis=(0, 1)).min() > 5
    twice = np.repeat(np.repeat(grey, 2, 0), 2, 1), np.repeat(np.repeat(none, 2, 0), 2, 1)
    large = look(*twice).astype(float).reshape(96, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(large - small).mean() < 6


def test_a_pattern_goes_along_with_the_object():
    frame, labels = np.full((96, 128, 3), 90, np.uint8), np.zeros((2, 96, 128), np.uint8)
    labels[0, 40:60, 30:50] = labels[1, 52:72, 67:87] = 1
    look = Look(object=Surface(RED, (0.4, 1.6), pattern='checks', period=0.1, angle=0.3))
    first, then = look.all_frames(np.stack([frame, frame]), labels)
    assert np.array_equal(first[40:60, 30:50], then[52:72, 67:87])


def test_a_scene_is_painted_alike_wherever_it_lies():
    """What is painted in part, because the rest has no effect, is as if all had been."""
    frame, labels = np.full((96, 128, 3), (90, 80, 70), np.uint8), np.zeros((96, 128), np.uint8)
    labels[30:50, 30:60], labels[40:80, 50:70] = 1, 2
    frame[labels == 1], frame[labels == 2] = (200, 40, 30), (60, 60, 160)
    frame[32:40, 34:40] = 30, 30, 30
    palette = {'palette': ((0.1, 0.1, 0.9), (0.8, 0.7, 0.1)), 'places': ((0.1, 0.1, 0.1), (0.8, 0.2, 0.1))}
    look = Look(Surface(RED, (0.4, 1.6), pattern='checks', angle=0.3, **palette), Surface(BLUE, **palette))
    there = look(np.roll(frame, (7, 31), axis=(0, 1)), np.roll(labels, (7, 31), axis=(0, 1)))
    assert np.array_equal(np.roll(look(frame, labels), (7, 31), axis=(0, 1)), there)


def test_what_a_seed_draws_is_that_of_its_version(scene):
    """Or count `LOOKS_VERSION` up: jobs that are half done would go on with other looks."""
    assert LOOKS_VERSION == 3
    means = [Looks(texture=0.5)(*scene, np.random.default_rng(seed)).mean() for seed in range(6)]
    assert means == pytest.approx(MEANS, abs=0.05)


def test_light_grows_along_its_gradient(scene):
    lit = Look(light=Light((1.2, 1.0, 0.8), gradient=0.5, angle=0.0))(*scene).astype(float)
    before = scene[0].astype(float)
    assert (
        lit[:, 100:].mean() / before[:, 100:].mean() > 1.1 > 0.9 > lit[:, :28].mean() / before[:, :28].mean()
    )
    assert lit[..., 0].mean() > 1.3 * lit[..., 2].mean()


@pytest.mark.parametrize('shape', SHAPES)
def test_distractors_stand_clear_of_what_is_occupied(scene, shape):
    frame, labels = scene
    look = Look(distractors=(Distractor(shape, (0.1, 0.9, 0.1), (0.2, 0.2), seed=5),))
    occupied = np.zeros_like(labels, bool)
    occupied[:, 40:] = True
    changed = _changed(look(frame, labels, occupied), frame)
    assert changed.sum() > 100
    green = look(frame, labels, occupied)[..., 1] > 140
    assert green.any()
    assert not green[occupied].any()
    assert np.array_equal(look(frame, labels, np.ones_like(occupied)), frame)  # no place


def test_over_a_clip_distractors_stand_still_and_are_never_run_over(scene):
    frame, labels = scene
    moving = np.stack([np.roll(labels, shift, axis=1) for shift in range(0, 40, 8)])
    things = tuple(Distractor('box', (0.1, 0.9, 0.1), (0.15, 0.15), seed=s) for s in range(3))
    frames = np.repeat(frame[None], len(moving), axis=0)
    edited = Look(distractors=things).all_frames(frames, moving)
    assert np.array_equal(edited[0], edited[-1])
    assert not np.array_equal(edited[0], frame)


def test_given_pictures_are_taken_as_they_are(scene):
    frame, _ = scene
    edit = Pictures({'front': frame + 1}, {'front': 'kitchen.png'}).draw(np.random.default_rng(0))
    assert np.array_equal(edit(frame, 'front'), frame + 1)
    assert edit.describe() == {'pictures': {'front': 'kitchen.png'}}
    with pytest.raises(ValueError, match=r"wrist: no picture; there are \['front'\]"):
        edit(frame, 'wrist')
    with pytest.raises(ValueError, match=r'front: picture: expected \(96, 64, 3\)'):
        edit(frame[:, :64], 'front')


def test_wrong_input_is_refused(scene):
    with pytest.raises(ValueError, match='object: expected a chance'):
        Looks(object=1.2)
    with pytest.raises(ValueError, match='pattern: expected one of'):
        Surface(RED, pattern='plaid')
    with pytest.raises(ValueError, match='a place for each colour, got 1, 0'):
        Surface(RED, palette=((1.0, 1.0, 1.0),))
    with pytest.raises(ValueError, match=r'labels: expected \(1, 96, 128\)'):
        Look()(scene[0], scene[1][:10])


def test_a_palette_gives_each_material_its_colour_and_the_same_in_every_frame():
    grey, brown = (120, 120, 120), (150, 110, 80)  # of one luminance
    frame = np.empty((40, 60, 3), np.uint8)
    frame[:, :30], frame[:, 30:] = grey, brown
    frame[20:] = frame[20:] * 0.9  # a shadow
    later = frame.copy()
    later[:, :10] = (200, 30, 30)  # something that was not there
    surface = Surface(RED, palette=((0.8, 0, 0), (0, 0.4, 0)), places=((0.6, 0.4, 0.3), (0.5, 0.5, 0.5)))
    look = Look(background=surface)
    first, second = look.all_frames(np.stack([frame, later]), np.zeros((2, 40, 60), np.uint8)).astype(int)
    np.testing.assert_array_equal(first[:, 16:], second[:, 16:])
    lit, shaded = first[:18], first[22:]
    np.testing.assert_allclose(lit[:, :28] - (0, 102, 0), 0, atol=12)
    np.testing.assert_allclose(lit[:, 32:] - (204, 0, 0), 0, atol=12)
    assert (shaded.sum(axis=-1) < lit.sum(axis=-1)).all()
    assert (shaded[:, :28, 1] > 80).all()


@pytest.mark.parametrize('count', [0, 1, 5, 3000])
def test_materials_of_few_or_equal_pixels(count):
    same = find_materials(np.full((count, 3), 51, np.uint8))
    np.testing.assert_allclose(same, np.full((len(same), 3), 0.2, np.float32))
    assert len(same) == min(count, 1)


def test_an_object_that_comes_later_is_painted_with_a_palette(scene):
    frame, labels = scene
    look = Look(object=Surface(RED, palette=((0.1, 0.1, 0.9),), places=((0.5, 0.5, 0.5),)))
    edited = look.all_frames(np.stack([frame, frame]), np.stack([np.zeros_like(labels), labels])).astype(int)
    assert (edited[1][55:65, 25:35, 2] > edited[1][55:65, 25:35, 0] + 50).all()


def test_materials_are_the_colours_that_pixels_lie_about():
    colours = np.array([(20, 20, 20), (230, 40, 40), (40, 60, 220)])
    rng = np.random.default_rng(0)
    found = 255 * find_materials(
        (colours[rng.integers(3, size=4000)] + rng.integers(-4, 5, (4000, 3))).astype(np.uint8)
    )
    distances = np.abs(found[:, None] - colours).max(axis=-1)
    assert distances.min(axis=1).max() < 6
    assert set(distances.argmin(axis=1)) == {0, 1, 2}


def test_what_was_darker_is_as_often_brighter_in_a_new_look():
    """Where colours keep who is bright and who is dark, a policy learns from that instead of from shapes."""
    frame = np.full((40, 60, 3), (110, 90, 75), np.uint8)
    frame[10:30, 20:40] = (40, 38, 36)
    labels = np.zeros((40, 60), np.uint8)
    brighter = []
    for seed in range(60):
        look = Looks(background=1, light=0, texture=0, distractors=0).draw(np.random.default_rng(seed))
        if look.background.palette:
            edited = look(frame, labels).astype(int).sum(axis=-1)
            brighter.append(edited[13:27, 23:37].mean() > edited[:8].mean())
    assert 0.3 < np.mean(brighter) < 0.7
