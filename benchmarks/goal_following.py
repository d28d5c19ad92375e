"""Does the object go where a goal says? Writes JSON and a Markdown table.

    python benchmarks/goal_following.py DATA/test [--camera NAME] [--model FOLDER] [--output RESULTS]

DATA is what `mask2iv simulate DATA --size goals` makes, where only a goal tells where the object ends; or any
other dataset with masks. In most scenes the end can be seen, of a drawer or a button, and an object cannot go
elsewhere: there `moved` asks for what is impossible, and `on the way` for what is not.

Stage 1 predicts each clip whose object moves by `MOVED` pixels of the model or more, told its text, its goal
(the mask of the object at the end, its box, or its pixel), and two other goals: that mask moved elsewhere,
where no expert took it, and the object's mask in a frame in the second half of its way. Of the last frame:
`IoU` with the mask of the goal, or with the true one without a goal; `distance` of the two centroids in
pixels of the model. `all frames`: the object's IoU with the truth. `followed`: how far the object goes along
with a goal that is not the true one, as a share of the way between the two goals: 1 is all of it, 0 is a goal
that is overlooked. Means over clips with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.data.episodes import open_dataset, read_clips
from mask2iv_ros.data.sampling import spread
from mask2iv_ros.evaluation import metrics
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines import load_pipeline
from mask2iv_ros.planning.request import move_mask
from mask2iv_ros.training.conditions import GOAL_FORMS, goal_variants, stop_frames

MOVED = 10  #: pixels of the model
LEAST_WAY = 3  #: pixels between two goals, for `followed`
SHIFTS = 8, 16  #: pixels along each axis by which a goal is moved, at least and at most
RESULTS = Path(__file__).parent / 'results' / 'goal_following'


def object_centre(labels: np.ndarray) -> tuple[float, float] | None:
    """x and y of the object's centroid in (h, w) labels; None where it is not seen."""
    return lb.centroid(lb.object_mask(labels))


def moved_goal(goal: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A (h, w) goal moved elsewhere, where all of it is in the picture; None if there is no such place."""
    mask = lb.object_mask(goal)
    for _ in range(20):
        offset = rng.choice([-1, 1], 2) * rng.integers(SHIFTS[0], SHIFTS[1] + 1, 2)
        moved = move_mask(mask, lb.centroid(mask) + offset)
        if moved.sum() == mask.sum():
            return lb.combine_masks(moved)
    return None


def judge(pipeline, clip, seed: int) -> dict[str, dict[str, float]] | None:
    """Metrics of a clip by row; None for one whose object does not move, or is not there at the end."""
    framing = Framing(clip.frames.shape[1:3], tuple(pipeline.config.sample_size))
    image, truth = framing.fit_frames(clip.frames[:1]), framing.fit_labels(clip.labels)
    variants = goal_variants(framing.fit_labels(clip.goal_labels), truth[0])
    start, end = (object_centre(labels) for labels in (truth[0], variants[0]))
    if start is None or end is None or np.linalg.norm(np.subtract(end, start)) < MOVED:
        return None
    goals = dict(zip(GOAL_FORMS, variants, strict=True))
    rng = np.random.default_rng(seed)
    others = {'mask, moved': moved_goal(goals['mask'], rng)}
    stop = stop_frames(truth, rng)[0]
    if stop < len(truth) - 1:
        others['mask, on the way'] = lb.without_actor(truth[stop])

    def predict(task: str, goal: np.ndarray | None) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        goal = None if goal is None else goal[None]
        return pipeline.trajectory(image, truth[:1], task, goal, generator=generator).labels[0]

    def score(labels: np.ndarray, goal: np.ndarray) -> dict[str, float]:
        at, wanted = (object_centre(frame) for frame in (labels[-1], goal))
        return {
            'IoU': lb.iou(lb.object_mask(labels[-1]), lb.object_mask(goal)),
            'distance': float(np.linalg.norm(np.subtract(at, wanted))) if at is not None else np.nan,
        }

    told = {'text': (clip.task, None), 'text and mask': (clip.task, goals['mask'])}
    told |= {form: ('', goal) for form, goal in goals.items()}
    rows = {}
    for row, (task, goal) in told.items():
        labels = predict(task, goal)
        rows[row] = score(labels, goals['mask'])
        rows[row]['all frames'] = metrics.mask_iou(labels, truth, lb.OBJECT)
        if row == 'mask':
            reached = object_centre(labels[-1])
    for row, goal in others.items():
        if goal is None:
            continue
        labels = predict('', goal)
        rows[row] = score(labels, goal)
        at = object_centre(labels[-1])
        way = np.subtract(object_centre(goal), object_centre(goals['mask']))
        if at is not None and reached is not None and np.linalg.norm(way) >= LEAST_WAY:
            rows[row]['followed'] = float(np.subtract(at, reached) @ way / (way @ way))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--camera')
    parser.add_argument('--model', default='')
    parser.add_argument('--output', type=Path, default=RESULTS, help='result files, without their ending')
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    reader = open_dataset(args.data)
    reader.with_depth = False
    clips = read_clips(reader, sampler=spread(pipeline.config.num_frames), camera=args.camera)
    found, count = defaultdict(lambda: defaultdict(list)), 0
    for seed, clip in enumerate(tqdm(clips, total=len(reader), unit='clip')):
        rows = judge(pipeline, clip, seed) or {}
        count += bool(rows)
        for row, scores in rows.items():
            for name, value in scores.items():
                found[row][name].append(value)
    rows = {
        row: {name: metrics.mean_and_interval(np.array(values)) for name, values in scores.items()}
        for row, scores in found.items()
    }
    columns = ['IoU', 'distance', 'all frames', 'followed']
    lines = [
        f'{pipeline.config.name}, {count} clips of `{args.data.name}` whose object moves, camera '
        f'{args.camera or "of each episode"}; see `goal_following.py`.',
        '',
        '| told | ' + ' | '.join(columns) + ' |',
        '|---' * (len(columns) + 1) + '|',
    ]
    for row, scores in rows.items():
        cells = [
            f'{s["mean"]:.2f} ({s["low"]:.2f} to {s["high"]:.2f})' if (s := scores.get(name)) else ''
            for name in columns
        ]
        lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
    result = {'model': pipeline.config.name, 'clips': count, 'camera': args.camera, 'rows': rows}
    args.output.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    args.output.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
