"""What stage 1 predicts for the training clips, so that stage 2 can train on masks like those it will get."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.training.latents import LatentCache, weights_id


def predicted_labels(
    cache: LatentCache, pipeline: MaskTrajectoryPipeline, seed: int = 0, batch_size: int = 4
) -> tuple[np.ndarray, str]:
    """Label images (N, T, h, w) that `pipeline` predicts for each clip of `cache`, and what they depend on.

    It is told text and goal, with the model's own number of denoising steps: of the many futures that fit a
    scene, the one closest to the clip's. Made on first use; a stopped run goes on; other weights start anew.
    """
    clips = cache.arrays
    sampling = pipeline.config.num_inference_steps, pipeline.config.eta, pipeline.config.residual_scale
    made_of = f'{cache.id} {weights_id(pipeline.unet, pipeline.image_projector)} {sampling} {seed}'
    pipeline.set_progress_bar_config(disable=True)

    def rows(start: int) -> Iterator[np.ndarray]:
        for first in range(start, len(clips), batch_size):
            batch = slice(first, first + batch_size)
            labels = clips.labels[batch]
            goal = lb.goal_labels(labels)
            with torch.autocast('cuda', torch.bfloat16, enabled=cache.vae.device.type == 'cuda'):
                predicted = pipeline(
                    clips.frames[batch, 0],
                    labels[:, 0],
                    clips.tasks[batch],
                    goal if goal.any(axis=(1, 2)).all() else None,
                    generator=[torch.Generator().manual_seed(seed + first + i) for i in range(len(labels))],
                )
            yield from predicted.labels

    return cache.batches('predicted_labels', rows, made_of), made_of
