"""Episodes an hour of `mask2iv augment`, here and on Ray, and its memory. Writes JSON and a table.

    python benchmarks/augment_scale.py SOURCE [--segmenter FOLDER] [--variants 20] [--drawn 1] [--workers 1 2]
    python benchmarks/augment_scale.py SOURCE --flat 1000        # memory alone, into the same files

SOURCE is a LeRobot v3 dataset with masks; `results/` have the first six demonstrations of `policy_gain.py`.

Rows: episodes that are repainted, as the command does it if
nothing else is said, ungated and (with --segmenter) gated; and episodes that the model draws (`--keep
background`). Each in this process, and on Ray with each number of workers; each makes all of SOURCE anew.
Loading a model and joining the parts do not count in the episodes an hour, but in the seconds in all.
`--flat` instead repaints at least so many episodes in one process and keeps its resident memory at each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shlex
import tempfile
import time
from pathlib import Path

from mask2iv_ros.augmentation.job import augment
from mask2iv_ros.augmentation.method import build_method, build_thresholds, uses_gpu
from mask2iv_ros.augmentation.worker import Job
from mask2iv_ros.cli import build_parser
from mask2iv_ros.data.episodes import open_dataset

RESULTS = Path(__file__).parent / 'results' / 'augment_scale'


class Watched:
    """A method that notes this process's resident memory, in megabytes, whenever it is called."""

    def __init__(self, method, notes: list[float]):
        self.method, self.notes = method, notes

    def __call__(self, views, seed):
        self.notes.append(int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 1e6)
        return self.method(views, seed)


def build_watched(args, notes):
    method, measure = build_method(args)
    return Watched(method, notes), measure


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """What each kind of row adds to `mask2iv augment SOURCE OUT`."""
    variants = ['--variants', str(options.variants)]
    kinds = {'repainted': [*variants, '--ungated']}
    if options.segmenter:
        kinds['repainted, gated'] = [*variants, '--segmenter', str(options.segmenter)]
    if options.drawn:
        drawn = ['--keep', 'background', '--variants', str(options.drawn), '--ungated']
        drawn += ['--model', options.model] if options.model else []
        kinds['drawn by the model'] = drawn + (['--steps', str(options.steps)] if options.steps else [])
    return kinds


def measure_row(source: Path, command: list[str], workers: int, cameras, device: str) -> dict:
    asked = [*command, '--device', device]
    args = build_parser().parse_args(['augment', str(source), 'out', *asked])
    job = Job(str(source), variants=args.variants, cameras=cameras, other_cameras='drop')
    executor, load, start = 'ray' if workers else 'local', os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = augment(
            job,
            Path(folder) / 'out',
            functools.partial(build_method, args),
            build_thresholds(args),
            executor,
            workers or None,
            uses_gpu(args),
        )
    return {
        'command': shlex.join(Path(word).name if '/' in word else word for word in asked),
        'executor': executor,
        'workers': workers or 1,
        'episodes': report.counts['generated'] + report.counts['rejected'],
        'rejected': report.counts['rejected'],
        'failed': report.counts['failed'],
        'episodes_per_hour': report.episodes_per_hour,
        'seconds_in_all': time.monotonic() - start,
        'load_before': load,
    }


def measure_memory(source: Path, episodes: int, cameras) -> dict:
    """Resident memory at each of so many episodes, repainted in this process."""
    args = build_parser().parse_args(['augment', str(source), 'out', '--ungated', '--device', 'cpu'])
    variants, notes = -(-episodes // len(open_dataset(source))), []
    job = Job(str(source), variants=variants, cameras=cameras, other_cameras='drop')
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = augment(job, Path(folder) / 'out', functools.partial(build_watched, args, notes))
    return {
        'episodes': report.counts['generated'],
        'megabytes': [round(note) for note in notes[:: max(1, len(notes) // 100)]],
        'most_megabytes': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        'seconds': time.monotonic() - start,
        'episodes_per_hour': report.episodes_per_hour,
    }


def table(report: dict) -> str:
    frames = (
        f'{report["frames"] / report["episodes"]:.0f} frames of {" and ".join(report["sizes"])} an episode'
    )
    lines = [
        f'{report["episodes"]} episodes of `{report["source"]}`, {frames}; {report["cpus"]} CPUs; see '
        '`augment_scale.py`. Without loading and joining; the seconds are with both.',
        '',
        '| | by | episodes | an hour | seconds in all |',
        '|---|---|---|---|---|',
    ]
    for name, row in report['rows'].items():
        by = 'this process' if row['executor'] == 'local' else f'Ray, workers: {row["workers"]}'
        hourly = f'{row["episodes_per_hour"]:.0f}' if row['episodes_per_hour'] else '-'
        kind = name.rpartition(', ')[0]
        lines.append(f'| {kind} | {by} | {row["episodes"]} | {hourly} | {row["seconds_in_all"]:.0f} |')
    if memory := report.get('memory'):
        at = memory['megabytes']
        lines += [
            '',
            f'Memory over {memory["episodes"]} repainted episodes in one process: {at[len(at) // 10]} MB '
            f'after a tenth, {at[len(at) // 2]} after half, {at[-1]} at the end; at most '
            f'{memory["most_megabytes"]}, with joining.',
        ]
    return '\n'.join(lines) + '\n'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('--segmenter', type=Path, help='measures and gates a row of its own')
    parser.add_argument('--model', default='')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--steps', type=int, default=0, help='of the model; 0: as it says')
    parser.add_argument('--variants', type=int, default=20, help='repainted ones of each episode')
    parser.add_argument('--drawn', type=int, default=1, help='variants that the model draws; 0: none')
    parser.add_argument('--cameras', nargs='+')
    parser.add_argument(
        '--workers', type=int, nargs='*', default=[1, 2], help='rows on Ray, beside the local'
    )
    parser.add_argument('--flat', type=int, default=0, help='episodes over which memory is watched, instead')
    parser.add_argument(
        '-o', '--output', type=Path, default=RESULTS, help='result files, without their ending'
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault(
        'RAY_worker_niceness', '0'
    )  # as this process; Ray's 15 is slow where others work too
    path, cameras = options.output.with_suffix('.json'), options.cameras and tuple(options.cameras)
    reader = open_dataset(options.source)
    episodes = [reader.episode(index) for index in range(len(reader))]
    seen = [reader.read(0, [0], camera).frames.shape[1:3] for camera in cameras or episodes[0].masked]
    facts = {
        'source': options.source.name,
        'episodes': len(episodes),
        'frames': sum(episode.length for episode in episodes),
        'sizes': [f'{height}x{width}' for height, width in seen],
        'cpus': os.cpu_count(),
    }
    report = json.loads(path.read_text()) if path.is_file() else {}
    if any(report.get(key) != value for key, value in facts.items()):
        report = {**facts, 'rows': {}}
    if options.flat:
        report['memory'] = measure_memory(options.source, options.flat, cameras)
    else:
        report['rows'] = {}
        for kind, command in commands(options).items():
            for workers in (0, *options.workers):
                name = f'{kind}, {workers or "local"}'
                row = measure_row(options.source, command, workers, cameras, options.device)
                report['rows'][name] = row
                print(name, row, flush=True)
    path.write_text(json.dumps(report, indent=1) + '\n')
    path.with_suffix('.md').write_text(table(report))
    print(table(report))


if __name__ == '__main__':
    main()
