"""Checks of plans: what passes, what fails and with which reason."""

import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.planning.checks import PlanLimits, check_plan, passed, sample_mean, sample_spread
from mask2iv_ros.planning.motion import mask_motion

SIZE = (96, 128)


def plan(shift=4, jump=0, grow=0, hand=True, before=0, frames=6):
    """A hand that stands left of a square and pushes it right by `shift` pixels a frame."""
    labels = np.zeros((frames, *SIZE), np.uint8)
    for t in range(frames):
        x = 30 + shift * t + (jump if t == 3 else 0) + before
        labels[t, 40 - grow * t : 60 + grow * t, x - grow * t : x + 20 + grow * t] = lb.OBJECT
        if hand and not (before and t < 3):
            labels[t, 45:55, max(0, x - grow * t - 12) : x - grow * t] = lb.ACTOR
    return mask_motion(labels)


POINTS = np.stack((np.linspace(0, 0.1, 6), np.zeros(6), np.full(6, 0.8)), axis=1)
ALL = PlanLimits(
    workspace=((-0.5, -0.5, 0.5), (0.5, 0.5, 1.0)), max_speed=0.5, max_step=0.05, max_spread=0.02
)


def failed(*args, **kwargs) -> dict[str, str]:
    return {check.name: check.reason for check in check_plan(*args, **kwargs) if not check.passed}


def test_a_good_plan_passes_every_check_that_is_asked_for():
    samples = [plan(), plan(shift=5)]
    checks = check_plan(
        plan(), SIZE, ALL, POINTS, fps=10, samples=samples, sample_points=np.stack((POINTS, POINTS + 0.01))
    )
    assert passed(checks)
    assert {check.name for check in checks} == {
        'object visible', 'mask size', 'step in the image', 'contact', 'moved by contact',
        'agreement in the image', 'workspace', 'step', 'speed', 'agreement',
    }  # fmt: skip
    assert all(check.reason for check in checks)


@pytest.mark.parametrize(
    ('motion', 'name', 'words'),
    [
        (plan(jump=60), 'step in the image', 'expected at most 0.25'),
        (plan(grow=4, shift=0), 'mask size', 'of frame 0 in frame 5, expected 0.25 to 4.0'),
        (plan(hand=False, shift=0), 'contact', 'never touch'),
        (plan(shift=8, before=1), 'moved by contact', 'before it is touched'),
    ],
)
def test_what_masks_show_to_be_wrong_is_named(motion, name, words):
    found = failed(motion, SIZE, PlanLimits())
    assert words in found[name]


def test_an_object_that_vanishes_fails():
    labels = np.zeros((6, *SIZE), np.uint8)
    labels[:2, 40:60, 30:50] = lb.OBJECT
    labels[:, 40:60, 10:30] = lb.ACTOR
    assert '33% of the frames, expected at least 50%' in failed(mask_motion(labels), SIZE, PlanLimits())[
        'object visible'
    ]  # fmt: skip


def test_a_path_out_of_the_box_names_the_frame():
    points = POINTS + np.array((0.45, 0, 0))
    found = failed(plan(), SIZE, ALL, points, fps=10)
    assert set(found) == {'workspace'}
    assert 'frame 3 is at [0.51' in found['workspace']


def test_a_path_that_is_not_a_number_is_in_no_box():
    points = POINTS.copy()
    points[2] = np.nan
    assert {'workspace', 'step', 'speed'} == set(failed(plan(), SIZE, ALL, points, fps=10))


def test_an_object_may_move_by_itself_where_that_is_allowed():
    limits = PlanLimits(contact_required=False, max_free_motion=None)
    assert not failed(plan(hand=False), SIZE, limits)


def test_speed_and_step_are_limited_apart():
    assert set(failed(plan(), SIZE, ALL, POINTS, fps=60)) == {'speed'}
    jump = POINTS.copy()
    jump[4:, 1] += 0.06
    found = failed(plan(), SIZE, ALL, jump, fps=5)
    assert set(found) == {'step'}
    assert 'after frame 3, expected at most 0.05' in found['step']


def test_a_missing_path_fails_the_limits_of_a_path_only():
    assert 'workspace, max_speed, max_step' in failed(plan(), SIZE, ALL, fps=10)['path']
    assert not failed(plan(), SIZE, PlanLimits())


def test_samples_that_disagree_fail():
    found = failed(plan(), SIZE, PlanLimits(), samples=[plan(shift=6), plan(shift=0, hand=False)])
    assert 'between 2 samples, in frame 5' in found['agreement in the image']
    apart = np.stack((POINTS, POINTS + np.linspace(0, 0.1, 6)[:, None]))
    found = failed(plan(), SIZE, ALL, POINTS, fps=10, sample_points=apart)
    assert set(found) == {'agreement'}


def test_a_sample_without_path_does_not_count():
    paths = np.stack((POINTS, np.full_like(POINTS, np.nan), POINTS + 0.001))
    assert not failed(plan(), SIZE, ALL, POINTS, fps=10, sample_points=paths)


def test_mean_covariance_and_spread_of_samples():
    rng = np.random.default_rng(0)
    truth, sigma = np.array([(1.0, 2.0), (3.0, 4.0)]), np.array((0.1, 0.3))
    samples = truth + rng.normal(0, sigma, (5000, 2, 2))
    mean, covariance = sample_mean(samples)
    np.testing.assert_allclose(mean, truth, atol=0.02)
    np.testing.assert_allclose(covariance, [np.diag(sigma**2)] * 2, atol=0.01)
    np.testing.assert_allclose(sample_spread(samples), np.sqrt((sigma**2).sum()), rtol=0.05)
    with pytest.raises(ValueError, match='N at least 2'):
        sample_mean(samples[:1])


def test_limits_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match='fps'):
        check_plan(plan(), SIZE, ALL, POINTS)
    with pytest.raises(ValueError, match='lowest first'):
        check_plan(plan(), SIZE, PlanLimits(workspace=((1, 1, 1), (0, 0, 0))), POINTS)
    with pytest.raises(ValueError, match=r'points: expected \(6, 3\)'):
        check_plan(plan(), SIZE, PlanLimits(), POINTS[:3])


def test_a_spread_that_cannot_be_told_without_paths_fails():
    limits = PlanLimits(max_spread=0.001)
    assert 'max_spread' in failed(plan(), SIZE, limits, samples=[plan(), plan(shift=5)])['path']
    assert 'path' not in failed(plan(), SIZE, limits)  # one sample cannot disagree
