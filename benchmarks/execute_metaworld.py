"""Does executing plans solve tasks? AVDC's protocol: 11 tasks, 3 cameras, at most 5 replans and 500 steps.

    python benchmarks/execute_metaworld.py OUT --row oracle --episodes 25   # a row; a stopped run goes on
    python benchmarks/execute_metaworld.py --table OUT   # results/execute_metaworld.{json,md,png} of OUT, and
                                                         # a folder of its lines
    python benchmarks/execute_metaworld.py GOALS --row goal --tasks push-anywhere push-block-anywhere \
        pick-place-anywhere   # where only a goal tells; `--table GOALS --results RESULTS` afterwards

Rows, which differ in where a plan comes from: `oracle` (masks of the scripted expert, rolled out from the
current state: the bound), `oracle_off` (the same, the hand told centimetres beside where the masks show it,
in all plans of an episode alike: what the rules make of errors such as a model's), `trajectory` (stage 1 of a
model, masks only), `goal` (the same, told also the pixel of the goal; for tasks in which the scene does not
show it), `video` (masks that follow the optical flow of the video of both stages), `one_stage` (the same for
a model of one stage, which draws a video without masks: give it with `--model`), `random` (take the object,
go to a random place: the floor). All are executed by `mask2iv_ros.planning.rollout`, which sees camera, masks
of the current frame, depth, calibration and the hand's position, and which has no rule that knows a task. A
model draws `--samples` plans at a time; the one whose hand comes nearest to the object is executed
(`planning.execution.choose_plan`). Before a camera's first episode the arm moves about in front of it, in a
scene that is none of the 11 tasks, and the robot learns what it looks like (`ArmAppearance`): `--poses` of
them, kept in OUT.

In the table `cm off` is how far the object ends from where the expert leaves it, median over episodes.

OUT/ROW.jsonl has a line an episode: success, steps, what was planned, and the cause of a failure, which is
told from the simulator's state, as nothing that is executed is; of a model also the hash of its weights,
denoising steps and samples, and a run with other ones needs another OUT. A hand or an object that the expert
itself does not bring to success is counted as a failure like any other; `expert` says so.
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.data.metaworld_execution import FIRST_SEED, PUBLISHED_CAMERAS, ExecutionScene
from mask2iv_ros.data.metaworld_tasks import GOAL_TASKS, PUBLISHED_TASKS
from mask2iv_ros.evaluation.journal import drop_cut_off_line, read_lines
from mask2iv_ros.evaluation.metrics import wilson_interval
from mask2iv_ros.framing import Framing
from mask2iv_ros.pictures import write_video
from mask2iv_ros.planning.arm_appearance import ArmAppearance
from mask2iv_ros.planning.flow import follow_labels
from mask2iv_ros.planning.rollout import Planned, Random, execute
from mask2iv_ros.weights import default_model_path, hash_weights, unpack

MODEL_ROWS = ('trajectory', 'goal', 'video', 'one_stage')
ROWS = ('oracle', 'oracle_off', *MODEL_ROWS, 'random')
#: Metres that the hand is off in `oracle_off`, standard deviation of a coordinate: of an episode, of a plan.
OFF, OFF_MORE = 0.05, 0.015
#: Frames after which the hand is told so far off; in the first it is known.
OFF_FROM = 4
#: Mean success in per cent as printed by AVDC (arXiv 2310.08576), 825 episodes on Meta-World's v2 tasks.
PUBLISHED = {'AVDC': 43.1, 'BC-Scratch': 16.2, 'BC-R3M': 15.4, 'UniPi': 6.1}
KNOWN_TASKS = (*PUBLISHED_TASKS, *GOAL_TASKS)
LIFTED, MOVED = 0.03, 0.01  #: metres, for causes of failure
RESULTS = Path(__file__).parent / 'results' / 'execute_metaworld'
STEPS, SAMPLES = 4, 6  #: of the model's denoising; plans to choose from, if nothing else is said
VIDEO_EVERY = 5  #: control steps between two frames


def cause_of_failure(start, end, wanted, highest: float, touched: bool, kinds: list[str]) -> str:
    """Why an episode failed, from where the object was, is, and should be (each (3,) metres)."""
    moved, needed = end - start, wanted - start
    if not set(kinds) - {'none'}:
        return 'no plan'
    if not touched:
        return 'never touched'
    if 'grasp' in kinds and highest - start[2] > LIFTED and end[2] - start[2] < LIFTED / 2:
        return 'grasp slipped'
    if np.linalg.norm(moved) < MOVED:
        return 'touched, not moved'
    if moved @ needed < 0.5 * np.linalg.norm(moved) * np.linalg.norm(needed):
        return 'wrong direction'
    return 'moved, not there'


@lru_cache(2)
def _scene(task: str, camera: str) -> ExecutionScene:
    scene = ExecutionScene(task, camera)
    _free_scenes_at_exit()
    return scene


@cache
def _free_scenes_at_exit():
    atexit.register(_scene.cache_clear)  # only now: so it runs before the OpenGL context is freed


@lru_cache(len(PUBLISHED_CAMERAS))
def _arm(path: Path) -> ArmAppearance:
    return ArmAppearance.load(path)


@lru_cache(1)
def _pipeline(model: str):
    from mask2iv_ros.pipelines import load_pipeline

    return load_pipeline(model)


class OffArm:
    """An arm whose hand is told beside where it is."""

    def __init__(self, arm: ArmAppearance, rng: np.random.Generator):
        self.arm, self.rng, self.off = arm, rng, rng.normal(0, OFF, 3)

    def locate(self, labels: np.ndarray) -> np.ndarray:
        share = np.minimum(1.0, np.arange(len(labels)) / OFF_FROM)
        return self.arm.locate(labels) + share[:, None] * (self.off + self.rng.normal(0, OFF_MORE, 3))


def planner(row: str, scene: ExecutionScene, model: str, num_inference_steps: int, samples: int):
    """From an observation to plans to choose from, (T, H, W) label images each."""
    if row in ('oracle', 'oracle_off'):
        return lambda _observation: [scene.expert_plan()]
    from mask2iv_ros.planning.generate import generate_plans
    from mask2iv_ros.planning.request import GenerationRequest, InvalidRequest

    def plan_in_one_stage(observation):
        import torch

        pipeline = _pipeline(model)
        framing = Framing(observation.labels.shape, tuple(pipeline.config.sample_size))
        labels = framing.fit_labels(observation.labels)
        if not (labels == lb.OBJECT).any():  # too few pixels for the model
            return []
        videos = pipeline.video(
            framing.fit_frames(observation.frame)[None].repeat(samples, 0),
            None,
            scene.text,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(scene.steps + i) for i in range(samples)],
        ).frames
        plans = [framing.restore_labels(follow_labels(frames, labels)) for frames in videos]
        for plan in plans:
            plan[0] = observation.labels
        return plans

    def plan(observation):
        request = GenerationRequest(
            observation.frame,
            observation.labels == lb.OBJECT,
            observation.labels == lb.ACTOR,
            scene.text,
            goal_pixel=tuple(scene.goal_pixel) if row == 'goal' else None,
            seed=scene.steps,
            num_samples=samples,
            num_inference_steps=num_inference_steps,
            trajectory_only=row != 'video',
        )
        try:
            plans = generate_plans(_pipeline(model), request)
        except InvalidRequest:  # too few pixels for the model
            return []
        if row == 'video':
            return [follow_labels(plan.frames, observation.labels) for plan in plans]
        return [plan.labels for plan in plans]

    return plan_in_one_stage if row == 'one_stage' else plan


def play(
    out: Path, row: str, task: str, camera: str, seed: int, model: str, steps: int, samples: int, video: bool
) -> dict:
    """One episode: its line in OUT/ROW.jsonl, but for what says of which model it is."""
    begin = time.perf_counter()
    scene = _scene(task, camera)
    scene.reset(FIRST_SEED + seed)
    solvable, wanted = scene.expert_end()
    start = scene.scene.object_centre()
    if row == 'random':
        policy = Random(np.random.default_rng(seed))
    else:
        make = planner(row, scene, model, steps, samples)
        arm = _arm(out / f'arm_{camera}.npz')
        if row == 'oracle_off':
            arm = OffArm(arm, np.random.default_rng((seed, *map(ord, task + camera))))
        policy = Planned(make, arm, colour=row in MODEL_ROWS)
    seen = {'touched': False, 'highest': start[2]}
    frames = []

    def watch(motion):
        seen['touched'] |= scene.scene.touching()
        seen['highest'] = max(seen['highest'], scene.scene.object_centre()[2])
        if video and scene.steps % VIDEO_EVERY == 0:
            frames.append(_picture(scene, policy, len(frames)))

    rollout = execute(scene, policy, on_step=watch)
    end = scene.scene.object_centre()
    kinds = [motion.kind for motion in rollout.motions]
    line = {
        'task': task,
        'camera': camera,
        'seed': FIRST_SEED + seed,
        'success': rollout.success,
        'steps': rollout.steps,
        'plans': kinds,
        'expert': solvable,
        'cause': None
        if rollout.success
        else cause_of_failure(start, end, wanted, seen['highest'], seen['touched'], kinds),
        'moved': (end - start).round(3).tolist(),
        'wanted': (wanted - start).round(3).tolist(),
        'seconds': round(time.perf_counter() - begin, 2),
    }
    if frames:
        name = f'{row}_{task}_{camera}_{seed}_{"solved" if rollout.success else "failed"}.mp4'
        (out / 'videos').mkdir(exist_ok=True)
        write_video(out / 'videos' / name, np.stack(frames), 1 / (VIDEO_EVERY * scene.dt))
    return line


def _picture(scene: ExecutionScene, policy, number: int) -> np.ndarray:
    """(H, 2 W, 3) uint8: what the camera sees, and the newest plan, played over and over."""
    seen = scene.observe(colour=True)
    plan = getattr(policy, 'labels', None)
    shown = seen.labels if plan is None else plan[number % len(plan)]
    return np.concatenate((seen.frame, lb.labels_to_rgb(shown)), axis=1)


def run(args) -> None:
    out, row = args.out, args.row
    out.mkdir(parents=True, exist_ok=True)
    lines = read_lines(out / f'{row}.jsonl')
    used = model_used(args.model, args.steps, args.samples) if row in MODEL_ROWS else {}
    refuse_another_model(lines, used)
    for camera in args.cameras:
        path = out / f'arm_{camera}.npz'
        if row != 'random' and not path.exists():
            print(f'{camera}: the arm moves about to learn what it looks like', flush=True)
            arm = ArmAppearance.fit(*ExecutionScene('pick-place', camera).move_about(args.poses))
            part = out / f'arm_{camera}.part.npz'  # a run that is killed leaves no half of an arm
            arm.save(part)
            part.replace(path)
            print(f'{camera}: error {np.linalg.norm(arm.error) * 100:.1f} cm on poses left out', flush=True)
    done = {(line['task'], line['camera'], line['seed'] - FIRST_SEED) for line in lines}
    jobs = [
        (task, camera, seed)
        for seed in range(args.first, args.first + args.episodes)
        for task in args.tasks
        for camera in args.cameras
        if (task, camera, seed) not in done
    ]
    options = [
        (out, row, *job, args.model, args.steps, args.samples, job[2] < args.first + args.videos)
        for job in jobs
    ]
    drop_cut_off_line(out / f'{row}.jsonl')
    with (out / f'{row}.jsonl').open('a') as file, tqdm(total=len(jobs), desc=row, unit='episode') as bar:

        def keep(line):
            file.write(json.dumps(line | used) + '\n')
            file.flush()
            bar.update()

        if args.processes == 1:
            for option in options:
                keep(play(*option))
            return
        context = multiprocessing.get_context('spawn')  # a forked OpenGL context does not work
        with ProcessPoolExecutor(args.processes, context) as pool:
            for line in pool.map(play, *zip(*options, strict=True)):
                keep(line)


def model_used(model: str, steps: int, samples: int) -> dict:
    """What a line of `MODEL_ROWS` says of its model; '' is the embedded one."""
    weights = hash_weights(unpack(Path(model) if model else default_model_path()))
    return {'weights': weights[:16], 'denoising_steps': steps, 'samples': samples}


def refuse_another_model(lines: list[dict], wanted: dict) -> None:
    """Raise ValueError if some of the lines are of another model, or do not say of which."""
    for line in lines:
        if (there := {key: line.get(key) for key in wanted}) != wanted:
            raise ValueError(f'OUT has episodes of {there}, asked for is {wanted}: give another OUT')


def share(lines: list[dict]) -> dict:
    solved = sum(line['success'] for line in lines)
    low, high = wilson_interval(solved, len(lines))
    return {'success': 100 * solved / len(lines), 'low': low, 'high': high, 'episodes': len(lines)}


def summary(lines: list[dict]) -> dict:
    """Success in per cent by task, by camera and by both; 'mean' is over tasks and cameras, as published."""
    tasks = [task for task in KNOWN_TASKS if any(line['task'] == task for line in lines)]
    cameras = [camera for camera in PUBLISHED_CAMERAS if any(line['camera'] == camera for line in lines)]

    def of(**wanted):
        return share([line for line in lines if all(line[k] == v for k, v in wanted.items())])

    played = {(line['task'], line['camera']) for line in lines}  # not all, if a run was stopped
    cells = {
        task: {camera: of(task=task, camera=camera) for camera in cameras if (task, camera) in played}
        for task in tasks
    }
    steps = [line['steps'] for line in lines if line['success']]
    off = [100 * np.linalg.norm(np.subtract(line['moved'], line['wanted'])) for line in lines]
    return {
        'mean': float(np.mean([cell['success'] for row in cells.values() for cell in row.values()])),
        'all': share(lines),
        'tasks': {task: of(task=task) for task in tasks},
        'cameras': {camera: of(camera=camera) for camera in cameras},
        'cells': cells,
        'expert': 100 * float(np.mean([line['expert'] for line in lines])),
        'causes': {
            task: dict(Counter(line['cause'] for line in lines if line['task'] == task and line['cause']))
            for task in tasks
        },
        'plans an episode': float(np.mean([len(line['plans']) for line in lines])),
        'cm off': float(np.median(off)),
        'steps of solved episodes': float(np.mean(steps)) if steps else None,
        'seconds an episode': float(np.mean([line['seconds'] for line in lines])),
    }


def write_table(out: Path, results: Path) -> None:
    """Write `results`.json, .md and .png of the rows that are in `out`."""
    rows = {row: read_lines(out / f'{row}.jsonl') for row in ROWS}
    rows = {row: lines for row, lines in rows.items() if lines}
    played = {line['task'] for lines in rows.values() for line in lines}
    tasks = [task for task in KNOWN_TASKS if task in played]
    published = {} if played - set(PUBLISHED_TASKS) else PUBLISHED
    if not rows:
        raise SystemExit(f'{out}: has no episode of {", ".join(ROWS)}')
    results.mkdir(exist_ok=True)
    for row, lines in rows.items():
        (results / f'{row}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    rows = {row: summary(lines) for row, lines in rows.items()}

    def cell(found: dict | None) -> str:
        if found is None:
            return ''
        return f'{found["success"]:.0f} [{found["low"]:.0f}, {found["high"]:.0f}]'

    columns = ('mean', *PUBLISHED_CAMERAS, 'cm off', 'episodes', 'plans an episode', 'expert solves')
    lines = [
        'Success in per cent with 95 % intervals (Wilson); see `execute_metaworld.py`.',
        '',
        '| | ' + ' | '.join(columns) + ' |',
        '|---' * (len(columns) + 1) + '|',
    ]
    for row, found in rows.items():
        low, high, count = (found['all'][key] for key in ('low', 'high', 'episodes'))
        off = found['cm off']
        cameras = ' | '.join(cell(found['cameras'].get(camera)) for camera in PUBLISHED_CAMERAS)
        lines.append(
            f'| {row} | {found["mean"]:.1f} [{low:.1f}, {high:.1f}] | {cameras} | {off:.1f} | {count} | '
            f'{found["plans an episode"]:.1f} | {found["expert"]:.0f} |'
        )
    empty = ' | ' * len(PUBLISHED_CAMERAS)
    lines += [f'| {name} (published) | {value} {empty} |  | 825 |  |  |' for name, value in published.items()]
    lines += ['', '| task | ' + ' | '.join(rows) + ' |', '|---' * (len(rows) + 1) + '|']
    for task in tasks:
        found = (cell(row['tasks'].get(task)) for row in rows.values())
        lines.append(f'| {task} | ' + ' | '.join(found) + ' |')
    lines += ['', 'Causes of failure:', '', '| row | task | causes |', '|---|---|---|']
    for row, found in rows.items():
        for task, causes in found['causes'].items():
            if causes:
                said = ', '.join(f'{cause} {count}' for cause, count in sorted(causes.items()))
                lines.append(f'| {row} | {task} | {said} |')
    results.with_suffix('.md').write_text('\n'.join(lines) + '\n')
    results.with_suffix('.json').write_text(
        json.dumps({'rows': rows, 'published': published}, indent=1) + '\n'
    )
    _figure(rows, tasks, published).savefig(results.with_suffix('.png'), dpi=110)
    print('\n'.join(lines))


def _figure(rows: dict, tasks: list[str], published: dict) -> Figure:
    figure = Figure((11, 4), layout='constrained')
    axes = figure.add_subplot()
    width = 0.8 / len(rows)
    for number, (row, found) in enumerate(rows.items()):
        places = [i + (number - (len(rows) - 1) / 2) * width for i, t in enumerate(tasks)
                  if t in found['tasks']]  # fmt: skip
        cells = [found['tasks'][task] for task in tasks if task in found['tasks']]
        heights = np.array([cell['success'] for cell in cells])
        ends = np.array([(cell['low'], cell['high']) for cell in cells]).T
        errors = np.maximum(np.abs(ends - heights), 0)
        axes.bar(places, heights, width, yerr=errors, label=f'{row}: mean {found["mean"]:.0f} %',
                 error_kw={'elinewidth': 0.8, 'alpha': 0.6})  # fmt: skip
    if published:
        axes.axhline(published['AVDC'], color='black', linestyle=':', label='AVDC, published mean 43.1 %')
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha='right')
    axes.set(ylabel='success, %', ylim=(0, 105))
    axes.legend(fontsize=8, ncols=4, loc='lower center', bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--row', choices=ROWS)
    parser.add_argument('--table', action='store_true', help='write the result files of what is in OUT')
    parser.add_argument('--episodes', type=int, default=25, help='seeds a task and camera')
    parser.add_argument('--first', type=int, default=0, help='first seed')
    parser.add_argument('--tasks', nargs='+', default=list(PUBLISHED_TASKS), choices=KNOWN_TASKS)
    parser.add_argument('--cameras', nargs='+', default=list(PUBLISHED_CAMERAS), choices=PUBLISHED_CAMERAS)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--videos', type=int, default=0, help='film the first so many seeds')
    parser.add_argument(
        '--poses', type=int, default=2200, help='of the arm, to learn how it looks, if OUT has no arm_*.npz'
    )
    parser.add_argument('--model', default='', help='folder of a model; the embedded one if left out')
    parser.add_argument('--steps', type=int, default=STEPS, help='denoising steps of the model')
    parser.add_argument('--samples', type=int, default=SAMPLES, help='plans of the model to choose from')
    parser.add_argument('--results', type=Path, default=RESULTS, help='result files, without their ending')
    args = parser.parse_args()
    if not args.row and not args.table:
        parser.error('give --row, --table, or both')
    if args.row:
        run(args)
    if args.table:
        write_table(args.out, args.results)


if __name__ == '__main__':
    main()
