"""How good is a model on simulated test clips? Writes JSON, a Markdown table and a contact sheet.

    python benchmarks/simulated_quality.py DATA [--model FOLDER] [--clips 64]

DATA is what `mask2iv simulate` wrote. Rows: stage 1 with text, goal, and both beside the static baseline
(first mask repeated); stage 2 with oracle and predicted masks beside the first frame repeated. All at the
model's resolution, frames 1.. of each clip. "Moving" clips are those in which the static baseline's object
IoU is below 0.8; "moving pixels" differ from frame 0 by more than 20 of 255. Centroid and contact frame count
where both have them; `object_kept` (share of frames) and `contact_agrees` (share of clips) say how often.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.data.episodes import open_dataset, read_clips
from mask2iv_ros.evaluation import metrics
from mask2iv_ros.evaluation.pictures import contact_sheet, write_picture
from mask2iv_ros.pipelines.loading import load_pipeline
from mask2iv_ros.training.arrays import ClipArrays, build_arrays, goal_labels

MOVING = 0.8
MIN_CLIPS = 30


def load_test_arrays(
    data: Path, size: tuple[int, int], count: int, num_frames: int, folder: Path
) -> ClipArrays:
    """The first `count` test clips at the model's resolution (tasks take turns in a dataset)."""
    reader = open_dataset(data / 'test')
    count = min(count, len(reader))
    return build_arrays(read_clips(reader, range(count)), count, folder, size, num_frames)


def score_masks(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    frames = [lb.contact_frame(labels, 3) for labels in (predicted, truth)]
    return {
        'object_iou': metrics.mask_iou(predicted, truth, lb.OBJECT),
        'actor_iou': metrics.mask_iou(predicted, truth, lb.ACTOR),
        'object_kept': metrics.kept_frames(predicted, truth, lb.OBJECT),
        'object_centroid_px': metrics.centroid_error(predicted, truth, lb.OBJECT),
        'contact_agrees': float((frames[0] >= 0) == (frames[1] >= 0)),
        'contact_frame_error': float(abs(frames[0] - frames[1])) if min(frames) >= 0 else float('nan'),
    }


def score_video(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {
        'psnr': metrics.psnr(predicted, truth),
        'psnr_moving_pixels': metrics.psnr(predicted, truth, metrics.moving_pixels(truth)),
        'ssim': metrics.ssim(predicted, truth),
    }


def evaluate(pipeline, arrays: ClipArrays, seed: int) -> tuple[dict, dict]:
    """Scores {row: {metric: [a value a clip]}} and the predictions of the last clips for a picture."""
    pipeline.set_progress_bar_config(disable=True)
    scores: dict = defaultdict(lambda: defaultdict(list))
    pictures = {}
    for i in tqdm(range(len(arrays)), desc='evaluate', unit='clip'):
        frames, labels, task = arrays.frames[i], arrays.labels[i], arrays.tasks[i]
        image, first, goal = frames[None, 0], labels[None, 0], goal_labels(labels)[None]
        conditions = {'text': (task, None), 'goal': ('', goal), 'text+goal': (task, goal)}
        trajectories = {'static': np.repeat(labels[:1], len(labels), axis=0), 'oracle': labels}
        for row, (text, target) in conditions.items():
            generator = torch.Generator().manual_seed(seed)
            trajectories[row] = pipeline.trajectory(image, first, text, target, generator=generator).labels[0]
        videos = {'first frame repeated': np.repeat(frames[:1], len(frames), axis=0)}
        for row in ('oracle', 'text+goal'):
            generator = torch.Generator().manual_seed(seed)
            videos[f'{row} masks'] = pipeline.video(
                image, trajectories[row][None], generator=generator
            ).frames[0]
        for row in ('static', *conditions):
            for name, value in score_masks(trajectories[row], labels).items():
                scores[row][name].append(value)
        for row, video in videos.items():
            for name, value in score_video(video, frames).items():
                scores[row][name].append(value)
        pictures[arrays.sources[i].get('task', task)] = {
            f'{task}: real video': frames,
            'real masks': lb.labels_to_rgb(labels),
            'masks from text': lb.labels_to_rgb(trajectories['text']),
            'masks from text and goal': lb.labels_to_rgb(trajectories['text+goal']),
            'video from real masks': videos['oracle masks'],
            'video from masks from text and goal': videos['text+goal masks'],
        }
    return scores, pictures


def summarise(scores: dict, moving: np.ndarray) -> dict:
    """{row: {metric: {mean, low, high, clips}}} over all clips and over moving ones."""
    return {
        subset: {
            row: {name: metrics.mean_and_interval(np.array(v)[keep]) for name, v in values.items()}
            for row, values in scores.items()
        }
        for subset, keep in (('all clips', np.ones_like(moving)), ('moving clips', moving))
    }


def cell(value: dict) -> str:
    """Mean and interval as text; a dash where too few clips have a value to speak of."""
    if value['clips'] < MIN_CLIPS:
        return '-'
    return f'{value["mean"]:.3f} ({value["low"]:.3f} to {value["high"]:.3f})'


def table(summary: dict) -> str:
    """Markdown tables of both stages."""
    lines = []
    for subset, rows in summary.items():
        for columns in (
            ('object_iou', 'actor_iou', 'object_kept', 'object_centroid_px'),
            ('contact_agrees', 'contact_frame_error'),
            ('psnr', 'psnr_moving_pixels', 'ssim'),
        ):
            lines += ['', f'| {subset} | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
            for row, values in rows.items():
                if columns[0] in values:
                    cells = [cell(values[c]) for c in columns]
                    lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines[1:]) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--model', default='')
    parser.add_argument('--clips', type=int, default=64)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'results' / 'simulated_quality')
    args = parser.parse_args()
    pipeline = load_pipeline(args.model)
    config = pipeline.config
    size = tuple(config.sample_size)
    with tempfile.TemporaryDirectory() as folder:
        arrays = load_test_arrays(args.data, size, args.clips, config.num_frames, Path(folder))
        start = time.monotonic()
        scores, pictures = evaluate(pipeline, arrays, args.seed)
    moving = np.array(scores['static']['object_iou']) < MOVING
    summary = summarise(scores, moving)
    tasks = defaultdict(list)
    for i, source in enumerate(arrays.sources):
        tasks[source['task']].append(i)
    per_task = {
        task: {row: float(np.nanmean(np.array(scores[row]['object_iou'])[picks])) for row in scores
               if 'object_iou' in scores[row]}
        for task, picks in tasks.items()
    }  # fmt: skip
    result = {
        'model': config.name,
        'device': str(pipeline.device),
        'num_inference_steps': config.num_inference_steps,
        'clips': len(arrays),
        'moving_clips': int(moving.sum()),
        'seed': args.seed,
        'test_digest': arrays.digest,
        'minutes': round((time.monotonic() - start) / 60, 1),
        'summary': summary,
        'object_iou_per_task': per_task,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    args.out.with_suffix('.md').write_text(table(summary))
    for task, rows in pictures.items():
        write_picture(args.out.parent / f'{args.out.name}_{task}.jpg', contact_sheet(rows, width=1280))
    print(table(summary))


if __name__ == '__main__':
    main()
