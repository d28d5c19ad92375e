"""Motion of masks: known scenes in, their positions, turns, contacts and phases out."""

import cv2
import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.framing import Framing
from mask2iv_ros.planning.motion import APPROACH, INTERACT, RELEASE, mask_motion, restore_motion

HEIGHT, WIDTH = 120, 160


def rectangle(centre, size, degrees=0.0) -> np.ndarray:
    """(H, W) bool: a rectangle of (long, short) pixels, turned from x towards y."""
    corners = cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, size)), float(degrees)))
    shift = 8  # fractional bits: fillPoly rounds to whole pixels otherwise
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(corners * 2**shift).astype(np.int32)], 1, shift=shift)
    return mask > 0


def clip(objects, actors=None) -> np.ndarray:
    objects = np.stack(objects)
    return lb.combine_masks(objects, None if actors is None else np.stack(actors))


def empty() -> np.ndarray:
    return np.zeros((HEIGHT, WIDTH), bool)


@pytest.fixture(scope='module')
def passing_behind():
    """A square of 24 pixels goes 4 pixels a frame, behind an arm that covers all but 10 columns of it."""
    truth = np.array([(30.0 + 4 * t, 60.0) for t in range(18)])
    arm = empty()
    arm[:, 70:84] = True
    return truth, clip([rectangle(p, (24, 24)) for p in truth], [arm] * 18)


def test_an_arm_in_front_does_not_drag_the_path(passing_behind):
    truth, labels = passing_behind
    motion = mask_motion(labels)
    assert np.abs(motion.centroid - truth).max() > 4
    assert np.abs(motion.position - truth).max() < 1.2
    np.testing.assert_allclose(motion.area, motion.area[0], rtol=0.1)
    assert motion.visibility.min() == pytest.approx(10 / 24, abs=0.07)


def test_an_object_that_starts_behind_the_arm_is_filled_in_from_later_frames(passing_behind):
    truth, labels = passing_behind
    start = 9
    assert (labels[start] == lb.OBJECT).sum() < 0.7 * (labels[-1] == lb.OBJECT).sum()
    motion = mask_motion(labels[start:])
    assert np.abs(motion.position - truth[start:]).max() < 1.5


def test_a_hidden_object_is_between_its_neighbours():
    positions = [(40, 60), (50, 60), (60, 60), (70, 60), (80, 60)]
    objects = [rectangle(p, (20, 20)) for p in positions]
    objects[2] = objects[3] = empty()
    motion = mask_motion(clip(objects))
    np.testing.assert_allclose(motion.position[:, 0] - motion.position[0, 0], (0, 10, 20, 30, 40), atol=0.1)
    assert np.isnan(motion.centroid[2:4]).all()
    np.testing.assert_array_equal(motion.visibility > 0, (True, True, False, False, True))
    objects[4] = empty()
    gone = mask_motion(clip(objects))
    np.testing.assert_array_equal(gone.position[2:], np.repeat(gone.position[1:2], 3, axis=0))


def test_an_arm_that_passes_far_away_changes_nothing():
    objects = [rectangle((50 + 2 * t, 40), (30, 18)) for t in range(4)]
    far = rectangle((80, 100), (60, 20))
    with_arm, alone = mask_motion(clip(objects, [far] * 4)), mask_motion(clip(objects))
    np.testing.assert_array_equal(with_arm.position, alone.position)
    np.testing.assert_array_equal(with_arm.position, with_arm.centroid)


@pytest.mark.parametrize('step', [8, -15])
def test_a_rigid_turn_is_measured(step):
    angles = np.arange(8) * step
    motion = mask_motion(clip([rectangle((80, 60), (60, 16), angle) for angle in angles]))
    np.testing.assert_allclose(np.degrees(motion.rotation), angles, atol=2)
    assert motion.rigidity.min() > 0.85
    np.testing.assert_allclose(motion.scale, 1, atol=0.05)
    np.testing.assert_allclose(motion.extent, motion.extent[:1].repeat(8, axis=0), rtol=0.05)


def test_a_turn_is_measured_under_the_hand_that_makes_it():
    angles = np.arange(8) * 10
    hand = rectangle((80, 60), (22, 40))
    motion = mask_motion(clip([rectangle((80, 60), (70, 16), angle) for angle in angles], [hand] * 8))
    np.testing.assert_allclose(np.degrees(motion.rotation), angles, atol=3)
    assert np.abs(motion.position - motion.position[0]).max() < 1


def test_extent_and_orientation_are_those_of_a_rectangle():
    rectangles = [rectangle((80, 60), (50, 20), angle) for angle in (30, -60)]
    motion = mask_motion(clip(rectangles))
    np.testing.assert_allclose(np.degrees(motion.orientation), (30, -60), atol=1)
    np.testing.assert_allclose(motion.extent, [(50, 20)] * 2, atol=1.5)
    assert np.isnan(motion.actor_extent).all()
    motion = mask_motion(clip([rectangle((20, 20), (10, 10))] * 2, rectangles))
    np.testing.assert_allclose(np.degrees(motion.actor_orientation), (30, -60), atol=1)
    np.testing.assert_allclose(motion.actor_extent, [(50, 20)] * 2, atol=1.5)


