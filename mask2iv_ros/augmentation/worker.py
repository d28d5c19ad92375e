"""One job of `mask2iv augment`, and the worker that makes its episodes, one part of the result each."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mask2iv_ros.augmentation import output
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data import lerobot as lr
from mask2iv_ros.data.episodes import BadEpisode, open_dataset
from mask2iv_ros.data.transfer import set_rate

#: Makes an episode of one: {camera: clip} and a seed, which alone decides what is drawn -> {camera: clip}.
Method = Callable[[Mapping[str, InteractionClip], int], dict[str, InteractionClip]]
#: Measures an episode for the gates: source by camera, made by camera, and as the keyword `others` a list of
#: what was kept of the variants before it, as read back -> values by gate; nan where nothing is to measure.
#: If it has a method `reduced`, what that makes of a variant is kept of it instead of all. If it, or the
#: method, has a method `check`, that may refuse the source by the first frame of an episode.
Measure = Callable[..., dict[str, float]]
#: Loads what a worker needs; must be picklable, for workers in other processes.
Build = Callable[[], tuple[Method, Measure | None]]


@dataclass(frozen=True)
class Job:
    """What decides the result of a job; another one cannot continue it.

    Attributes:
        source: the dataset to augment; never written to.
        mode: 'same_motion' or 'new_motion', as the method has it.
        variants: generated episodes for each recorded one.
        seed: of all draws, with the numbers of episode and variant.
        cameras: to generate; None for all that have masks.
        other_cameras: what becomes of the rest: 'keep' (pictures as recorded), 'drop', or None, which refuses
            a source that has such.
        drop: names of features, with wildcards, that the output does without.
        include_source: how often each recorded episode comes before its variants.
        hold_out: this fraction of each task's demonstrations, the last ones, gets no variants; with
            `include_source` they are the last of the output, once each.
        method: what else is known of the method (model, hash of its weights, edits), for provenance. Names of
            folders and files ('model', 'name') may change when a job is continued.
        license: of the output, as an identifier of the Hugging Face Hub; None where unknown.
        options: of `open_dataset`.
    """

    source: str
    mode: str = 'same_motion'
    variants: int = 1
    seed: int = 0
    cameras: tuple[str, ...] | None = None
    other_cameras: str | None = None
    drop: tuple[str, ...] = ()
    include_source: int = 0
    hold_out: float = 0.0
    method: dict = field(default_factory=dict)
    license: str | None = None
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.variants < 1:
            raise ValueError(f'variants: expected at least 1, got {self.variants}')
        for name in ('seed', 'include_source'):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f'{name}: expected at least 0, got {value}')
        if not 0 <= self.hold_out < 1:
            raise ValueError(f'hold_out: expected a fraction from 0 to below 1, got {self.hold_out}')
        if self.mode == 'new_motion' and self.other_cameras == 'keep':
            raise ValueError('other cameras cannot be kept as recorded: they would show another motion')


@dataclass(frozen=True)
class Outcome:
    """What became of one variant of one episode (variant 0: as recorded).

    `kind` is 'kept', 'rejected' (by a gate) or 'failed'. `cause` of a failure is 'episode', or what of the
    machine failed: 'memory', 'worker' (it died), 'device' (an error of CUDA), 'disk' (full), or 'system'.
    """

    episode: int
    variant: int
    kind: str
    reason: str = ''
    cause: str = 'episode'

    @property
    def passing(self) -> bool:
        """Whether it is a failure that may be gone at the next try."""
        return self.kind == 'failed' and self.cause != 'episode'


@dataclass
class Worker:
    """Makes parts; owns the model and an open source.

    Attributes:
        names: of the source's cameras: 'generated' and 'recorded'.
    """

    job: Job
    parts: Path
    form: output.OutputFormat
    names: dict[str, list[str]]
    thresholds: object | None
    build: Build

    def __post_init__(self):
        self.reader = open_dataset(self.job.source, **self.job.options)
        self.reader.with_depth = False  # methods need none; what is recorded of it goes past them
        self.method, self.measure = None, None

    @property
    def arguments(self) -> tuple:
        """What makes one like it, in another process."""
        return self.job, self.parts, self.form, self.names, self.thresholds, self.build

    def ready(self) -> None:
        """Load the model.

        Raises:
            ValueError: nothing measures, and there are thresholds; or the source is not what was trained on.
        """
        if self.method is None:
            self.method, self.measure = self.build()
            if self.thresholds is not None and self.measure is None:
                raise ValueError('expected something that measures, because there are thresholds; got none')
            self._check_source()

    def _check_source(self) -> None:
        """Let method and measure refuse the first frame of the first episode that can be read."""
        checks = [each.check for each in (self.method, self.measure) if hasattr(each, 'check')]
        for episode in range(len(self.reader)) if checks else ():
            with contextlib.suppress(BadEpisode):
                cameras = self.names['generated']
                views = {camera: self.reader.read(episode, [0], camera) for camera in cameras}
                for clip in views.values():
                    set_rate(clip, self.form.fps)
                for check in checks:
                    check(views)
                return

    def run(self, episode: int, variants: Iterable[int]) -> Iterator[Outcome]:
        """Make variants of an episode, each as it is finished; errors of an episode are outcomes too.

        Raises:
            IncompatibleDataset: what is written does not merge with the source; no other episode would.
        """
        self.ready()
        recorded, others = None, {}
        for variant in variants:
            try:
                if outcome := self.finished(episode, variant):  # by a worker that died afterwards
                    yield outcome
                    continue
                if recorded is None:
                    recorded = self._read(episode)
                yield self._make(*recorded, others, episode, variant)
            except Exception as error:
                outcome = failed(error, episode, variant)
                if isinstance(error, lr.IncompatibleDataset) and not outcome.passing:
                    raise
                yield outcome

    def finished(self, episode: int, variant: int) -> Outcome | None:
        """The outcome of what is made already, by whoever."""
        part = self.parts / part_name(episode, variant)
        if part.is_dir():
            return Outcome(episode, variant, 'kept')
        if part.with_name(f'{part.name}.json').is_file():
            return Outcome(episode, variant, 'rejected')
        return None

    def run_all(self, episode: int, variants: Iterable[int]) -> list[Outcome]:
        """`run` for callers that cannot wait for one at a time."""
        return list(self.run(episode, variants))

    def _read(self, episode: int) -> tuple[dict[str, InteractionClip], dict[str, list]]:
        """An episode by camera, and what of it an episode of the same motion takes as it is."""
        views = {}
        for camera in (*self.names['generated'], *self.names['recorded']):
            views[camera] = self.reader.read(episode, camera=camera)
            set_rate(views[camera], self.form.fps)
            if earlier := views[camera].source.pop('augmentation', None):  # the source was made like this
                views[camera].source['earlier_augmentation'] = earlier
        return views, output.recorded_columns(self.reader, episode, self.form)

    def _kept_before(self, views: dict, others: dict[int, dict], episode: int, variant: int) -> list[dict]:
        """Variants with lower numbers that passed: decoded, so that a continued job measures the same.

        Where the output has no masks, those of the source stand in.
        """
        for earlier in range(1, variant):
            part = self.parts / part_name(episode, earlier)
            if earlier not in others and part.is_dir():
                with output.tables_cached_in(self.parts / f'.{part.name}.{uuid.uuid4().hex}'):
                    made = open_dataset(part)
                    made.with_depth = False
                    kept = {name: made.read(0, camera=name) for name in self.names['generated']}
                for name, clip in kept.items():
                    clip.labels = views[name].labels if clip.labels is None else clip.labels
                others[earlier] = kept
                if hasattr(self.measure, 'reduced'):
                    others[earlier] = self.measure.reduced(others[earlier])
        return [others[earlier] for earlier in sorted(others)]

    def _make(
        self, views: dict, columns: dict, others: dict[int, dict], episode: int, variant: int
    ) -> Outcome:
        name = self.reader.episode(episode).name
        dataset = Path(self.job.source).name
        record = {
            'source_dataset': dataset,
            'source_episode': episode,
            'source_name': name,
            'split_group': self.reader.split_group(episode),
            'mode': self.job.mode if variant else output.AS_RECORDED,
            'variant': variant,
        }
        made = dict(views)
        failures = []
        if variant:
            seed = draw_seed(self.job.seed, episode, variant)
            source = {camera: views[camera] for camera in self.names['generated']}
            generated = _with_less_memory(self.method, source, seed)
            if set(generated) != set(source):
                raise ValueError(f'expected the cameras {", ".join(source)}, got {", ".join(generated)}')
            record |= {'seed': seed, **self.job.method}
            record['draws'] = {camera: clip.source.get('augmentation') for camera, clip in generated.items()}
            if self.measure is not None:
                kept = self._kept_before(views, others, episode, variant)
                values = _with_less_memory(self.measure, source, generated, others=kept)
                record['gates'] = {key: None if math.isnan(v) else float(v) for key, v in values.items()}
                failures = self.thresholds.failures(values) if self.thresholds else []
            made |= generated
        if failures:
            write_json(self.parts / f'{part_name(episode, variant)}.json', {**record, 'failures': failures})
            return Outcome(episode, variant, 'rejected', ', '.join(failures))
        for camera, clip in made.items():
            source = {**views[camera].source, 'augmentation': in_each_frame(record)}
            made[camera] = _with_source(clip, source)
        self._write(made, columns, record, part_name(episode, variant))
        return Outcome(episode, variant, 'kept')

    def _write(self, views: dict, columns: dict, record: dict, name: str) -> None:
        staging = self.parts / f'.{name}.{uuid.uuid4().hex}'
        output.write_episode(staging, self.form, views, columns, record)
        try:
            staging.rename(self.parts / name)
        except OSError:  # a worker that was thought dead was faster
            shutil.rmtree(staging)
            if not (self.parts / name).is_dir():
                raise


def draw_seed(seed: int, episode: int, variant: int) -> int:
    """The seed of one generated episode: independent of all others, and of who makes it and when."""
    return int(np.random.SeedSequence([seed, episode, variant]).generate_state(1)[0])


def part_name(episode: int, variant: int) -> str:
    """Name of a part in `OUT.parts`."""
    return f'episode_{episode:06d}_variant_{variant:03d}'


def _with_less_memory(make: Callable, views: Mapping[str, InteractionClip], *args, **options):
    """`make(views, ...)`; where memory runs out, once more with all freed, and with half its `batch_size`."""
    try:
        return make(views, *args, **options)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    import torch

    if getattr(make, 'batch_size', 1) > 1:
        make.batch_size //= 2
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return make(views, *args, **options)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        frames = next(iter(views.values())).frames.shape
        raise MemoryError(
            f'out of memory, twice, with an episode of {len(views)} x {frames} pixels'
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, the system's, torch's, or one of CUDA's libraries, which raise a RuntimeError."""
    if isinstance(error, RuntimeError):
        return re.search(r"can't allocate memory|out of memory|ALLOC_FAILED", str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def failed(error: Exception, episode: int, variant: int) -> Outcome:
    """The outcome of an error; on a full disk even a good file reads as damaged, which will pass."""
    cause = _cause(error)
    told = str(error) if isinstance(error, (ValueError, OSError, MemoryError)) else repr(error)
    if cause == 'disk' and not isinstance(error, OSError):
        told = f'{os.strerror(errno.ENOSPC)}: {told}'
    return Outcome(episode, variant, 'failed', f'{part_name(episode, variant)}: {told}', cause)


def _cause(error: Exception) -> str:
    """`Outcome.cause` of an error.

    After an error of CUDA nothing works in its process, so it says nothing of the episode that met it.
    """
    if lr.system_error(error) == errno.ENOSPC:
        return 'disk'
    if _is_out_of_memory(error):
        return 'memory'
    if isinstance(error, RuntimeError) and re.search('cuda|cudnn|cublas|accelerator', repr(error).lower()):
        return 'device'
    return 'system' if isinstance(error, OSError) else 'episode'


def in_each_frame(record: dict) -> dict:
    """What of a record stands in each frame of the tables: no palettes, 10 kB that the seed draws again."""
    if 'draws' not in record:
        return record

    def short(draw: dict | None) -> dict:
        return {k: v for k, v in (draw or {}).items() if k != 'look' or 'pictures' in v}

    return {**record, 'draws': {camera: short(draw) for camera, draw in record['draws'].items()}}


def _with_source(clip: InteractionClip, source: dict) -> InteractionClip:
    clip = copy(clip)
    clip.source = source
    return clip


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        temporary.write_text(json.dumps(content, indent=2) + '\n')
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
