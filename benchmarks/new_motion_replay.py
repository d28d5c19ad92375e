"""Can a robot do what new motion says? Replays inferred actions in the simulator. Writes JSON and a table.

    mask2iv simulate DATA --stride 4 --camera-jitter 0 --tasks ... --height 128 --width 160
    mask2iv train inverse-dynamics DATA/train MODEL
    python benchmarks/new_motion_replay.py DATA/test MODEL OUT [--episodes 12]

Each episode is made again in several ways (rows), and the actions are driven from its own placement of object
and hand. `recorded`: the episode's own actions, the upper bound. `recorded, inferred`: told by inverse
dynamics from the recorded frames and masks. `same motion, inferred`: from frames that stage 2 made after the
recorded masks. `new seed`: new motion to the recorded goal. `new goal`: to a shifted one. `still`: the first
commanded position held, the floor.

`solved`: the task, in per cent, with 95 % intervals (Wilson). `arm IoU`, `object IoU`: the masks that the
simulator shows on the way with those that were asked for, mean over frames. `arm off`: distance of the two
arms' centroids, mean over frames, in pixels of the dataset. `hand off`: root mean square distance, in cm,
between where the hand went and the states that are written with the actions. `goal`: how much of the way in
the image from its start to the goal asked for the object made, in per cent (100: it is there), median; seen
without the arm. `new`: root mean square distance, in cm, of the commanded way from the recorded one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.new_motion import NewMotion
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.metaworld import Scene, draw_scene
from mask2iv_ros.data.metaworld_tasks import VIEWS
from mask2iv_ros.evaluation.journal import drop_cut_off_line, read_lines
from mask2iv_ros.evaluation.metrics import wilson_interval
from mask2iv_ros.models.inverse_dynamics import InverseDynamics
from mask2iv_ros.pipelines import load_pipeline

ROWS = ('recorded', 'recorded, inferred', 'same motion, inferred', 'new seed', 'new goal', 'still')
RESULTS = Path(__file__).parent / 'results' / 'new_motion_replay'


def remake(
    row: str, clip: InteractionClip, camera: str, told: InverseDynamics, pipeline, seed: int, samples: int
) -> InteractionClip:
    """The episode of a row: masks that were asked for, actions to drive, states that go with them."""
    if row == 'recorded':
        return clip
    if row == 'still':
        return _with(
            clip, clip.actions[:1].repeat(len(clip), axis=0), clip.states[:1].repeat(len(clip), axis=0)
        )
    if row == 'recorded, inferred':
        return _with(clip, *told.actions({camera: clip}))
    if row == 'same motion, inferred':
        made = SameMotion(pipeline, lambda frame, labels, rng: frame)({camera: clip}, seed)[camera]
        return _with(made, *told.actions({camera: made}))
    shift = {'new seed': 0.0, 'new goal': 0.3}[row]
    return NewMotion(pipeline, told, shift, num_samples=samples)({camera: clip}, seed)[camera]


def _with(clip: InteractionClip, actions: np.ndarray, states: np.ndarray) -> InteractionClip:
    return InteractionClip(
        clip.frames,
        clip.labels,
        clip.task,
        clip.fps,
        clip.goal,
        actions=actions,
        states=states,
        source=clip.source,
    )


@dataclass
class Driven:
    """What happened.

    Attributes:
        solved: whether the task was, on the way.
        labels: (T, H, W) masks that the camera saw.
        hands: (T, 3) metres, world.
        start, end: (H, W) the object without the arm before and after.
    """

    solved: bool
    labels: np.ndarray
    hands: np.ndarray
    start: np.ndarray
    end: np.ndarray


def drive(scene: Scene, clip: InteractionClip, camera: str) -> Driven:
    """Drive the clip's actions from the placement of its seed."""
    task, seed, stride = (clip.source[key] for key in ('task', 'seed', 'stride'))
    hand_offset, poses = draw_scene(task, seed, camera_jitter=clip.source['camera_jitter'])
    hand, solved, labels, hands = scene.reset(seed, hand_offset), False, [], []
    view = poses[camera], VIEWS[camera].fovy
    start = scene.render_goal(*view)
    for action in clip.actions:
        labels.append(scene.render_labels(*view)[0])
        hands.append(hand[:3])
        hand, there = scene.drive(action, stride)
        solved |= there
    return Driven(bool(solved), np.stack(labels), np.stack(hands), start, scene.render_goal(*view))


