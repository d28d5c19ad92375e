"""From scores a clip to what people read: means with intervals as JSON, Markdown tables, a figure."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from mask2iv_ros.evaluation.metrics import frechet_and_interval, mean_and_interval

#: Rows that no model's name stands before but the oracle's: first masks or frame repeated, real masks.
STILL_MASKS, STILL_VIDEO, ORACLE, REAL = 'static', 'first frame repeated', 'oracle masks', 'real video'

MOVING = 0.8  #: a clip moves if the object IoU of its first mask, repeated, is below
MIN_CLIPS = 30  #: below, an interval says more than it knows, and the table gives the number of clips
FIGURE_TASKS = 48

#: Metrics of each Markdown table; a table shows those that a row of it has.
TABLES = {
    'masks': (
        'object_iou',
        'object_iou_best_sample',
        'object_iou_between_samples',
        'actor_iou',
        'object_kept',
        'object_centroid_px',
    ),
    'contact': ('contact_agrees', 'contact_frame_error', 'released_miou'),
    'video': ('psnr', 'psnr_moving_pixels', 'ssim', 'flicker'),
    'video, learned metrics': (
        'lpips',
        'fvd',
        'clip_text',
        'clip_truth',
        'clip_consistency',
        'frechet_random3d',
    ),
}
TEXT_METRICS = ('object_iou', 'actor_iou', 'object_same', 'actor_same')
FIGURE_METRICS = {
    'object_iou': 'object IoU',
    'actor_iou': 'actor IoU',
    'object_centroid_px': 'object centre, error in pixels',
    'psnr_moving_pixels': 'PSNR of moving pixels, dB',
    'ssim': 'SSIM',
}
COLOURS = ('#4878a8', '#d1803a', '#5a9e62', '#8d6bb0', '#b5524f')

NOTES = """\
Mean over clips with its 95 % interval (bootstrap over clips; jackknife for Fréchet distances). Frames 1.., as
frame 0 is given. Moving clips: those in which the first object mask, repeated, has an IoU below 0.8.
`psnr_moving_pixels`: of pixels that leave their first colour by more than 20 of 255. `object_centroid_px`
and `contact_frame_error` count where truth and prediction both have them; `object_kept` (share of frames) and
`contact_agrees` (share of clips) say how often. `released_miou` is the mask score of the code that
Mask2IV's authors released: over the whole clip with frame 0, and a colour that is in neither counts 1, which
inflates it.
`flicker`: change from frame to frame (of 255) where the truth stands still. `frechet_random3d`: Fréchet
distance of a random network's features; it compares rows of one table and is not FVD.
"""
TEXT_NOTES = """\
Stage 1 in text mode under other texts. `object_iou`, `actor_iou`: with the truth. `object_same`,
`actor_same`: with the prediction for the clip's own text and the same seed; what another seed changes is the
measure of it.
"""


def write_report(out: Path, split: str, header: dict, results: list[dict], left_out: dict[str, str]) -> dict:
    """Write `<split>.json`, `.md` and `.png` from the results of each clip; returns what the JSON holds."""
    scored = [result for result in results if 'rows' in result]
    if not scored:
        raise ValueError(
            f'{split}: no clip could be evaluated: {results[0]["skipped"] if results else "none"}'
        )
    still = np.array([result['rows'][STILL_MASKS].get('object_iou', np.nan) for result in scored])
    tasks = defaultdict(list)
    for result in scored:
        tasks[result['task']].append(result)
    report = {
        **header,
        'split': split,
        'clips': len(scored),
        'moving_clips': int((still < MOVING).sum()),
        'skipped': [result['skipped'] for result in results if 'skipped' in result],
        'left_out': left_out,
        'test_digest': hashlib.sha256(''.join(result['digest'] for result in scored).encode()).hexdigest(),
        'minutes': round(sum(result['seconds'] for result in results) / 60, 1),
        'summary': {
            'all clips': summarise(scored),
            'moving clips': summarise([r for r, iou in zip(scored, still, strict=True) if iou < MOVING]),
        },
        'texts': summarise_texts(scored),
        'tasks': {task: summarise(tasks[task], distances=False) for task in sorted(tasks)},
    }
    (out / f'{split}.json').write_text(json.dumps(report, indent=1) + '\n')
    (out / f'{split}.md').write_text(markdown(report))
    draw(report, out / f'{split}.png')
    return report


def summarise(results: list[dict], distances: bool = True) -> dict[str, dict[str, dict]]:
    """{row: {metric: {mean, low, high, clips}}} of results a clip; what no clip has is left out.

    `distances`: with Fréchet distances, where there are the three clips that an interval takes.
    """
    values = defaultdict(lambda: defaultdict(list))
    features = defaultdict(lambda: defaultdict(list))
    for result in results:
        for row, scores in result['rows'].items():
            for metric, value in scores.items():
                values[row][metric].append(value)
        for row, named in result['features'].items():
            for name, feature in named.items():
                features[row][name].append((feature, result['features'][REAL][name]))
    summary = {
        row: {metric: mean_and_interval(np.array(v)) for metric, v in scores.items()}
        for row, scores in values.items()
    }
    for row, named in features.items():
        for name, pairs in named.items():
            if distances and row != REAL and len(pairs) > 2:
                predicted, truth = (np.array(side) for side in zip(*pairs, strict=True))
                summary[row][name] = frechet_and_interval(predicted, truth)
    return summary


def summarise_texts(results: list[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    """{model: {kind of text: {metric: {mean, low, high, clips}}}}."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for result in results:
        for model, kinds in result.get('texts', {}).items():
            for kind, scores in kinds.items():
                for metric in TEXT_METRICS:
                    if metric in scores:
                        values[model][kind][metric].append(scores[metric])
    return {
        model: {
            kind: {metric: mean_and_interval(np.array(v)) for metric, v in scores.items()}
            for kind, scores in kinds.items()
        }
        for model, kinds in values.items()
    }


