"""`mask2iv segment`: a copy of a dataset with masks, and contact sheets to judge them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader
from mask2iv_ros.data.segment import (
    ACTOR_PROMPT,
    DETECTOR,
    SEGMENTER,
    Detector,
    SegmentationResult,
    VideoSegmenter,
    read_mask_folder,
    read_mask_image,
    read_mask_video,
    review_rows,
    segment_clip,
)
from mask2iv_ros.data.transfer import copy_episodes
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT
from mask2iv_ros.pictures import contact_sheet, write_picture

SHEET_ROWS = 40  #: episodes on a contact sheet
SHEET_WIDTH, SHEET_COLUMNS = 1600, 8


class DatasetSegmenter:
    """Draws the masks of every episode of a dataset; models are loaded when the first episode needs them.

    What is already known is kept: masks of the dataset itself, then of `masks`, then of `actor_masks`.

    Args:
        detector, segmenter: model name or folder, see `mask2iv_ros.data.segment`.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        actor: text that names the actor.
        objects: texts that name the object; None: taken from the task.
        masks: folder with '<episode>/' of one PNG a frame.
        actor_masks: folder with '<episode>.mp4', a video of the actor's mask, such as a rendered robot.
        first_masks: folder with '<episode>.png', a label image of the first frame.
    """

    def __init__(
        self,
        detector: str = DETECTOR,
        segmenter: str = SEGMENTER,
        device: str = 'auto',
        actor: str = ACTOR_PROMPT,
        objects: Sequence[str] | None = None,
        masks: Path | None = None,
        actor_masks: Path | None = None,
        first_masks: Path | None = None,
    ):
        self._names, self._device = (detector, segmenter), device
        self.actor, self.objects = actor, objects
        self.masks, self.actor_masks, self.first_masks = masks, actor_masks, first_masks

    @cached_property
    def detector(self) -> Detector:
        return Detector(self._names[0], self._device)

    @cached_property
    def segmenter(self) -> VideoSegmenter:
        return VideoSegmenter(self._names[1], self._device)

    def __call__(self, name: str, clip: InteractionClip) -> SegmentationResult:
        """Masks of the episode `name`; BadEpisode if its mask files do not fit it."""
        try:
            known, first = self._known(name, clip)
        except (ValueError, OSError) as error:
            raise BadEpisode(f'episode {name}: {error}') from error
        wanted = {OBJECT, ACTOR}
        found = wanted & set(np.unique(known)) if known is not None else set()
        started = found | (set(np.unique(first)) if first is not None else set())
        return segment_clip(
            clip,
            None if found == wanted else self.segmenter,
            None if wanted <= started else self.detector,
            actor=self.actor,
            objects=self.objects,
            first=first,
            known=known,
        )

    def models(self) -> dict[str, str]:
        """Names of the models that have been used, for provenance."""
        return {role: getattr(self, role).name for role in ('detector', 'segmenter') if role in vars(self)}

    def _known(self, name: str, clip: InteractionClip) -> tuple[np.ndarray | None, np.ndarray | None]:
        size = clip.frames.shape[1:3]
        known, first = clip.labels, None
        if self.masks:
            known = _fill(known, read_mask_folder(self.masks / name, len(clip), size))
        if self.actor_masks:
            known = _fill(known, read_mask_video(self.actor_masks / f'{name}.mp4', len(clip), size))
        if self.first_masks:
            first = read_mask_image(self.first_masks / f'{name}.png', size)
        return known, first


def _fill(known: np.ndarray | None, more: np.ndarray) -> np.ndarray:
    return more if known is None else np.where(known == BACKGROUND, more, known)


def segment_dataset(
    reader: EpisodeReader,
    out: Path,
    segment: DatasetSegmenter,
    camera: str | None = None,
    skipped: list[BadEpisode] | None = None,
    options: Mapping[str, object] | None = None,
) -> tuple[int, list[str]]:
    """Write the episodes of `reader` that get masks to the LeRobot dataset `out`; a stopped run is continued.

    Contact sheets of all episodes, rejected ones too, go to `<out>_review/`.

    Args:
        options: that masks depend on; see `copy_episodes`.

    Returns:
        Number of episodes in `out`, and why others were rejected in this run.
    """
    review = out.with_name(f'{out.name}_review')
    review.mkdir(parents=True, exist_ok=True)
    rows: dict[str, np.ndarray] = {}
    rejected: list[str] = []

    drawn = 0

    def write_sheet(last: int) -> None:
        if rows:
            sheet = contact_sheet(rows, SHEET_WIDTH, SHEET_COLUMNS)
            write_picture(review / f'until_{last:06d}.jpg', sheet)
            rows.clear()

    def change(index: int, views: dict[str, InteractionClip]) -> dict[str, InteractionClip] | None:
        name = reader.episode(index).name
        ((view, clip),) = views.items()
        result = segment(name, clip)
        nonlocal drawn
        drawn = index
        rows.update(review_rows([(f'{index} {name}: {clip.task}', clip, result)], SHEET_COLUMNS, SHEET_WIDTH))
        if len(rows) == SHEET_ROWS or index == len(reader) - 1:
            write_sheet(index)
        if result.labels is None:
            rejected.append(f'{name}: {result.reasons[0]}')
            return None
        clip.labels = result.labels
        clip.source['masks'] = {**segment.models(), **result.scores}
        return {view: clip}

    cameras = None if camera is None else (camera,)
    if cameras is None and len(reader):
        cameras = reader.episode(0).cameras[:1]
    try:
        count = copy_episodes(reader, out, cameras, change=change, skipped=skipped, options=options)
    finally:
        write_sheet(drawn)
    return count, rejected
