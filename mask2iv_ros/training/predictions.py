"""What stage 1 predicts for the training clips, so that stage 2 can train on masks like those it will get."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import torch

from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.training.latents import LatentCache, weights_id


def predicted_labels(
    cache: LatentCache,
    pipeline: MaskTrajectoryPipeline,
    picks: np.ndarray,
    seed: int = 0,
    batch_size: int = 4,
) -> tuple[np.ndarray, str]:
    """Label images (n, T, h, w) that `pipeline` predicts for clips `picks` (n,) of `cache`, and what they
    depend on.

    It is told the text and the goals of clips that have one, with the model's own number of denoising steps:
    of the many futures that fit a scene, the one closest to the clip's. Made on first use; a stopped run goes
    on; other weights start anew.
    """
    clips = cache.arrays
    facts = ('num_inference_steps', 'eta', 'residual_scale', 'goal_guidance')
    sampling = tuple(pipeline.config[name] for name in facts)
    weights = weights_id(pipeline.unet, pipeline.image_projector)
    made_of = f'{cache.id} {weights} {sampling} {seed} {sha256(picks.tobytes()).hexdigest()}'
    has_goal = clips.goals[picks].any(axis=(1, 2))
    if not has_goal.all():  # once, one without took the goals from its whole batch
        made_of += ' each its goal'
    pipeline.set_progress_bar_config(disable=True)

    def rows(start: int) -> Iterator[np.ndarray]:
        for first in range(start, len(picks), batch_size):
            batch = picks[first : first + batch_size]
            predicted = np.empty_like(clips.labels[batch])
            for told in (True, False):
                rows_told = has_goal[first : first + batch_size] == told
                if not rows_told.any():
                    continue
                some = batch[rows_told]
                with torch.autocast(cache.vae.device.type, torch.bfloat16):
                    predicted[rows_told] = pipeline(
                        clips.frames[some, 0],
                        clips.labels[some, 0],
                        [clips.tasks[i] for i in some],
                        clips.goals[some] if told else None,
                        generator=[torch.Generator().manual_seed(seed + int(i)) for i in some],
                    ).labels
            yield from predicted

    return cache.batches('predicted_labels', rows, made_of, len(picks)), made_of
