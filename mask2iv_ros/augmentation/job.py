"""`mask2iv augment`: every episode of a dataset in several variants, gated, written, and joined in the end.

Each finished episode is at once a dataset of its own in the folder `OUT.parts`, and each rejected one a
file, so that the same command continues a stopped job and repeats nothing. Parts are made by `Worker`s:
one here, or several on a Ray cluster, whose machines must share that folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mask2iv_ros import __version__
from mask2iv_ros.augmentation import output
from mask2iv_ros.augmentation.card import dataset_card
from mask2iv_ros.augmentation.executors import EXECUTORS
from mask2iv_ros.augmentation.worker import Build, Job, Outcome, Worker, failed, part_name, write_json
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader, files_id, open_dataset, options_identity
from mask2iv_ros.data.lerobot import is_filled, load_metadata, locked, system_error

#: Episodes in a row that find the disk full, or the GPU in error, before the job stops: all others would.
PATIENCE = 3


@dataclass
class Report:
    """What a job did.

    Attributes:
        counts: 'generated', 'recorded', 'rejected' and 'failed' episodes, of all runs of the job.
        dropped_by_gate: gate -> episodes that it dropped; one may fail several.
        failed: reasons, one a failed episode.
        complete: whether the output is there. It is not where the machine failed; the same command goes on.
        episodes_per_hour: generated in this run since the model was loaded, rejected ones included; None if
            none was.
    """

    counts: dict[str, int]
    dropped_by_gate: dict[str, int]
    failed: list[str]
    complete: bool
    episodes_per_hour: float | None = None


def augment(
    job: Job,
    out: str | Path,
    build: Build,
    thresholds=None,
    executor: str = 'local',
    workers: int | None = None,
    gpu: bool = True,
) -> Report:
    """Do a job, or what is left of it.

    Args:
        out: folder of the LeRobot dataset; `out`.parts beside it holds what is finished until all is.
        build: loads method and measure, in each worker.
        thresholds: `failures(values)` names the gates that an episode fails; None keeps every episode.
        executor: 'local', or 'ray': the cluster of RAY_ADDRESS, else a new one on this machine.
        workers: on Ray; None for one a GPU, or one a CPU where none is there or needed.
        gpu: whether Ray gives each worker a share of the GPUs that are there.

    Raises:
        ValueError: `out` or `out`.parts is of another job (the message says what differs) or something else;
            or the source does not fit the options.
        IncompatibleDataset: what is written here does not merge with the source.
        BlockingIOError: another process does this job.
        RuntimeError: no episode was kept.
        OSError: the disk has no room for joining what is finished, which stays.
    """
    out, source = Path(out).resolve(), Path(job.source).resolve()
    parts = out.with_name(f'{out.name}.parts')
    reader = open_dataset(job.source, **job.options)
    if source in (out, *out.parents):
        raise ValueError(f'{out} is in the source, which is never written to')
    _refuse_overlap(parts, source)
    order, held_out, unreadable = plan(reader, job)
    identity = {
        **asdict(job),
        'source': source.name,
        'options': options_identity(job.options),
        'source_content': {'episodes': len(reader), 'files': files_id(reader.path)},
        'thresholds': _facts(thresholds),
        'parts': output.PARTS_VERSION,
    }
    identity = json.loads(json.dumps(identity))
    if is_filled(out):
        sidecar = out / output.SIDECAR
        account = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
        if 'identity' not in account:
            raise ValueError(f'{out}: is there already, and no output of `mask2iv augment`')
        _refuse_other(out, account['identity'], identity)
        if not _foreign(parts):
            shutil.rmtree(parts, ignore_errors=True)
        return Report(account['counts'], account['dropped_by_gate'], account['failed'], True)
    if not order:
        reasons = _first([outcome.reason for outcome in unreadable])
        raise ValueError(f'{job.source}: expected episodes to make variants of; could not be read: {reasons}')
    names, form = _layout(reader, job, list(dict.fromkeys(episode for episode, _ in order)))
    del reader
    if not output.has_actions(form.features):
        told = 'the output will have no actions, because the source has none or they are dropped'
        tqdm.write(f'{job.source}: {told}', file=sys.stderr)
    if found := _foreign(parts):
        raise ValueError(
            f'{parts}: expected nothing there, or what `mask2iv augment` left (job.json); found '
            f'{", ".join(found[:3])}. Move it, or choose another name for the output'
        )
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts / 'lock', f'augments into {parts}'):
        if any(parts.glob('episode_*')) and (parts / 'job.json').is_file():
            _refuse_other(parts, json.loads((parts / 'job.json').read_text()), identity)
        write_json(parts / 'job.json', identity)
        for leftover in parts.glob('.*'):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        worker = Worker(job, parts, form, names, thresholds, build)
        failures, generated, seconds = _run(worker, order, executor, workers, gpu)
        failures = [*unreadable, *failures]
        order = _repeated(order, job, held_out)
        account = _account(out.name, identity, job, parts, order, held_out, names, failures)
        report = Report(account['counts'], account['dropped_by_gate'], account['failed'], False)
        report.episodes_per_hour = generated / seconds * 3600 if generated else None
        if any(failure.passing for failure in failures):
            return report
        kept = [parts / part_name(*unit) for unit in order if (parts / part_name(*unit)).is_dir()]
        if not kept:
            raise RuntimeError(
                f'{out}: no episode was kept; dropped by gate: {report.dropped_by_gate or "none"}, '
                f'failed: {_first(report.failed)}. {parts} says more; remove it to try anew'
            )
        with _room_for_joining(parts):
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

    Raises:
        ValueError: episodes shall be held out, and of some their demonstration is not known.
    """
    tasks, groups, unreadable = {}, {}, []
    for index in range(len(reader)):
        try:
            task = reader.episode(index).task
            group = reader.split_group(index) if job.hold_out else str(index)
        except BadEpisode as error:
            unreadable.append(failed(error, index, 0))
        else:
            tasks[index], groups[index] = task, group
    if lost := [index for index, group in groups.items() if not group]:
        raise ValueError(
            f'{reader.path}: --hold-out: nobody knows which demonstration episode {lost[0]} shows, as after '
            'a merge of what was augmented with what was not; leave --hold-out away, or augment the source '
            'with --include-source'
        )
    held = output.last_groups(tasks.values(), groups.values(), job.hold_out)
    held_out = {index for index, group in groups.items() if group in held}
    order = []
    for episode in (episode for episode in tasks if episode not in held_out):
        order += [(episode, variant) for variant in range(0 if job.include_source else 1, job.variants + 1)]
    if job.include_source:
        order += [(episode, 0) for episode in tasks if episode in held_out]
    return order, held_out, unreadable


