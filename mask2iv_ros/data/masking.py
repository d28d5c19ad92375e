"""`mask2iv segment`: a copy of a dataset with masks, and contact sheets to judge them by."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data import lerobot as lr
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader, files_id
from mask2iv_ros.data.lerobot_copy import copy_with_texts
from mask2iv_ros.data.lerobot_reader import LeRobotReader
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
from mask2iv_ros.data.transfer import ORIGIN, check_origin, copy_episodes
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

    def files(self, name: str) -> list[Path]:
        """Files and folders, there or not, that the masks of the episode `name` depend on."""
        paths = (
            self.masks and self.masks / name,
            self.actor_masks and self.actor_masks / f'{name}.mp4',
            self.first_masks and self.first_masks / f'{name}.png',
        )
        return [path for path in paths if path]

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

    Of a LeRobot dataset, `out` is a full copy with `annotation.masks.<camera>` and `annotation.source` added.
    Of another, it has the segmented camera, as `mask2iv import` writes it. Contact sheets of all episodes,
    rejected ones too, go to `<out>_review/`, and so does what was drawn of a LeRobot dataset.

    Args:
        camera: name; None for the first.
        skipped: if given, damaged episodes are appended here and passed over instead of raised.
        options: that masks depend on; `out` is continued with no others.

    Returns:
        Number of episodes in `out`, and why others were rejected (where a run is continued, of a LeRobot
        dataset also those of former runs).

    Raises:
        ValueError: `out` is something else, or was made with other options.
        BlockingIOError: another process segments into `out`.
        BadEpisode, IncompatibleDataset, OSError: as reading and writing raise; what was drawn stays.
    """
    if camera is None and len(reader):
        camera = reader.episode(0).cameras[0]
    rejected: list[str] = []
    sheets = _Sheets(out.with_name(f'{out.name}_review'))

    def draw(index: int, clip: InteractionClip) -> str | None:
        """Give a clip its masks, or return why it gets none."""
        name = reader.episode(index).name
        result = segment(name, clip)
        sheets.add(index, f'{index} {name}: {clip.task}', clip, result)
        if result.labels is None:
            return f'{name}: {result.reasons[0]}'
        clip.labels = result.labels
        clip.source['masks'] = {**segment.models(), **result.scores}
        return None

    def change(index: int, views: dict[str, InteractionClip]) -> dict[str, InteractionClip] | None:
        (clip,) = views.values()
        if reason := draw(index, clip):
            rejected.append(reason)
            return None
        return views

    if isinstance(reader, LeRobotReader):
        job = {'dataset': str(reader.path.resolve()), 'options': {**(options or {}), 'camera': camera}}
        return _MaskedCopy(reader, out, sheets.folder / 'masks', job, segment.files).make(draw, skipped)
    count = copy_episodes(reader, out, camera and (camera,), False, None, change, skipped, options)
    return count, rejected


class _Sheets:
    """Contact sheets of `SHEET_ROWS` episodes each in a folder, complete after each episode."""

    def __init__(self, folder: Path):
        self.folder, self._rows, self._first, self._path = folder, {}, 0, None

    def add(self, index: int, title: str, clip: InteractionClip, result: SegmentationResult) -> None:
        if len(self._rows) in (0, SHEET_ROWS):
            self._rows, self._first, self._path = {}, index, None
        self._rows.update(review_rows([(title, clip, result)], SHEET_COLUMNS, SHEET_WIDTH))
        self.folder.mkdir(parents=True, exist_ok=True)
        former, self._path = self._path, self.folder / f'{self._first:06d}_to_{index:06d}.jpg'
        write_picture(self._path, contact_sheet(self._rows, SHEET_WIDTH, SHEET_COLUMNS))
        if former:
            former.unlink(missing_ok=True)


