"""Same motion, new looks: masks say where an episode is repainted, or drive stage 2 from an edited frame."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.composing import (
    STATIC_SHARE,
    background,
    background_change,
    compose,
    film,
    still_backdrop,
    still_background,
)
from mask2iv_ros.augmentation.looks import Look, Looks, Pictures, scene_materials
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

#: Edits a first frame (H, W, 3) uint8 by its labels (H, W) uint8; draws from the generator alone.
Edit = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

#: What of a video is not left to the model.
KEEP = ('nothing', 'background', 'everything')


class SameMotion:
    """Makes episodes that look different and move alike, so that actions and states stay valid.

    What was drawn is in `clip.source['augmentation']`: 'look', and 'kept' as below.

    Args:
        pipeline: of both stages; the second is used. None where `keep` is 'everything'.
        edit: of the first frame: `Looks`, `Pictures`, or any function.
        keep: what is not left to the model. 'background': with a camera that is measured to stand still, the
            background comes from the recorded frames in the new look (or from the first frame, if that is a
            given picture or a function's), and the model draws actor, object and a band around them.
            'everything': each recorded frame is edited by its own masks and no model draws; for `Looks` only,
            and if the camera moves, without patterns and things on the background.
            'nothing': the model draws all.

    Raises:
        ValueError: `keep` is none of these, or asks for what `edit` cannot do.
    """

    mode = 'same_motion'

    def __init__(
        self, pipeline: Mask2IVPipeline | None, edit: Looks | Pictures | Edit, keep: str = 'background'
    ):
        if keep not in KEEP:
            raise ValueError(f'keep: expected one of {KEEP}, got {keep!r}')
        if keep == 'everything' and not isinstance(edit, Looks):
            raise ValueError("keep: 'everything' needs Looks, which can edit every frame")
        self.pipeline, self.edit, self.keep = pipeline, edit, keep
        self._measured: dict[str, tuple[weakref.ref, weakref.ref, bool]] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_measured': {}}  # weak references cannot be pickled

    def __call__(self, views: Mapping[str, InteractionClip], seed: int) -> dict[str, InteractionClip]:
        """An episode's whole clips by camera, with other frames; every camera draws the same edit.

        Raises:
            ValueError: a clip has no masks.
        """
        for camera, clip in views.items():
            if clip.labels is None:
                raise ValueError(f'{camera}: expected masks, which `mask2iv segment` draws; got none')
        materials = None
        if isinstance(self.edit, Looks):  # of all cameras, so that a thing has one colour in all of them
            materials = scene_materials([(clip.frames, clip.labels) for clip in views.values()])
        return {camera: self._generate(clip, camera, seed, materials) for camera, clip in views.items()}

    def _generate(
        self, clip: InteractionClip, camera: str, seed: int, materials: Mapping[str, np.ndarray] | None
    ) -> InteractionClip:
        record, rng = {}, np.random.default_rng(seed)
        look = self.edit.draw(rng) if isinstance(self.edit, Looks | Pictures) else None
        moves = self.keep != 'nothing' and self._moves(clip, camera)
        if self.keep == 'everything' and moves:
            look = look.for_moving_camera()
        if look is not None:
            record['look'] = look.describe()
        if self.keep == 'everything':
            frames = look.all_frames(clip.frames, clip.labels, materials=materials)
            record['kept'] = 'everything'
        else:
            if look is None:
                first = self.edit(clip.frames[0], clip.labels[0], rng)
            elif isinstance(look, Look):
                occupied = (clip.labels != lb.BACKGROUND).any(axis=0)
                first = look.all_frames(clip.frames[:1], clip.labels[:1], occupied, materials)[0]
            else:
                first = look(clip.frames[0], camera)
            frames, record['kept'] = film(self.pipeline, first, clip.labels, seed), 'nothing'
            if self.keep == 'background' and not moves:
                record['kept'] = 'background'
                if isinstance(look, Look):
                    backdrop = look.all_frames(clip.frames, clip.labels, materials=materials)
                    kept = background(clip.labels)
                else:
                    backdrop, kept = still_backdrop(first, clip.frames), still_background(clip.labels)
                frames = compose(frames, backdrop, kept)
            frames[0] = first
        before = clip.source.get('augmentation', {})
        return replace(clip, frames=frames, source={**clip.source, 'augmentation': {**before, **record}})

    def _moves(self, clip: InteractionClip, camera: str) -> bool:
        """Whether the camera moves; measured once for all variants of a clip."""
        *measured, moves = self._measured.get(camera, (False,))
        seen = clip.frames, clip.labels
        if not measured or any(one() is not other for one, other in zip(measured, seen, strict=True)):
            moves = background_change(*seen) > STATIC_SHARE
            self._measured[camera] = *map(weakref.ref, seen), moves
        return moves
