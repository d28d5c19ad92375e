"""How many denoising steps are worth their time? Writes JSON, a Markdown table and a figure.

    python benchmarks/denoising_steps.py DATA --work FOLDER [--model FOLDER] [--steps 1 2 4 8 16 50]

DATA is a dataset with masks, such as the `test` that `mask2iv simulate` writes. Each number of steps is an
evaluation of its own, in FOLDER/STEPS, as `mask2iv evaluate` makes it (control mode `text`); a stopped run
goes on. `seconds`: the median of five calls for masks and video, made in turn with those of other numbers.
Every other number is compared with the largest one, clip by clip: its loss is the difference of means, as a
share of the largest one's, with a 95 % bootstrap interval over clips; a negative loss is a gain.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.evaluation.evaluate import Evaluation, Settings
from mask2iv_ros.evaluation.extractors import Extractors
from mask2iv_ros.evaluation.journal import read_lines
from mask2iv_ros.evaluation.metrics import mean_and_interval
from mask2iv_ros.pipelines import load_pipeline
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.request import GenerationRequest

#: Row and metric of the evaluation by their name in the table, and whether more is better.
METRICS = {
    'object IoU': ('text', 'object_iou', True),
    'robot IoU': ('text', 'actor_iou', True),
    'object centroid error': ('text', 'object_centroid_px', False),
    'PSNR, predicted masks': ('text masks', 'psnr', True),
    'PSNR of moving pixels': ('text masks', 'psnr_moving_pixels', True),
    'SSIM': ('text masks', 'ssim', True),
    'PSNR, true masks': ('oracle masks', 'psnr', True),
    'flicker': ('text masks', 'flicker', False),
    'Fréchet distance, random 3-D network': ('text masks', 'frechet_random3d', False),
}
RUNS = 5
RESULTS = Path(__file__).parent / 'results' / 'denoising_steps'


def loss(values: np.ndarray, best: np.ndarray, more_is_better: bool) -> dict[str, float]:
    """How much worse (N,) values of clips are than those of the most steps, as a share of these."""
    worse = (best - values if more_is_better else values - best) / np.nanmean(best)
    return mean_and_interval(worse)


def time_calls(pipeline, numbers: Iterable[int], clip) -> dict[int, float]:
    """Median seconds of a call by number of steps."""
    frame, labels = clip.frames[0], clip.labels[0]
    seconds = {steps: [] for steps in numbers}
    for _ in range(RUNS):
        for steps in seconds:
            request = GenerationRequest(frame, labels == 1, labels == 2, clip.task, num_inference_steps=steps)
            start = time.perf_counter()
            generate_plans(pipeline, request)
            seconds[steps].append(time.perf_counter() - start)
    return {steps: statistics.median(found) for steps, found in seconds.items()}


def table(report: dict) -> str:
    most = max(map(int, report['rows']))
    lines = [
        f'{report["model"]}, {report["clips"]} clips of `{report["data"]}`, {report["dtype"][6:]}; in '
        f'brackets the loss against {most} steps in % (95 % interval); see `denoising_steps.py`.',
        '',
        '| steps | seconds | ' + ' | '.join(METRICS) + ' |',
        '|---' * (len(METRICS) + 2) + '|',
    ]
    for steps, row in report['rows'].items():
        cells = []
        for name in METRICS:
            found = row[name]
            cell = f'{found["mean"]:.3f}' if found['mean'] < 2 else f'{found["mean"]:.2f}'
            if 'loss' in found:
                share = {k: 100 * found['loss'][k] for k in ('mean', 'low', 'high')}
                cell += f' ({share["mean"]:.1f}: {share["low"]:.1f} to {share["high"]:.1f})'
            cells.append(cell)
        lines.append(f'| {steps} | {row["seconds"]:.2f} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def draw(report: dict, path: Path) -> None:
    figure = Figure(figsize=(9, 7), layout='constrained')
    steps = [int(number) for number in report['rows']]
    for axes, name in zip(figure.subplots(3, 3).flat, METRICS, strict=True):
        found = [row[name] for row in report['rows'].values()]
        means = np.array([f['mean'] for f in found])
        spread = np.abs(np.array([[f['low'], f['high']] for f in found]).T - means)
        axes.errorbar(steps, means, spread, marker='o', capsize=3)
        axes.set_xscale('log', base=2)
        axes.set_xticks(steps, steps)
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    figure.supxlabel('denoising steps a stage')
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--work', type=Path, required=True, help='folder of the evaluations')
    parser.add_argument('--model', default='')
    parser.add_argument('--steps', type=int, nargs='+', default=[1, 2, 4, 8, 16, 50])
    parser.add_argument('--clips', type=int, default=32)
    parser.add_argument('--device', default='auto')
    parser.add_argument('--output', type=Path, default=RESULTS, help='result files, without their ending')
    options = parser.parse_args(arguments)
    reader = open_dataset(options.data)
    reader.with_depth = False
    pipeline, reports, clips = load_pipeline(options.model, options.device), {}, {}
    for steps in tqdm(sorted(options.steps), desc='steps', unit='evaluation'):
        pipeline.register_to_config(num_inference_steps=steps)
        settings = Settings(size=tuple(pipeline.config.sample_size), text_clips=0, controls=('text',))
        out = options.work / str(steps)
        out.mkdir(parents=True, exist_ok=True)
        evaluation = Evaluation({'model': pipeline}, out, settings, Extractors(None, '', pipeline.device))
        reports[steps] = evaluation.run(reader, 'test', options.clips)
        lines = read_lines(out / 'test.clips.jsonl')[1:]
        clips[steps] = [line.get('rows', {}) for line in lines[: options.clips or None]]
    seconds = time_calls(pipeline, reports, reader.read(0))
    most, rows = max(reports), {}
    for steps, report in reports.items():
        rows[steps] = {'seconds': seconds[steps]}
        for name, (row, metric, more_is_better) in METRICS.items():
            rows[steps][name] = found = dict(report['summary']['all clips'][row][metric])
            pairs = [
                (a[row][metric], b[row][metric])
                for a, b in zip(clips[steps], clips[most], strict=True)
                if metric in a.get(row, ()) and metric in b.get(row, ())
            ]
            if steps != most and pairs:
                found['loss'] = loss(*np.array(pairs, float).T, more_is_better)
    report = {
        'model': pipeline.config.name,
        'dtype': str(pipeline.dtype),
        'data': options.data.name,
        'clips': sum(map(bool, clips[most])),
        'rows': rows,
    }
    options.output.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
    report = json.loads(json.dumps(report))
    options.output.with_suffix('.md').write_text(table(report))
    draw(report, options.output.with_suffix('.png'))
    print(table(report))


if __name__ == '__main__':
    main()