def judge(clip: InteractionClip, driven: Driven, recorded: InteractionClip) -> dict:
    """How what happened agrees with the clip that was driven, and how far that is from the recorded one."""

    def of(label: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(a == label, b == label) for a, b in zip(driven.labels, clip.labels, strict=True)]

    apart = [
        np.hypot(*np.subtract(lb.centroid(a), lb.centroid(b))) for a, b in of(lb.ACTOR) if a.any() and b.any()
    ]
    goal = clip.goal_labels
    start, end, wanted = (lb.centroid(image == lb.OBJECT) for image in (driven.start, driven.end, goal))
    progress = None
    if start and end and wanted and (way := np.hypot(*np.subtract(wanted, start))) > 1:
        progress = float(100 * (1 - np.hypot(*np.subtract(wanted, end)) / way))

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(100 * np.sqrt(((a[:, :3] - b[:, :3]) ** 2).sum(axis=1).mean()))

    return {
        'solved': driven.solved,
        'arm IoU': float(np.nanmean([lb.iou(a, b) for a, b in of(lb.ACTOR)])),
        'object IoU': float(np.nanmean([lb.iou(a, b) for a, b in of(lb.OBJECT)])),
        'arm off': float(np.mean(apart)) if apart else None,
        'hand off': distance(driven.hands, clip.states),
        'goal': progress,
        'new': distance(clip.actions, recorded.actions),
    }


def summary(lines: list[dict]) -> dict:
    """Means of the lines of one row."""
    solved = sum(line['solved'] for line in lines)

    def over(name, mean):
        values = [line[name] for line in lines if line[name] is not None]
        return float(mean(values)) if values else None

    return {
        'episodes': len(lines),
        'solved': [100 * solved / len(lines), *wilson_interval(solved, len(lines))],
        **{name: over(name, np.mean) for name in ('arm IoU', 'object IoU', 'arm off', 'hand off', 'new')},
        'goal': over('goal', np.median),
    }


def table(found: Mapping[str, dict]) -> str:
    columns = ('arm IoU', 'object IoU', 'arm off', 'hand off', 'goal', 'new')
    rows = ['| | solved | ' + ' | '.join(columns) + ' | episodes |', '|---' * (len(columns) + 3) + '|']
    for row, values in found.items():
        share, low, high = values['solved']
        cells = ['' if values[name] is None else f'{values[name]:.3g}' for name in columns]
        rows.append(
            f'| {row} | {share:.0f} [{low:.0f}, {high:.0f}] | '
            + ' | '.join(cells)
            + f' | {values["episodes"]} |'
        )
    return '\n'.join(rows) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='episodes that inverse dynamics was not trained on')
    parser.add_argument('inverse_dynamics', type=Path)
    parser.add_argument('out', type=Path, help='folder for a line an episode; a stopped run is continued')
    parser.add_argument('--model', default='', help='folder of a model; the embedded one if left out')
    parser.add_argument('--episodes', type=int, default=12)
    parser.add_argument(
        '--samples', type=int, default=2, help='plans of stage 1 that new motion chooses from'
    )
    parser.add_argument('--results', type=Path, default=RESULTS, help='result files, without their ending')
    args = parser.parse_args()
    reader, told = open_dataset(args.data), InverseDynamics.load(args.inverse_dynamics)
    (camera,) = told.cameras
    pipeline = load_pipeline(args.model)
    pipeline.set_progress_bar_config(disable=True)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'lines.jsonl'
    drop_cut_off_line(path)
    lines = read_lines(path)
    done = {(line['episode'], line['row']) for line in lines}
    jobs = [(i, row) for i in range(min(args.episodes, len(reader))) for row in ROWS if (i, row) not in done]
    with path.open('a') as file:
        scenes: dict[str, Scene] = {}
        for index, row in tqdm(jobs, unit='episode'):
            clip = reader.read(index, camera=camera)
            task = clip.source['task']
            if task not in scenes:
                scenes[task] = Scene(task, *clip.frames.shape[1:3])
            made = remake(row, clip, camera, told, pipeline, index, args.samples)
            line = {
                'episode': index,
                'row': row,
                'task': task,
                **judge(made, drive(scenes[task], made, camera), clip),
            }
            line |= {'augmentation': made.source.get('augmentation')}
            lines.append(line)
            file.write(json.dumps(line) + '\n')
            file.flush()
    found = {row: summary([line for line in lines if line['row'] == row]) for row in ROWS}
    tasks = sorted({line['task'] for line in lines})
    result = {
        'model': pipeline.config.name,
        'samples': args.samples,
        'tasks': tasks,
        'rows': found,
        'by task': {
            task: {
                row: summary([line for line in lines if (line['task'], line['row']) == (task, row)])
                for row in ROWS
            }
            for task in tasks
        },
    }
    args.results.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    text = table(found)
    for task, rows in result['by task'].items():
        text += f'\n{task}\n\n{table(rows)}'
    args.results.with_suffix('.md').write_text(text)
    print(text)


if __name__ == '__main__':
    main()
