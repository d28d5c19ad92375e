"""Checks of a plan before anything moves: each is passed or failed, with the number and the limit it broke.

A plan that passes is plausible, not safe: nothing here knows the robot, its joints or its obstacles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask2iv_ros.planning.motion import MaskMotion


@dataclass(frozen=True)
class PlanLimits:
    """What a plan is held against; None leaves a check out.

    Limits of the robot (workspace, speed, step, spread in metres) have no default: nobody else knows them.

    Attributes:
        workspace: ((x, y, z) lowest, (x, y, z) highest) corner in metres, in the frame of the path.
        max_speed: metres a second, of the object between two frames.
        max_step: metres between two frames.
        max_step_pixels: pixels between two frames, as a share of the image's diagonal.
        area_ratio: least and greatest size of the object's mask, of that in frame 0.
        min_visible: share of the frames in which the object is visible.
        contact_required: actor and object must touch.
        max_free_motion: how far the object may move before contact, as a share of the diagonal.
        max_spread: metres that samples may stray from their mean, root mean square, in the worst frame.
        max_spread_pixels: the same in the image, as a share of the diagonal.
    """

    workspace: tuple[Sequence[float], Sequence[float]] | None = None
    max_speed: float | None = None
    max_step: float | None = None
    max_step_pixels: float | None = 0.25
    area_ratio: tuple[float, float] | None = (0.25, 4.0)
    min_visible: float | None = 0.5
    contact_required: bool = True
    max_free_motion: float | None = 0.05
    max_spread: float | None = None
    max_spread_pixels: float | None = 0.1


@dataclass(frozen=True)
class Check:
    """One check: its name, whether the plan passed it, and what was found against what was allowed."""

    name: str
    passed: bool
    reason: str


def check_plan(
    motion: MaskMotion,
    image_size: tuple[int, int],
    limits: PlanLimits,
    points: np.ndarray | None = None,
    fps: float | None = None,
    samples: Sequence[MaskMotion] = (),
    sample_points: np.ndarray | None = None,
) -> list[Check]:
    """Every check that `limits` ask for; the plan passes if all do (`passed`).

    Args:
        motion: of the plan.
        image_size: (height, width) of its masks.
        points: (T, 3) metres, its path in the frame of the workspace; None if there is none, which fails the
            checks of a path that are asked for.
        fps: frames a second, for the speed.
        samples: motions of all plans for the same request, this one among them; fewer than two cannot
            disagree.
        sample_points: (N, T, 3) metres, their paths; a row of nan for a plan without one.

    Raises:
        ValueError: limits or shapes that make no sense.
    """
    if points is not None and np.shape(points) != (len(motion), 3):
        raise ValueError(f'points: expected ({len(motion)}, 3), got {np.shape(points)}')
    if limits.max_speed is not None and not (fps and fps > 0):
        raise ValueError(f'fps: expected a positive rate for max_speed, got {fps}')
    diagonal = float(np.hypot(*image_size))
    checks = []

    def add(name: str, passed: bool, reason: str):
        checks.append(Check(name, bool(passed), reason))

    if limits.min_visible is not None:
        share = float((motion.visibility > 0).mean())
        add('object visible', share >= limits.min_visible,
            f'in {share:.0%} of the frames, expected at least {limits.min_visible:.0%}')  # fmt: skip
    if limits.area_ratio is not None:
        ratio = motion.area / motion.area[0]
        low, high = limits.area_ratio
        worst = int(np.abs(np.log(ratio)).argmax())
        add('mask size', low <= ratio.min() and ratio.max() <= high,
            f'{ratio[worst]:.2f} of frame 0 in frame {worst}, expected {low} to {high}')  # fmt: skip
    if limits.max_step_pixels is not None:
        _add_limit(add, 'step in the image', _steps(motion.position) / diagonal, limits.max_step_pixels,
                   'of the diagonal, after frame')  # fmt: skip
    if limits.contact_required:
        touched = motion.contact_frame >= 0
        add('contact', touched,
            f'in frame {motion.contact_frame}' if touched else 'actor and object never touch')  # fmt: skip
    if limits.max_free_motion is not None:
        before = motion.position[: max(1, motion.contact_frame) if motion.contact_frame >= 0 else None]
        moved = float(np.linalg.norm(before - before[0], axis=1).max() / diagonal)
        add('moved by contact', moved <= limits.max_free_motion,
            f'the object moves {moved:.3f} of the diagonal before it is touched, expected at most '
            f'{limits.max_free_motion}')  # fmt: skip
    if len(samples) > 1 and limits.max_spread_pixels is not None:
        spread = sample_spread(np.stack([sample.position for sample in samples])) / diagonal
        _add_limit(add, 'agreement in the image', spread, limits.max_spread_pixels,
                   f'of the diagonal between {len(samples)} samples, in frame')  # fmt: skip

    names = ('workspace', 'max_speed', 'max_step') + (('max_spread',) if len(samples) > 1 else ())
    asked = [name for name in names if getattr(limits, name) is not None]
    if points is None:
        if asked:
            add('path', False, f'there is no 3-D path to hold against {", ".join(asked)}')
        return checks
    if limits.workspace is not None:
        low, high = np.asarray(limits.workspace, float)
        if low.shape != (3,) or not (low < high).all():
            raise ValueError(f'workspace: expected two corners, lowest first, got {limits.workspace}')
        inside = (points >= low) & (points <= high)  # nan is not
        outside = np.flatnonzero(~inside.all(axis=1))
        where = f'frame {outside[0]} is at {np.round(points[outside[0]], 3)}, ' if len(outside) else ''
        add('workspace', not len(outside), f'{where}the box is {low} to {high}')
    if limits.max_step is not None:
        _add_limit(add, 'step', _steps(points), limits.max_step, 'm, after frame')
    if limits.max_speed is not None:
        _add_limit(add, 'speed', _steps(points) * fps, limits.max_speed, 'm/s, after frame')
    if sample_points is not None and limits.max_spread is not None:
        known = sample_points[np.isfinite(sample_points).all(axis=(1, 2))]
        if len(known) > 1:
            _add_limit(add, 'agreement', sample_spread(known), limits.max_spread,
                       f'm between {len(known)} samples, in frame')  # fmt: skip
    return checks


def passed(checks: Sequence[Check]) -> bool:
    """Whether a plan passed all of its checks."""
    return all(check.passed for check in checks)


def sample_mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (T, D) and covariance (T, D, D) over the samples of (N, T, D) positions, N at least 2.

    The covariance is the unbiased one (divided by N - 1), in the square of the samples' unit.
    """
    if samples.ndim != 3 or len(samples) < 2:
        raise ValueError(f'samples: expected (N, T, D) with N at least 2, got {samples.shape}')
    mean = samples.mean(axis=0)
    off = samples - mean
    return mean, np.einsum('ntd,nte->tde', off, off) / (len(samples) - 1)


def sample_spread(samples: np.ndarray) -> np.ndarray:
    """Root mean square distance (T,) of (N, T, D) positions from their mean in each frame (unbiased)."""
    return np.sqrt(np.trace(sample_mean(samples)[1], axis1=1, axis2=2))


def _steps(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


def _add_limit(add, name: str, values: np.ndarray, limit: float, unit: str):
    if not len(values):
        return
    worst = int(values.argmax())
    add(name, values[worst] <= limit,
        f'{values[worst]:.3f} {unit} {worst}, expected at most {limit}')  # fmt: skip