def _repeated(order: list[tuple[int, int]], job: Job, held_out: set[int]) -> list[tuple[int, int]]:
    """The order with recorded episodes as often as asked for; held-out ones once, lest a split part them."""
    return [
        (episode, variant)
        for episode, variant in order
        for _ in range(1 if variant or episode in held_out else job.include_source)
    ]


def _layout(
    reader: EpisodeReader, job: Job, episodes: list[int]
) -> tuple[dict[str, list[str]], output.OutputFormat]:
    """Which cameras are generated, kept as recorded and dropped; and the format of the output.

    Both are those of the first of `episodes` that can be read. Raises BadEpisode if none can.
    """
    for first in episodes[:-1]:
        with contextlib.suppress(BadEpisode):
            return _layout_of(reader, job, first)
    return _layout_of(reader, job, episodes[-1])


def _layout_of(
    reader: EpisodeReader, job: Job, first: int
) -> tuple[dict[str, list[str]], output.OutputFormat]:
    episode = reader.episode(first)
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
    return names, output.output_format(reader, first, cameras, job.drop, job.mode == 'same_motion')


def _run(
    worker: Worker, order: list[tuple[int, int]], executor: str, workers: int | None, gpu: bool
) -> tuple[list[Outcome], int, float]:
    """Make all parts that are not there; returns failures, number of episodes generated, and its seconds.

    An episode that takes too much memory is to blame itself if others were generated in this run, and one
    that takes its worker's life if others ever were: it may be the last one left.
    """
    done = {path.name.removesuffix('.json') for path in worker.parts.glob('episode_*')}
    tasks: dict[int, list[int]] = {}
    for episode, variant in order:
        if part_name(episode, variant) not in done:
            tasks.setdefault(episode, []).append(variant)
    if executor not in EXECUTORS:
        raise ValueError(f'executor {executor!r}: expected {" or ".join(EXECUTORS)}')
    counts = Counter(path.suffix for path in worker.parts.glob('episode_*'))
    bar = {'kept': counts[''], 'rejected': counts['.json'], 'failed': 0}
    failures, generated, generated_of, row = [], 0, set(), 0
    if not tasks:
        return failures, generated, 0.0
    generated_before = {unit[0] for unit in order if unit[1] and part_name(*unit) in done}
    with contextlib.closing(EXECUTORS[executor](worker, tasks, workers, gpu)) as outcomes:
        next(outcomes)
        start = time.monotonic()
        with tqdm(total=len(order), initial=sum(counts.values()), unit='episode', desc='augment') as progress:
            progress.set_postfix(bar)
            for outcome in outcomes:
                bar[outcome.kind] += 1
                if outcome.variant > 0 and outcome.kind != 'failed':
                    generated += 1
                    generated_of.add(outcome.episode)
                progress.set_postfix(bar, refresh=False)
                progress.update()
                if outcome.kind == 'failed':
                    failures.append(outcome)
                    tqdm.write(f'failed: {outcome.reason}', file=sys.stderr)
                row = row + 1 if outcome.cause in ('disk', 'device') else 0
                if row == PATIENCE:
                    break
    seconds = time.monotonic() - start
    for i, failure in enumerate(failures):
        others = generated_of | (generated_before if failure.cause == 'worker' else set())
        if failure.cause in ('memory', 'worker') and others - {failure.episode}:
            told = f'{failure.reason}; others could be made, so it is left out'
            failures[i] = replace(failure, cause='episode', reason=told)
    return failures, generated, seconds


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
    place = f'{Path(job.source).resolve().parent}/'  # private, and of no use to others
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
        'failed': [failure.reason.replace(place, '') for failure in failures],
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
    write_json(root / output.SIDECAR, account)
    (root / 'README.md').write_text(dataset_card(account, form))


