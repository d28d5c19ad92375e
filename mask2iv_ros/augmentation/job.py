"""`mask2iv augment`: every episode of a dataset in several variants, gated, written, and joined in the end.

Each finished episode is at once a dataset of its own in the folder `OUT.parts`, and each rejected one a
file, so that the same command continues a stopped job and repeats nothing. Parts are made by `Worker`s:
one here, or several on a Ray cluster, whose machines must share that folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros import __version__
from mask2iv_ros.augmentation import output
from mask2iv_ros.augmentation.card import dataset_card
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader, open_dataset
from mask2iv_ros.data.lerobot import load_metadata
from mask2iv_ros.data.transfer import set_rate

#: Makes an episode of one: {camera: clip} and a seed, which alone decides what is drawn -> {camera: clip}.
Method = Callable[[Mapping[str, InteractionClip], int], dict[str, InteractionClip]]
#: Measures an episode for the gates: source by camera, made by camera, and as the keyword `others` a list of
#: what was kept of the variants before it, as read back -> values by gate; nan where nothing is to measure.
Measure = Callable[..., dict[str, float]]
#: Loads what a worker needs; must be picklable for Ray.
Build = Callable[[], tuple[Method, Measure | None]]

#: Times that an episode is tried on Ray whose worker died.
RAY_RETRIES = 2

#: Episodes in a row that find the disk full before the job stops.
FULL_DISK_PATIENCE = 3


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
        include_source: whether each recorded episode comes before its variants.
        hold_out: this fraction of each task's episodes, the last ones, gets no variants; with
            `include_source` they are the last of the output.
        method: what else is known of the method (model, hash of its weights, edits), for provenance.
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
    include_source: bool = False
    hold_out: float = 0.0
    method: dict = field(default_factory=dict)
    license: str | None = None
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.variants < 1:
            raise ValueError(f'variants: expected at least 1, got {self.variants}')
        if not 0 <= self.hold_out < 1:
            raise ValueError(f'hold_out: expected a fraction from 0 to below 1, got {self.hold_out}')
        if self.mode == 'new_motion' and self.other_cameras == 'keep':
            raise ValueError('other cameras cannot be kept as recorded: they would show another motion')


@dataclass(frozen=True)
class Outcome:
    """What became of one variant of one episode (variant 0: as recorded).

    `kind` is 'kept', 'rejected' (by a gate) or 'failed'; `passing` tells a failure of the machine, which may
    be gone at the next try, from one of the episode.
    """

    episode: int
    variant: int
    kind: str
    reason: str = ''
    passing: bool = False
    full_disk: bool = False


@dataclass
class Report:
    """What a job did.

    Attributes:
        counts: 'generated', 'recorded', 'rejected' and 'failed' episodes, of all runs of the job.
        dropped_by_gate: gate -> episodes that it dropped; one may fail several.
        failed: reasons, one a failed episode.
        complete: whether the output is there. It is not where the machine failed; the same command goes on.
        episodes_per_hour: generated in this run, rejected ones included; None if none was.
    """

    counts: dict[str, int]
    dropped_by_gate: dict[str, int]
    failed: list[str]
    complete: bool
    episodes_per_hour: float | None = None


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
        self.reader.with_depth = bool(self.form.depth_keys)
        self.method, self.measure = None, None

    def ready(self) -> None:
        """Load the model."""
        if self.method is None:
            self.method, self.measure = self.build()
            if self.thresholds is not None and self.measure is None:
                raise ValueError('expected something that measures, because there are thresholds; got none')

    def run(self, episode: int, variants: Iterable[int]) -> Iterator[Outcome]:
        """Make variants of an episode, each as it is finished; errors of an episode are outcomes too."""
        self.ready()
        views, others = None, {}
        for variant in variants:
            try:
                if (self.parts / part_name(episode, variant)).is_dir():  # by a worker that died afterwards
                    yield Outcome(episode, variant, 'kept')
                    continue
                if views is None:
                    views = self._read(episode)
                yield self._make(views, others, episode, variant)
            except Exception as error:
                yield _failure(error, episode, variant)

    def run_all(self, episode: int, variants: Iterable[int]) -> list[Outcome]:
        """`run` for callers that cannot wait for one at a time."""
        return list(self.run(episode, variants))

    def _read(self, episode: int) -> dict[str, InteractionClip]:
        views = {}
        for camera in (*self.names['generated'], *self.names['recorded']):
            views[camera] = self.reader.read(episode, camera=camera)
            set_rate(views[camera], self.form.fps)
            if earlier := views[camera].source.pop('augmentation', None):  # the source was made like this
                views[camera].source['earlier_augmentation'] = earlier
        return views

    def _kept_before(self, others: dict[int, dict], episode: int, variant: int) -> list[dict]:
        """Variants with lower numbers that passed: decoded, so that a continued job measures the same."""
        for earlier in range(1, variant):
            part = self.parts / part_name(episode, earlier)
            if earlier not in others and part.is_dir():
                with output.tables_cached_in(self.parts / f'.{part.name}.{uuid.uuid4().hex}'):
                    made = open_dataset(part)
                    others[earlier] = {name: made.read(0, camera=name) for name in self.names['generated']}
        return [others[earlier] for earlier in sorted(others)]

    def _make(self, views: dict, others: dict[int, dict], episode: int, variant: int) -> Outcome:
        name = self.reader.episode(episode).name
        dataset = Path(self.job.source).name
        record = {
            'source_dataset': dataset,
            'source_episode': episode,
            'source_name': name,
            'split_group': f'{dataset}/{episode}',
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
                kept = self._kept_before(others, episode, variant)
                values = self.measure(source, generated, others=kept)
                record['gates'] = {key: None if math.isnan(v) else float(v) for key, v in values.items()}
                failures = self.thresholds.failures(values) if self.thresholds else []
            made |= generated
        if failures:
            _write_json(self.parts / f'{part_name(episode, variant)}.json', {**record, 'failures': failures})
            return Outcome(episode, variant, 'rejected', ', '.join(failures))
        columns = {}
        if not variant or self.job.mode == 'same_motion':
            columns = output.recorded_columns(self.reader, episode, self.form)
        for camera, clip in made.items():
            made[camera] = _with_source(clip, {**views[camera].source, 'augmentation': record})
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


def augment(
    job: Job,
    out: str | Path,
    build: Build,
    thresholds=None,
    executor: str = 'local',
    workers: int | None = None,
) -> Report:
    """Do a job, or what is left of it.

    Args:
        out: folder of the LeRobot dataset; `out`.parts beside it holds what is finished until all is.
        build: loads method and measure, in each worker.
        thresholds: `failures(values)` names the gates that an episode fails; None keeps every episode.
        executor: 'local', or 'ray': the cluster of RAY_ADDRESS, else a new one on this machine.
        workers: on Ray; None for one a GPU, or where there is none one a CPU.

    Raises:
        ValueError: `out` is of another job (the message says what differs) or something else; or the source
            does not fit the options.
        BlockingIOError: another process does this job.
        RuntimeError: no episode was kept.
    """
    out = Path(out).resolve()
    parts = out.with_name(f'{out.name}.parts')
    reader = open_dataset(job.source, **job.options)
    if Path(job.source).resolve() in (out, *out.parents):
        raise ValueError(f'{out} is in the source, which is never written to')
    order, held_out, unreadable = plan(reader, job)
    identity = {
        **asdict(job),
        'source': str(Path(job.source).resolve()),
        'source_content': _fingerprint(reader),
        'thresholds': _facts(thresholds),
    }
    identity = json.loads(json.dumps(identity))
    if out.exists() and any(out.iterdir()):
        sidecar = out / output.SIDECAR
        account = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
        if 'identity' not in account:
            raise ValueError(f'{out}: is there already, and no output of `mask2iv augment`')
        _refuse_other(out, account['identity'], identity)
        shutil.rmtree(parts, ignore_errors=True)
        return Report(account['counts'], account['dropped_by_gate'], account['failed'], True)
    names, form = _layout(reader, job)
    del reader
    parts.mkdir(parents=True, exist_ok=True)
    with _locked(parts):
        if (parts / 'job.json').is_file():
            _refuse_other(parts, json.loads((parts / 'job.json').read_text()), identity)
        _write_json(parts / 'job.json', identity)
        for leftover in parts.glob('.*'):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        worker = Worker(job, parts, form, names, thresholds, build)
        failures, generated, seconds = _run(worker, order, executor, workers)
        failures = [*unreadable, *failures]
        account = _account(out.name, identity, job, parts, order, held_out, names, failures)
        report = Report(account['counts'], account['dropped_by_gate'], account['failed'], False)
        report.episodes_per_hour = generated / seconds * 3600 if generated else None
        if any(failure.passing for failure in failures):
            return report
        kept = [parts / part_name(*unit) for unit in order if (parts / part_name(*unit)).is_dir()]
        if not kept:
            raise RuntimeError(
                f'{out}: no episode was kept; dropped by gate: {report.dropped_by_gate or "none"}, '
                f'failed: {"; ".join(report.failed) or "none"}. {parts} says more; remove it to try anew'
            )
        shutil.rmtree(parts / 'joined', ignore_errors=True)
        joined = output.join(kept, form, parts / 'joined')
        _finish(joined, account, form)
        if out.exists():
            out.rmdir()
        joined.rename(out)
    shutil.rmtree(parts, ignore_errors=True)
    report.complete = True
    return report


def plan(reader: EpisodeReader, job: Job) -> tuple[list[tuple[int, int]], set[int], list[Outcome]]:
    """What there is to make.

    Returns:
        (episode, variant) of each, in the order of the output; held-out episodes; unreadable episodes.
    """
    by_task: dict[str, list[int]] = {}
    unreadable = []
    for index in range(len(reader)):
        try:
            by_task.setdefault(reader.episode(index).task, []).append(index)
        except BadEpisode as error:
            unreadable.append(_failure(error, index, 0))
    held_out = set()
    for episodes in by_task.values():
        count = min(math.ceil(len(episodes) * job.hold_out), len(episodes) - 1)
        held_out |= set(episodes[len(episodes) - count :])
    order = []
    listed = sorted(episode for episodes in by_task.values() for episode in episodes)
    for episode in (episode for episode in listed if episode not in held_out):
        order += [(episode, variant) for variant in range(0 if job.include_source else 1, job.variants + 1)]
    if job.include_source:
        order += [(episode, 0) for episode in listed if episode in held_out]
    return order, held_out, unreadable


def draw_seed(seed: int, episode: int, variant: int) -> int:
    """The seed of one generated episode: independent of all others, and of who makes it and when."""
    return int(np.random.SeedSequence([seed, episode, variant]).generate_state(1)[0])


def part_name(episode: int, variant: int) -> str:
    """Name of a part in `OUT.parts`."""
    return f'episode_{episode:06d}_variant_{variant:03d}'


def _layout(reader: EpisodeReader, job: Job) -> tuple[dict[str, list[str]], output.OutputFormat]:
    """Which cameras are generated, kept as recorded and dropped; and the format of the output."""
    episode = reader.episode(0)
    if not episode.masked:
        raise ValueError(f'{reader.path}: expected masks, which `mask2iv segment` draws; got none')
    wanted = list(job.cameras or episode.masked)
    if unmasked := sorted(set(wanted) - set(episode.masked)):
        raise ValueError(
            f'{reader.path}: no masks of {", ".join(unmasked)}; there are of {", ".join(episode.masked)}'
        )
    others = [camera for camera in episode.cameras if camera not in wanted]
    if others and job.other_cameras is None:
        raise ValueError(
            f'{reader.path}: {", ".join(others)} would not be generated; say --other-cameras keep (as '
            'recorded, with the old looks) or drop (the output then only merges with a source without them)'
        )
    keep = job.other_cameras == 'keep'
    names = {'generated': wanted, 'recorded': others if keep else [], 'dropped': [] if keep else others}
    cameras = [*names['generated'], *names['recorded']]
    return names, output.output_format(reader, cameras, job.drop, job.mode == 'same_motion')


def _run(
    worker: Worker, order: list[tuple[int, int]], executor: str, workers: int | None
) -> tuple[list[Outcome], int, float]:
    """Make all parts that are not there; returns failures, number of episodes generated, and seconds."""
    done = {path.name.removesuffix('.json') for path in worker.parts.glob('episode_*')}
    tasks: dict[int, list[int]] = {}
    for episode, variant in order:
        if part_name(episode, variant) not in done:
            tasks.setdefault(episode, []).append(variant)
    runs = {'local': _run_here, 'ray': _run_on_ray}
    if executor not in runs:
        raise ValueError(f'executor {executor!r}: expected {" or ".join(runs)}')
    counts = Counter(path.suffix for path in worker.parts.glob('episode_*'))
    bar = {'kept': counts[''], 'rejected': counts['.json'], 'failed': 0}
    failures, generated, full, start = [], 0, 0, time.monotonic()
    if not tasks:
        return failures, generated, 0.0
    with tqdm(total=len(order), initial=sum(counts.values()), unit='episode', desc='augment') as progress:
        progress.set_postfix(bar)
        for outcome in runs[executor](worker, tasks, workers):
            bar[outcome.kind] += 1
            generated += outcome.variant > 0 and outcome.kind != 'failed'
            progress.set_postfix(bar, refresh=False)
            progress.update()
            if outcome.kind == 'failed':
                failures.append(outcome)
                tqdm.write(f'failed: {outcome.reason}', file=sys.stderr)
            full = full + 1 if outcome.full_disk else 0
            if full == FULL_DISK_PATIENCE:
                break
    return failures, generated, time.monotonic() - start


def _run_here(worker: Worker, tasks: dict[int, list[int]], _: int | None) -> Iterator[Outcome]:
    worker.ready()
    for episode, variants in tasks.items():
        yield from worker.run(episode, variants)


def _run_on_ray(worker: Worker, tasks: dict[int, list[int]], workers: int | None) -> Iterator[Outcome]:
    """Actors hold the model; an episode with its variants is a task; Ray restarts and retries what died."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("--executor ray needs Ray: pip install 'mask2iv-ros[ray]'") from error

    owned = not ray.is_initialized()
    if owned:
        ray.init(log_to_driver=False, logging_level='warning', include_dashboard=False)
    try:
        gpus = int(ray.cluster_resources().get('GPU', 0))
        count = workers or gpus or int(ray.cluster_resources()['CPU'])
        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=min(1, gpus / count), max_restarts=-1, max_task_retries=RAY_RETRIES
        )
        arguments = (worker.job, worker.parts, worker.form, worker.names, worker.thresholds, worker.build)
        idle = [actor.remote(*arguments) for _ in range(min(count, len(tasks)))]
        ray.get([each.ready.remote() for each in idle])
        waiting, running = list(tasks.items())[::-1], {}
        while waiting or running:
            while waiting and idle:
                episode, variants = waiting.pop()
                each = idle.pop()
                running[each.run_all.remote(episode, variants)] = each, episode, variants
            (reference,), _ = ray.wait(list(running), num_returns=1)
            each, episode, variants = running.pop(reference)
            try:
                outcomes = ray.get(reference)
            except ray.exceptions.RayError as error:
                message = str(error).strip().split('\n')[0]
                outcomes = [
                    Outcome(
                        episode,
                        variant,
                        'failed',
                        f'{part_name(episode, variant)}: its worker died: {message}',
                    )
                    for variant in variants
                ]
            idle.append(each)
            yield from outcomes
    finally:
        if owned:
            ray.shutdown()


