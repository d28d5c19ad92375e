"""New motion: from an episode's first frame another way is planned, filmed, and read back as actions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.composing import film
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing
from mask2iv_ros.interpolation import stretch_labels
from mask2iv_ros.models.inverse_dynamics import InverseDynamics
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.planning.generate import object_permanence, sample_agreement
from mask2iv_ros.planning.request import move_mask

#: Draws of a goal before the recorded one is taken.
GOAL_DRAWS = 20


class NewMotion:
    """Makes episodes that begin as recorded ones and go on otherwise, with actions by inverse dynamics.

    Stage 1 plans several ways to the drawn goal, the one that most agree with is stretched over the length of
    the episode, and stage 2 films it. Two cameras would be planned two different motions, so an episode has
    one view.

    Args:
        pipeline: of both stages.
        inverse_dynamics: trained on the dataset that the episodes are from. There is no way without it:
            actions that nobody knows are not written.
        goal_shift: the goal is drawn evenly from a disc around the recorded one, in the image; its radius is
            this share of the object's recorded way. 0 keeps the goal: another seed alone is another motion.
        texts: tasks to draw from; the drawn one alone says what to do, without a goal. Empty: the episode's
            own, with the goal.
        num_samples: plans of stage 1 to choose from.
    """

    mode = 'new_motion'

    def __init__(
        self,
        pipeline: Mask2IVPipeline,
        inverse_dynamics: InverseDynamics | None,
        goal_shift: float = 0.3,
        texts: Sequence[str] = (),
        num_samples: int = 4,
    ):
        if inverse_dynamics is None:
            raise ValueError(
                'new motion: expected inverse dynamics of the source dataset, which `mask2iv train '
                'inverse-dynamics` makes; without one, nobody knows the actions of a new motion'
            )
        if goal_shift < 0 or num_samples < 1:
            raise ValueError(
                'new motion: expected goal_shift of at least 0 and num_samples of at least 1, got '
                f'{goal_shift} and {num_samples}'
            )
        self.pipeline, self.inverse_dynamics = pipeline, inverse_dynamics
        self.goal_shift, self.texts, self.num_samples = goal_shift, tuple(texts), num_samples
        self.batch_size = num_samples

    def __call__(self, views: Mapping[str, InteractionClip], seed: int) -> dict[str, InteractionClip]:
        """One view of another episode: frames, masks that were asked for, inferred actions and states.

        The first frame, its masks and its state are the recorded ones. `source['augmentation']` of the view
        says what was drawn, how the plan scored, and 'input_disagreement': how far actions told from the
        frames alone are from those told from the masks alone, mean absolute, in standard deviations of the
        dataset's actions. Where it is large, the video does not show what its masks say.

        Raises:
            ValueError: several cameras and none chosen, no masks, nothing that says what to do, or an
                episode that is not like those the model of inverse dynamics was trained on.
        """
        self.check(views)
        ((camera, clip),) = views.items()
        rng = np.random.default_rng(seed)
        if self.texts:
            task, goal, shift = self.texts[rng.integers(len(self.texts))], None, (0.0, 0.0)
        else:
            task = clip.task
            goal, shift = draw_goal(clip, self.goal_shift, rng)
        if goal is None and not task.strip():
            raise ValueError(f'new motion: {camera}: has neither a text nor a goal; nothing says what to do')
        plan_seed = int(rng.integers(2**31))
        labels, score = self._plan(clip, task, goal, plan_seed)
        frames = film(self.pipeline, clip.frames[0], labels, plan_seed)
        frames[0] = clip.frames[0]
        made = replace(
            clip, frames=frames, labels=labels, task=task, goal=goal, goal_point=None, contact=None,
            actions=None, states=None, depth=None,
        )  # fmt: skip
        actions, states = self.inverse_dynamics.actions({camera: made})
        alone = [self.inverse_dynamics.actions({camera: made}, inputs)[0] for inputs in ('frames', 'masks')]
        made.actions = actions
        if clip.states is not None:
            made.states = states
            made.states[0] = clip.states[0]
        deviation = np.array(self.inverse_dynamics.model.config.action_std)
        made.source = {
            **clip.source,
            'augmentation': {
                'task': task,
                'goal_shift_pixels': list(shift),
                'plan_seed': plan_seed,
                'plan_score': score,
                'input_disagreement': float((np.abs(alone[0] - alone[1]) / deviation).mean()),
            },
        }
        return {camera: made}

    def check(self, views: Mapping[str, InteractionClip]) -> None:
        """Raise ValueError for an episode that no new motion can be made of; its first frame is enough."""
        if len(views) != 1:
            raise ValueError(
                f'new motion: expected episodes of one camera, got {tuple(views)}; each would be planned '
                'another motion, so say which camera to keep'
            )
        (camera,) = views
        if views[camera].labels is None:
            raise ValueError(f'{camera}: expected masks, which `mask2iv segment` draws; got none')
        self.inverse_dynamics.check(views)

    def _plan(
        self, clip: InteractionClip, task: str, goal: np.ndarray | None, seed: int
    ) -> tuple[np.ndarray, float]:
        """(T, H, W) masks of the best plan in the clip's size and length, and its score."""
        framing = Framing(clip.frames.shape[1:3], tuple(self.pipeline.config.sample_size))
        first, image = framing.fit_labels(clip.labels[0]), framing.fit_frames(clip.frames[0])
        goal = None if goal is None else framing.fit_labels(goal)
        plans = []
        for seeds in itertools.batched(range(seed, seed + self.num_samples), self.batch_size):
            drawn = self.pipeline.trajectory(
                *(array[None].repeat(len(seeds), axis=0) for array in (image, first)),
                task,
                None if goal is None else goal[None].repeat(len(seeds), axis=0),
                generator=[torch.Generator().manual_seed(one) for one in seeds],
            )
            plans.extend(drawn.labels)
        plans = np.stack(plans)
        scores = sample_agreement(plans) if len(plans) > 1 else [object_permanence(plans[0])]
        best = int(np.argmax(scores))
        plans[best][0] = first
        labels = framing.restore_labels(stretch_labels(plans[best], len(clip)))
        labels[0] = clip.labels[0]
        return labels, float(scores[best])


def draw_goal(
    clip: InteractionClip, share: float, rng: np.random.Generator
) -> tuple[np.ndarray | None, tuple[float, float]]:
    """The goal of `clip`, (H, W) label image, moved in the image; and by how many pixels (x, y).

    Evenly from a disc whose radius is `share` of the object's way from the first frame to the goal. A draw
    that would cut the object at the picture's border is drawn again. None where the clip ends without object.
    """
    goal = clip.goal_labels
    at_start, at_goal = (
        lb.centroid((labels == lb.OBJECT) | (labels == lb.PART)) for labels in (clip.labels[0], goal)
    )
    if at_goal is None:
        return None, (0.0, 0.0)
    if at_start is None:
        return goal, (0.0, 0.0)
    radius = share * float(np.hypot(*np.subtract(at_goal, at_start)))
    masks = {label: goal == label for label in (lb.OBJECT, lb.PART)}
    for _ in range(GOAL_DRAWS):
        angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
        shift = np.array((distance * np.cos(angle), distance * np.sin(angle)))
        moved = {
            label: move_mask(mask, np.array(lb.centroid(mask)) + shift) if mask.any() else mask
            for label, mask in masks.items()
        }
        if all(moved[label].sum() >= 0.98 * masks[label].sum() for label in masks):
            shifted = lb.combine_masks(moved[lb.OBJECT], part_mask=moved[lb.PART])
            return shifted, (float(shift[0]), float(shift[1]))
    return goal, (0.0, 0.0)
