"""What stage 1 is told of a training clip: text, goal or both, in every form that a user can give them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.planning.request import move_mask

#: Forms of a goal, in the order of `goal_variants`.
GOAL_FORMS = ('mask', 'box', 'point')
STOPS = 2  #: frames in which each clip may stop
STOPPED_IOU = 0.7  #: of the object's masks, then and at first, at most


@dataclass
class ConditionShares:
    """Share of samples that see each condition.

    Attributes:
        text_only, goal_only: of all samples; the others see both. The paper's text mode is `text_only` 1, its
            position mode `goal_only` 1.
        goal_box, goal_point: of the samples with a goal: it is a filled box, or a pixel; the others see the
            object's mask at the end, as in the paper.
        neither: of all samples: no text and no goal, which guidance at inference needs.
        no_actor: of all samples: the first masks do not show the actor, which is there and will move.
        stopped: of the samples with a goal: everything stops in a frame of the second half, and the goal is
            where the object is then (goals chosen in hindsight, arXiv 1707.01495). Most scenes show where
            their object ends, a drawer, a button; only a goal on the way has something to tell there.
    """

    text_only: float = 0.35
    goal_only: float = 0.25
    goal_box: float = 0.2
    goal_point: float = 0.3
    no_actor: float = 0.1
    neither: float = 0.0
    stopped: float = 0.0

    def __post_init__(self):
        shares = vars(self).values()
        sums = self.text_only + self.goal_only + self.neither, self.goal_box + self.goal_point
        if min(shares) < 0 or max(*sums, self.no_actor, self.stopped) > 1 + 1e-9:
            raise ValueError(
                'conditions: expected shares of at least 0, text_only + goal_only + neither, goal_box + '
                f'goal_point, no_actor and stopped each at most 1, got {self}'
            )


@dataclass
class Conditions:
    """What is drawn for a batch.

    `text`, `goal`, `actor`: (B,) bool, whether the sample sees it. `goal_form`: (B,) int64, see `GOAL_FORMS`.
    `stop`: (B,) int64, 0 for a clip that goes on to its end, else the number of its `stop_frames` plus 1.
    """

    text: torch.Tensor
    goal: torch.Tensor
    goal_form: torch.Tensor
    actor: torch.Tensor
    stop: torch.Tensor


def draw_conditions(
    shares: ConditionShares, has_goal: torch.Tensor, generator: torch.Generator
) -> Conditions:
    """Draw for a batch of which only the samples `has_goal` (B,) bool have a goal; the others see text."""
    mode, form, actor = torch.rand(3, len(has_goal), generator=generator)
    neither = mode >= 1 - shares.neither
    text_only = ((mode < shares.text_only) | ~has_goal) & ~neither
    goal_only = ~text_only & (mode < shares.text_only + shares.goal_only)
    stop = torch.zeros(len(has_goal), dtype=torch.int64)
    if shares.stopped:
        stops = torch.rand(len(has_goal), generator=generator) < shares.stopped
        number = torch.randint(1, STOPS + 1, (len(has_goal),), generator=generator)
        stop = torch.where(stops & ~text_only & ~neither, number, stop)
    is_point = (form >= shares.goal_box) & (form < shares.goal_box + shares.goal_point)
    return Conditions(
        text=~goal_only & ~neither,
        goal=~text_only & ~neither,
        goal_form=(form < shares.goal_box).long() + 2 * is_point.long(),
        actor=actor >= shares.no_actor,
        stop=stop,
    )


def stop_frames(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(STOPS,) int64 frames of a (T, h, w) clip in which it may stop on the way.

    They are of its second half; much of the object is seen there, and it has left its first place. The last
    frame where there are no such.
    """
    seen = lb.object_mask(labels)
    areas = seen.sum(axis=(1, 2))
    fits = [
        t
        for t in range(len(labels) // 2, len(labels) - 1)
        if areas[t] > max(areas) / 2 and lb.iou(seen[t], seen[0]) < STOPPED_IOU
    ]
    return rng.choice(fits or [len(labels) - 1], STOPS)


def goal_variants(goal: np.ndarray, first: np.ndarray) -> np.ndarray:
    """(3, h, w) label images: a goal (h, w) in every form of `GOAL_FORMS`.

    The box is the filled rectangle around the goal; the pixel is the goal's centroid, to which the object of
    the `first` label image (h, w) is moved, as `GenerationRequest` does. All are empty where the goal is; a
    clip that begins without an object has the goal's mask for the pixel too.
    """
    first = lb.without_actor(first) != lb.BACKGROUND
    target = goal != lb.BACKGROUND
    if not target.any():
        return np.stack([goal] * 3)
    rows, columns = np.flatnonzero(target.any(axis=1)), np.flatnonzero(target.any(axis=0))
    box = np.zeros_like(target)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    point = move_mask(first, lb.centroid(target)) if first.any() else target
    return np.stack([goal, lb.combine_masks(box), lb.combine_masks(point)])
