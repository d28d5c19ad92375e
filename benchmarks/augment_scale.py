"""Episodes an hour of `mask2iv augment`, here and on Ray, and whether memory stays flat. Writes JSON.

    python benchmarks/augment_scale.py SOURCE [--model FOLDER] [--variants 2] [--workers 1 2] [--flat 1000]

SOURCE is a LeRobot v3 dataset with masks. Rows: this process, and Ray with each number of workers; each makes
all of SOURCE anew; loading the model and joining the parts do not count. `--flat` then makes that many
variants of each episode of SOURCE in one process and keeps its resident memory at each.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
import time
from pathlib import Path

from mask2iv_ros.augmentation.job import augment
from mask2iv_ros.augmentation.method import build_method
from mask2iv_ros.augmentation.worker import Job
from mask2iv_ros.cli import build_parser


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('--model', default='')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--steps', type=int, default=0)
    parser.add_argument('--variants', type=int, default=2)
    parser.add_argument('--cameras', nargs='+')
    parser.add_argument('--workers', type=int, nargs='*', default=[1, 2])
    parser.add_argument('--flat', type=int, default=0)
    parser.add_argument('-o', '--out', type=Path, default=Path('benchmarks/results/augment_scale.json'))
    args = parser.parse_args()
    asked = ['augment', str(args.source), 'out', '--ungated', '--model', args.model, '--device', args.device]
    asked += ['--keep', 'background']
    command = build_parser().parse_args([*asked, '--steps', str(args.steps)])
    result = {'cpus': os.cpu_count(), 'load_before': os.getloadavg()[0], 'rows': []}
    cameras = args.cameras and tuple(args.cameras)
    job = Job(str(args.source), variants=args.variants, cameras=cameras, other_cameras='drop')
    build = functools.partial(build_method, command)
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, *args.workers):
            out, start = Path(folder) / f'out_{workers}', time.monotonic()
            executor = 'ray' if workers else 'local'
            report = augment(job, out, build, executor=executor, workers=workers or None)
            row = {
                'executor': executor,
                'workers': workers or 1,
                'episodes': report.counts['generated'],
                'episodes_per_hour': report.episodes_per_hour,
                'seconds_in_all': time.monotonic() - start,
            }
            result['rows'].append(row)
            print(row, flush=True)
        if args.flat:
            notes: list[float] = []
            many = Job(str(args.source), variants=args.flat, cameras=cameras, other_cameras='drop')
            start = time.monotonic()
            report = augment(many, Path(folder) / 'flat', functools.partial(build_watched, command, notes))
            result['memory'] = {
                'episodes': report.counts['generated'],
                'megabytes': notes[:: max(1, len(notes) // 100)],
                'seconds': time.monotonic() - start,
                'episodes_per_hour': report.episodes_per_hour,
            }
    result['load_after'] = os.getloadavg()[0]
    args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