@contextlib.contextmanager
def _room_for_joining(parts: Path) -> Iterator[None]:
    """Leave nothing half joined, and name a full disk, which LeRobot and `datasets` call anything else."""
    shutil.rmtree(parts / 'joined', ignore_errors=True)
    try:
        yield
    except BaseException as error:
        code = system_error(error, parts)
        shutil.rmtree(parts / 'joined', ignore_errors=True)
        if code == errno.ENOSPC and isinstance(error, Exception):
            raise OSError(
                code,
                f'no space left on device: all episodes are in {parts}; to join them takes at least as much '
                f'space again, some of it in {tempfile.gettempdir()}. Make room, and the same command goes '
                f'on. ({error})',
            ) from error
        raise


def _first(reasons: list[str]) -> str:
    more = f'; and {len(reasons) - 3} more' if len(reasons) > 3 else ''
    return '; '.join(reasons[:3]) + more or 'none'


def _facts(thresholds) -> dict:
    return asdict(thresholds) if thresholds is not None else {}


def _refuse_overlap(parts: Path, source: Path) -> None:
    real = parts.resolve()
    if real == source or real in source.parents or source in real.parents:
        raise ValueError(
            f'{parts}, which is removed in the end: expected a folder apart from the source, got one that '
            f'overlaps {source}. Choose another name for the output'
        )


def _foreign(parts: Path) -> list[str]:
    """What is in a folder of parts that no job made; [] for one that may be used, and removed in the end."""
    names = sorted(path.name for path in parts.iterdir()) if parts.exists() else []
    names = [name for name in names if name != 'lock' and not name.startswith('.job.json')]
    try:
        is_own = 'source_content' in json.loads((parts / 'job.json').read_text())
    except (OSError, ValueError, TypeError):
        is_own = False
    return [] if is_own else names


def _refuse_other(path: Path, have: dict, want: dict) -> None:
    if told := '; '.join(_differences(have, want)):
        raise ValueError(
            f'{path} is of another command, which differs in {told}. Repeat that one, choose another folder, '
            'or remove this one'
        )


def _differences(have, want, name: str = '') -> Iterator[str]:
    """What differs; not the names of folders and files, beside which their hashes stand."""
    if isinstance(have, dict) and isinstance(want, dict):
        for key in sorted((have | want).keys() - {'model', 'name', 'source'}):
            yield from _differences(have.get(key), want.get(key), f'{name}.{key}' if name else key)
    elif have != want:
        yield f'{name}: {have!r} there, {want!r} now'
