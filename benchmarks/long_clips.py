"""Does a long video drift away from the truth? Writes JSON, a Markdown table and a figure.

    python benchmarks/long_clips.py [--model FOLDER] [--clips 1] [--frames 16 48 96]

Each simulated test clip (8 tasks) is recorded at several lengths and its video generated from its real masks:
`anchored` as `InteractionVideoPipeline` does it, in windows that all start from the observed frame;
`roll-out` in windows of consecutive frames that each start from the last generated frame. PSNR of the pixels
that differ from frame 0, and of all pixels, by the share of the clip that has passed; `flicker` is the mean
absolute difference of neighbouring frames (of 255).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from mask2iv_ros.data.metaworld import FIRST_SEED, record_clip
from mask2iv_ros.data.metaworld_tasks import SIM8_TASKS
from mask2iv_ros.evaluation import metrics
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines import load_pipeline

matplotlib.use('agg')
import matplotlib.pyplot as plt

PARTS = 4  # of a clip, scored on their own


def roll_out(stage, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) in windows that each start from the last frame of the one before."""
    size = stage.config.num_frames
    frames = [image]
    while len(frames) < len(labels):
        wanted = np.minimum(np.arange(len(frames) - 1, len(frames) - 1 + size), len(labels) - 1)
        generator = torch.Generator().manual_seed(0)
        window = stage(frames[-1][None], labels[wanted][None], generator=generator).frames[0]
        frames += list(window[1:][: len(labels) - len(frames)])
    return np.stack(frames)


def score(video: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    moving = metrics.moving_pixels(truth)
    bounds = np.linspace(0, len(truth), PARTS + 1).round().astype(int)
    scores = {'flicker': float(np.abs(np.diff(video.astype(float), axis=0)).mean())}
    for part in range(PARTS):
        picks = np.r_[0, max(1, bounds[part]) : bounds[part + 1]]  # metrics leave their first frame out
        scores[f'psnr {part + 1}/{PARTS}'] = metrics.psnr(video[picks], truth[picks])
        scores[f'moving {part + 1}/{PARTS}'] = metrics.psnr(video[picks], truth[picks], moving[picks])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='')
    parser.add_argument('--clips', type=int, default=1, help='a task')
    parser.add_argument('--frames', type=int, nargs='+', default=[16, 48, 96])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'long_clips')
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    stage = pipeline.video
    scores = defaultdict(lambda: defaultdict(list))
    cases = [(t, n, i) for i in range(args.clips) for t in SIM8_TASKS for n in args.frames]
    for task, length, index in tqdm(cases, unit='clip'):
        clip = record_clip(task, FIRST_SEED['test'] + index, num_frames=length)
        framing = Framing(clip.frames.shape[1:3], tuple(pipeline.config.sample_size))
        frames, labels = framing.fit_frames(clip.frames), framing.fit_labels(clip.labels)
        videos = {
            'anchored': stage(frames[:1], labels[None], generator=torch.Generator().manual_seed(0)).frames[0],
            'roll-out': roll_out(stage, frames[0], labels),
            'truth': frames,
        }
        for name, video in videos.items():
            for metric, value in score(video, frames).items():
                if name != 'truth' or metric == 'flicker':
                    scores[f'{name}, {length} frames'][metric].append(value)
    result = {
        row: {metric: metrics.mean_and_interval(np.array(values)) for metric, values in found.items()}
        for row, found in scores.items()
    }
    columns = ['flicker', *(f'{kind} {p + 1}/{PARTS}' for kind in ('psnr', 'moving') for p in range(PARTS))]
    lines = ['| | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for row, values in result.items():
        cells = [f'{values[c]["mean"]:.1f}' if c in values else '-' for c in columns]
        lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
    args.out.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    args.out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')

    figure, axes = plt.subplots(figsize=(6, 3.6), layout='constrained')
    for row, values in result.items():
        if not row.startswith('truth'):
            means = [values[f'psnr {part + 1}/{PARTS}']['mean'] for part in range(PARTS)]
            style = '-' if row.startswith('anchored') else '--'
            axes.plot((np.arange(PARTS) + 0.5) / PARTS, means, style, marker='o', label=row)
    axes.set(xlabel='share of the clip', ylabel='PSNR (dB)', xlim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(args.out.with_suffix('.png'), dpi=120)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