def test_an_object_that_comes_closer_grows():
    sizes = 20 * 1.06 ** np.arange(8)
    motion = mask_motion(clip([rectangle((80, 60), (1.5 * size, size)) for size in sizes]))
    np.testing.assert_allclose(motion.scale, sizes / 20, rtol=0.05)


def test_contact_and_phases():
    """A hand comes from above, pushes the block to the right in two frames from its left side, and leaves."""
    block = [(80, 60)] * 4 + [(86, 60), (92, 60), (92, 60), (92, 60)]
    hand = [(20, 20), (30, 40), (50, 60), (60, 60), (66, 60), (72, 60), (50, 40), (20, 20)]
    motion = mask_motion(
        clip([rectangle(p, (20, 20)) for p in block], [rectangle(p, (20, 20)) for p in hand])
    )
    assert motion.contact_frame == 4
    assert motion.contact_pixel == (pytest.approx(76, abs=1.5), pytest.approx(60, abs=1.5))
    np.testing.assert_array_equal(motion.phases, [APPROACH] * 4 + [INTERACT] * 2 + [RELEASE] * 2)
    np.testing.assert_allclose(motion.actor_centroid[0], (20, 20), atol=0.6)
    assert (motion.actor_area > 350).all()


def test_a_hand_that_passes_in_front_is_no_contact_yet():
    block = [(80, 60)] * 5 + [(80, 50), (80, 40)]
    hand = [(40, 60), (70, 60), (100, 60), (120, 60), (100, 60), (97, 50), (97, 40)]
    labels = clip([rectangle(p, (20, 20)) for p in block], [rectangle(p, (14, 14)) for p in hand])
    assert lb.contact_frame(labels, 3) == 1
    assert mask_motion(labels).contact_frame == 5


def test_of_an_object_that_stays_the_first_touch_counts():
    hand = [(20, 60), (64, 60), (64, 60)]
    labels = clip([rectangle((80, 60), (20, 20))] * 3, [rectangle(p, (14, 14)) for p in hand])
    assert mask_motion(labels).contact_frame == 1


def test_without_an_actor_there_is_no_contact():
    motion = mask_motion(clip([rectangle((80, 60), (20, 20))] * 3))
    assert (motion.contact_frame, motion.contact_pixel) == (-1, None)
    np.testing.assert_array_equal(motion.phases, [APPROACH] * 3)
    assert np.isnan(motion.actor_centroid).all()


def test_noise_on_the_outline_moves_the_position_little():
    rng = np.random.default_rng(0)
    mask = rectangle((80, 60), (40, 24))
    noisy = [mask]
    for _ in range(6):
        noisy.append((lb.dilate if rng.random() < 0.5 else lb.erode)(mask, 3))
    hand = rectangle((96, 60), (16, 60))
    motion = mask_motion(clip(noisy, [hand] * 7))
    assert np.abs(motion.position - motion.position[0]).max() < 1.5
    assert np.abs(motion.rotation).max() < np.radians(6)


def test_an_object_of_one_pixel_and_one_at_the_border_are_no_trouble():
    dot = empty()
    dot[0, 0] = True
    motion = mask_motion(clip([dot, dot, empty()]))
    np.testing.assert_array_equal(motion.position, np.zeros((3, 2)))
    edge = mask_motion(clip([rectangle((x, 60), (30, 20)) for x in (30, 15, 5)]))
    assert np.isfinite(edge.position).all()


@pytest.mark.parametrize('model', [(60, 80), (60, 100), (48, 80)])
def test_motion_in_a_models_small_frame_is_that_of_the_image(model):
    """Half the size or less, with padding at the sides, and with padding above and below."""
    block = [(80 + 4 * max(0, t - 3), 60) for t in range(8)]
    hand = [(40 + 7 * t, 60) for t in range(4)] + [(x - 19, y) for x, y in block[4:]]
    labels = clip(
        [rectangle(p, (30, 16), 10 * t) for t, p in enumerate(block)], [rectangle(p, (14, 14)) for p in hand]
    )
    framing = Framing((HEIGHT, WIDTH), model)
    fine = mask_motion(labels)
    motion = restore_motion(mask_motion(framing.fit_labels(labels)), framing)
    np.testing.assert_allclose(motion.position, fine.position, atol=1)
    np.testing.assert_allclose(motion.actor_centroid, fine.actor_centroid, atol=1)
    np.testing.assert_allclose(motion.area, fine.area, rtol=0.1)
    np.testing.assert_allclose(motion.actor_area, fine.actor_area, rtol=0.15)
    np.testing.assert_allclose(motion.extent, fine.extent, atol=2.5)
    np.testing.assert_allclose(np.degrees(motion.rotation), np.degrees(fine.rotation), atol=6)
    assert motion.contact_frame == fine.contact_frame
    np.testing.assert_allclose(motion.contact_pixel, fine.contact_pixel, atol=2)
    assert motion.filled.shape == (8, *model)


@pytest.mark.parametrize(
    ('labels', 'match'),
    [
        (np.zeros((2, 8, 8), np.uint8), 'object in frame 0'),
        (np.ones((8, 8), np.uint8), r'expected \(T, H, W\)'),
        (np.ones((2, 8, 8), np.int64), 'uint8'),
    ],
)
def test_wrong_labels_are_named(labels, match):
    with pytest.raises(ValueError, match=match):
        mask_motion(labels)