def _with_less_memory(method: Method, views: Mapping[str, InteractionClip], seed: int):
    """Call a method; where memory runs out, once more with all freed, and with half its `batch_size`."""
    try:
        return method(views, seed)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
    import torch

    if getattr(method, 'batch_size', 1) > 1:
        method.batch_size //= 2
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return method(views, seed)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        frames = next(iter(views.values())).frames.shape
        raise MemoryError(
            f'out of memory, twice, with an episode of {len(views)} x {frames} pixels'
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _failure(error: Exception, episode: int, variant: int) -> Outcome:
    known = isinstance(error, (ValueError, OSError, MemoryError))
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return Outcome(
        episode,
        variant,
        'failed',
        f'{part_name(episode, variant)}: {error if known else repr(error)}',
        passing=isinstance(error, (OSError, MemoryError)),
        full_disk=full,
    )


def _with_source(clip: InteractionClip, source: dict) -> InteractionClip:
    clip = copy(clip)
    clip.source = source
    return clip


def _account(
    name: str,
    identity: dict,
    job: Job,
    parts: Path,
    order: list[tuple[int, int]],
    held_out: set[int],
    names: dict[str, list[str]],
    failures: list[Outcome],
) -> dict:
    """The content of the sidecar file: all that is known of the job, and of each episode."""
    episodes, rejected = [], []
    for unit in order:
        part = parts / part_name(*unit)
        if part.is_dir():
            record = json.loads((part / output.SIDECAR).read_text())
            episodes.append({'episode_index': len(episodes), **record})
        elif (path := part.with_name(f'{part.name}.json')).is_file():
            rejected.append(json.loads(path.read_text()))
    recorded = sum(not record['variant'] for record in episodes)
    return {
        'name': name,
        'mask2iv_ros': __version__,
        'identity': identity,
        'cameras': names,
        'source_episodes': identity['source_content']['episodes'],
        'held_out': sorted(held_out),
        'counts': {
            'generated': len(episodes) - recorded,
            'recorded': recorded,
            'rejected': len(rejected),
            'failed': len(failures),
        },
        'dropped_by_gate': dict(Counter(gate for record in rejected for gate in record['failures'])),
        'failed': [failure.reason for failure in failures],
        'episodes': episodes,
        'rejected': rejected,
    }


def _finish(root: Path, account: dict, form: output.OutputFormat) -> None:
    """Put sidecar and card into a joined dataset."""
    meta = load_metadata(root)
    tasks = [names[0] for names in meta.episodes['tasks']]
    account['counts']['frames'] = meta.total_frames
    held_out = set(account['held_out'])
    is_held_out = [record['source_episode'] in held_out for record in account['episodes']]
    account['safe_eval_split'] = output.safe_eval_split(tasks, is_held_out)
    _write_json(root / output.SIDECAR, account)
    (root / 'README.md').write_text(dataset_card(account, form))


def _fingerprint(reader: EpisodeReader) -> dict:
    digest = hashlib.sha256()
    for index in range(len(reader)):
        with contextlib.suppress(BadEpisode):
            digest.update(repr(reader.episode(index)).encode())
    return {'episodes': len(reader), 'sha256': digest.hexdigest()}


def _facts(thresholds) -> dict:
    return asdict(thresholds) if thresholds is not None else {}


def _refuse_other(path: Path, have: dict, want: dict) -> None:
    if differing := [key for key in sorted(have | want) if have.get(key) != want.get(key)]:
        told = '; '.join(f'{key}: {have.get(key)!r} there, {want.get(key)!r} now' for key in differing)
        raise ValueError(f'{path} is of another command, which differs in {told}')


@contextlib.contextmanager
def _locked(parts: Path) -> Iterator[None]:
    with open(parts / 'lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f'another process augments into {parts}') from None
        yield


def _write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    temporary.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(temporary, path)
