"""Same motion, new looks: an episode's own masks drive stage 2 from an edited first frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

#: Edits a first frame (H, W, 3) uint8 by its labels (H, W) uint8; draws from the generator alone.
Edit = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class SameMotion:
    """Makes episodes that look different and move alike, so that actions and states stay valid.

    Args:
        pipeline: of both stages; the second is used.
        edit: of the first frame.
    """

    mode = 'same_motion'

    def __init__(self, pipeline: Mask2IVPipeline, edit: Edit):
        self.pipeline, self.edit = pipeline, edit

    def __call__(self, views: Mapping[str, InteractionClip], seed: int) -> dict[str, InteractionClip]:
        """An episode's whole clips by camera, with other frames; every camera draws the same edit.

        Raises:
            ValueError: a clip has no masks.
        """
        return {camera: self._generate(clip, camera, seed) for camera, clip in views.items()}

    def _generate(self, clip: InteractionClip, camera: str, seed: int) -> InteractionClip:
        if clip.labels is None:
            raise ValueError(f'{camera}: expected masks, which `mask2iv segment` draws; got none')
        first = self.edit(clip.frames[0], clip.labels[0], np.random.default_rng(seed))
        size = clip.frames.shape[1:3]
        framing = Framing(size, tuple(self.pipeline.config.sample_size))
        labels = framing.fit_labels(clip.labels)
        missing = max(0, self.pipeline.config.num_frames - len(labels))
        labels = np.concatenate((labels, labels[-1:].repeat(missing, axis=0)))  # the end stands still
        frames = self.pipeline.video(
            framing.fit_frames(first)[None], labels[None], generator=torch.Generator().manual_seed(seed)
        ).frames[0]
        frames = framing.restore_frames(frames[: len(clip)])
        frames[0] = first
        return replace(clip, frames=frames, source=dict(clip.source))
