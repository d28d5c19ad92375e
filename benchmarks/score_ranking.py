"""Does the score of a plan predict how good it is? Writes JSON and a Markdown table.

    python benchmarks/score_ranking.py DATA [--model FOLDER] [--clips 64] [--samples 6]

DATA is a dataset with masks, such as the `test` that `mask2iv simulate` writes. Stage 1 draws several samples
a clip. `agreement` and `permanence` are the scores of `planning.generate`; quality is the object's IoU with
the truth. `within`: Spearman correlation of score and IoU over the samples of a clip, mean over clips;
`across`: of their means over clips, with a 95 % bootstrap interval; `first`, `picked`, `best`: mean IoU of
the first sample, of the one with the highest score, and of the best one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.data.episodes import open_dataset, read_clips
from mask2iv_ros.data.sampling import spread
from mask2iv_ros.evaluation import metrics
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines import load_pipeline
from mask2iv_ros.planning.generate import object_permanence, sample_agreement

DRAWS = 1000


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; nan where one of them is constant."""
    return spearmanr(first, second)[0] if np.ptp(first) and np.ptp(second) else float('nan')


def judge(scores: np.ndarray, ious: np.ndarray) -> dict[str, float | list[float]]:
    """What (N, S) scores tell about the (N, S) IoUs of N clips with S samples."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(ious), (DRAWS, len(ious)))
    across = [spearman(scores[p].mean(1), ious[p].mean(1)) for p in picks]
    return {
        'within': float(np.nanmean([spearman(a, b) for a, b in zip(scores, ious, strict=True)])),
        'across': spearman(scores.mean(1), ious.mean(1)),
        'across_interval': np.nanpercentile(across, [2.5, 97.5]).tolist(),
        'first': float(ious[:, 0].mean()),
        'picked': float(ious[np.arange(len(ious)), scores.argmax(1)].mean()),
        'best': float(ious.max(1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--model', default='')
    parser.add_argument('--clips', type=int, default=64)
    parser.add_argument('--samples', type=int, default=6)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'score_ranking')
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    reader = open_dataset(args.data)
    reader.with_depth = False
    count = min(args.clips, len(reader))
    found = defaultdict(lambda: defaultdict(list))
    clips = read_clips(reader, range(count), spread(pipeline.config.num_frames))
    for clip in tqdm(clips, total=count, unit='clip'):
        framing = Framing(clip.frames.shape[1:3], tuple(pipeline.config.sample_size))
        image, truth = framing.fit_frames(clip.frames[:1]), framing.fit_labels(clip.labels)
        goals = framing.fit_labels(clip.goal_labels)[None]
        for control, task, goal in (('text', clip.task, None), ('goal', '', goals)):
            samples = pipeline.trajectory(
                image.repeat(args.samples, 0),
                truth[:1].repeat(args.samples, 0),
                task,
                None if goal is None else goal.repeat(args.samples, 0),
                generator=[torch.Generator().manual_seed(seed) for seed in range(args.samples)],
            ).labels
            found[control]['iou'].append([metrics.mask_iou(labels, truth, lb.OBJECT) for labels in samples])
            found[control]['agreement'].append(sample_agreement(samples))
            found[control]['permanence'].append([object_permanence(labels) for labels in samples])
    rows = {
        f'{control}, {score}': judge(np.array(values[score]), np.array(values['iou']))
        for control, values in found.items()
        for score in ('agreement', 'permanence')
    }
    columns = ['within', 'across', 'first', 'picked', 'best']
    lines = ['| | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for name, row in rows.items():
        low, high = row['across_interval']
        cells = [f'{row[c]:.3f}' + (f' ({low:.2f} to {high:.2f})' if c == 'across' else '') for c in columns]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    result = {'model': pipeline.config.name, 'clips': count, 'samples': args.samples, 'rows': rows}
    args.out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    args.out.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