def cell(value: dict | None) -> str:
    """Mean with interval as text; with the number of clips where they are fewer than `MIN_CLIPS`."""
    if value is None:
        return '-'
    if value['clips'] < MIN_CLIPS:
        return f'{value["mean"]:.3f} ({value["clips"]} clip{"s" * (value["clips"] > 1)})'
    return f'{value["mean"]:.3f} ({value["low"]:.3f} to {value["high"]:.3f})'


def table(title: str, rows: dict[str, dict], metrics: tuple[str, ...]) -> list[str]:
    """Lines of a Markdown table of those rows and metrics that have a value."""
    columns = [metric for metric in metrics if any(metric in row for row in rows.values())]
    lines = [f'| {title} | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for name, row in rows.items():
        if any(metric in row for metric in columns):
            lines.append(f'| {name} | ' + ' | '.join(cell(row.get(metric)) for metric in columns) + ' |')
    return ['', *lines] if columns else []


def markdown(report: dict) -> str:
    """All tables of a split, what they mean, and what is missing in them."""
    height, width = report['size']
    models = [
        f'{name} ({model["num_inference_steps"]} steps, {model["device"]}, weights {model["weights"]})'
        for name, model in report['models'].items()
    ]
    lines = [
        f'# {report["split"]}: {report["clips"]} clips, {report["moving_clips"]} of them moving',
        '',
        f'{", ".join(models)}. {report["num_frames"]} frames, scored at {height}x{width} pixels, seed '
        f'{report["seed"]}, samples a clip: {report["samples"]}. Learned metrics: '
        f'{", ".join(report["learned_metrics"])}.',
        '',
        NOTES.rstrip(),
    ]
    for subset, rows in report['summary'].items():
        if subset == 'moving clips' and report['moving_clips'] in (0, report['clips']):
            continue
        for name, metrics in TABLES.items():
            lines += table(f'{subset}: {name}', rows, metrics)
    if report['texts']:
        lines += ['', '## Other texts', '', TEXT_NOTES.rstrip()]
        for model, kinds in report['texts'].items():
            lines += table(model, kinds, TEXT_METRICS)
    if 1 < len(report['tasks']) <= FIGURE_TASKS:
        lines += ['', '## Object IoU of each task']
        rows = [row for row, scores in report['summary']['all clips'].items() if 'object_iou' in scores]
        by_row = {
            task: {row: summary[row]['object_iou'] for row in rows if 'object_iou' in summary.get(row, {})}
            for task, summary in report['tasks'].items()
        }
        lines += table('task', by_row, tuple(rows))
    lines += ['', '## Left out', '']
    lines += [f'* {metric}: {why}.' for metric, why in report['left_out'].items()]
    lines += [f'* Not evaluated: {why}' for why in report['skipped']]
    return '\n'.join(lines) + '\n'


def draw(report: dict, path: Path) -> None:
    """Bars with intervals: each metric by row, other texts, and object IoU by task."""
    from matplotlib.figure import Figure

    models = list(report['models'])

    def colour(row: str) -> str:
        if row in (STILL_MASKS, STILL_VIDEO):
            return '#9a9a9a'
        owner = next((i for i, model in enumerate(models) if row.startswith(f'{model} ')), 0)
        return COLOURS[owner % len(COLOURS)]

    rows = report['summary']['all clips']
    panels = []
    for metric, title in FIGURE_METRICS.items():
        bars = {row: scores[metric] for row, scores in rows.items() if metric in scores}
        if bars:
            panels.append((title, bars, [colour(row) for row in bars]))
    for i, (model, kinds) in enumerate(report['texts'].items()):
        bars = {kind: scores['object_same'] for kind, scores in kinds.items() if 'object_same' in scores}
        shades = [COLOURS[i % len(COLOURS)]] * len(bars)
        panels.append((f'{model}: IoU with own text', bars, shades))
    tasks = report['tasks'] if 1 < len(report['tasks']) <= FIGURE_TASKS else {}
    lines = -(-len(panels) // 3)
    longest = max(len(bars) for _, bars, _ in panels)
    heights = [0.32 * longest + 0.9] * lines + ([4.2] if tasks else [])
    figure = Figure(figsize=(15, sum(heights) + 0.5), layout='constrained')
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    for i, (title, bars, colours) in enumerate(panels):
        axes = figure.add_subplot(grid[i // 3, i % 3])
        means = [bar['mean'] for bar in bars.values()]
        places = np.arange(len(bars))
        axes.barh(places, means, color=colours, xerr=_errors(bars.values()), capsize=2, height=0.7)
        axes.set_yticks(places, list(bars))
        axes.invert_yaxis()
        axes.set_title(title, loc='left', fontsize=11)
        axes.spines[['top', 'right']].set_visible(False)
    if tasks:
        axes = figure.add_subplot(grid[lines, :])
        names = [row for row, scores in rows.items() if 'object_iou' in scores and 'without' not in row]
        shades = ['#9a9a9a', *COLOURS]
        if len(models) > 1:  # one bar a model
            names = [row for row in names if row == STILL_MASKS or row.endswith((' text+goal', ' text'))]
            last = {row.rsplit(' ', 1)[0]: row for row in names}  # with the goal where there is one
            names = list(last.values())
            shades = [colour(row) for row in names]
        width = 0.8 / len(names)
        for i, row in enumerate(names):
            means = [
                summary.get(row, {}).get('object_iou', {}).get('mean', np.nan) for summary in tasks.values()
            ]
            places = np.arange(len(tasks)) + (i - (len(names) - 1) / 2) * width
            axes.bar(places, means, width, label=row, color=shades[i % len(shades)])
        turned = {'rotation': 30, 'ha': 'right'} if len(tasks) < 20 else {'rotation': 90}
        axes.set_xticks(range(len(tasks)), list(tasks), **turned)
        axes.set_title('object IoU of each task', loc='left', fontsize=11)
        axes.legend(ncols=len(names), loc='lower left', bbox_to_anchor=(0.25, 1), frameon=False)
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(f'{report["split"]}: {report["clips"]} clips; bars are 95 % intervals', x=0.01, ha='left')
    figure.savefig(path, dpi=110)


def _errors(bars) -> np.ndarray:
    """(2, N) distances of the means from the ends of their intervals."""
    return np.array([(b['mean'] - b['low'], b['high'] - b['mean']) for b in bars]).clip(0).T