class _MaskedCopy:
    """A LeRobot dataset with masks, made of another at once when all its episodes are segmented.

    What is drawn is kept in a file an episode, and drawn anew only where the episode or the files given for
    it have changed. So a stopped run goes on, and so does one whose source has more episodes than before.

    Args:
        out: folder of the copy; its siblings `.<name>.*` are used while it is made.
        drawn: folder for what is drawn.
        job: 'dataset' and 'options', JSON-serialisable; `out` is made anew for no others.
        given: name of an episode -> files and folders that its masks depend on beside the dataset.
    """

    def __init__(
        self, reader: LeRobotReader, out: Path, drawn: Path, job: dict, given: Callable[[str], list[Path]]
    ):
        self.reader, self.out, self.drawn, self.given = reader, out.resolve(), drawn, given
        self.job = json.loads(json.dumps(job))
        self.camera = job['options']['camera']
        self._sidecar = self.out / 'meta/mask2iv_segmentation.json'

    def make(
        self, draw: Callable[[int, InteractionClip], str | None], skipped: list[BadEpisode] | None
    ) -> tuple[int, list[str]]:
        """See `segment_dataset`; `draw` gives a clip masks, or says why it gets none."""
        if self.reader.path.resolve() in (self.out, *self.out.parents):
            raise ValueError(f'{self.out} is in the source, which is never written to')
        self.drawn.mkdir(parents=True, exist_ok=True)
        with lr.locked(self.drawn / 'lock', f'segments into {self.out}'):
            self._recover()
            made = json.loads(self._sidecar.read_text()) if self._sidecar.is_file() else {}
            if lr.is_filled(self.out):
                check_origin(self.out, made, self.job)
            now = {**self.job, 'files': self._files()}
            if {**made, **now} == made and not made['bad']:
                return len(made['episodes']), made['rejected']
            now |= {'episodes': [], 'rejected': [], 'bad': []}
            for index in tqdm(range(len(self.reader)), desc=str(self.out), unit='episode'):
                try:
                    reason = self._drawn(index, draw)
                except BadEpisode as error:
                    if skipped is None:
                        raise
                    skipped.append(error)
                    now['bad'].append(str(error))
                else:
                    now['rejected' if reason else 'episodes'].append(reason or index)
            if now['episodes'] and now != made:
                self._copy(now)
            return len(now['episodes']), now['rejected']

    def _files(self) -> list[str]:
        """Changes with the source, and with the files given for it."""
        given = [files_id(path) for i in range(len(self.reader)) for path in self.given(self._name(i))]
        return [files_id(self.reader.path), hashlib.sha256(' '.join(given).encode()).hexdigest()]

    def _name(self, index: int) -> str:
        return self.reader.episode(index).name

    def _drawn(self, index: int, draw: Callable[[int, InteractionClip], str | None]) -> str | None:
        """See that an episode is drawn as it is now; returns why it was rejected, if it was."""
        given = [files_id(path) for path in self.given(self._name(index))]
        made_of = {**self.job, **self.reader.identity(index, self.camera), 'given': given}
        path = self._path(index)
        if path.is_file() and (record := _unpack(path))['made_of'] == made_of:
            return record['rejected']
        self.reader.with_depth = False
        clip = self.reader.read(index, camera=self.camera)
        record = {'made_of': made_of, 'rejected': draw(index, clip), 'texts': {}}
        if record['rejected'] is None:
            clip.source[ORIGIN] = {'dataset': self.job['dataset'], 'index': index}
            rows = list(lr.clip_rows({self.camera: clip}))
            for column in (lr.MASKS_KEY.format(self.camera), lr.SOURCE_KEY):
                record['texts'][column] = [row[column] for row in rows]
        partial = path.with_suffix('.partial')
        partial.write_bytes(gzip.compress(json.dumps(record).encode()))
        partial.rename(path)
        return record['rejected']

    def _path(self, index: int) -> Path:
        return self.drawn / f'episode_{index:06d}.json.gz'

    def _copy(self, account: dict) -> None:
        """Put a copy of the episodes with masks at `out`, whole or not at all."""
        new, old = self._sibling('new'), self._sibling('old')
        try:
            copy_with_texts(self.reader, new, account['episodes'], lambda i: _unpack(self._path(i))['texts'])
            sidecar = new / self._sidecar.relative_to(self.out)
            sidecar.write_text(json.dumps(account, indent=2) + '\n')
            if self.out.exists():
                self.out.rename(old)
            new.rename(self.out)
        finally:
            self._recover()

    def _sibling(self, role: str) -> Path:
        return self.out.with_name(f'.{self.out.name}.{role}')

    def _recover(self) -> None:
        """Clear what an unfinished copy left, and put the former one back if it was being replaced."""
        if self._sibling('old').exists() and not self.out.exists():
            self._sibling('old').rename(self.out)
        for role in ('old', 'new'):
            shutil.rmtree(self._sibling(role), ignore_errors=True)


def _unpack(path: Path) -> dict:
    return json.loads(gzip.decompress(path.read_bytes()))
