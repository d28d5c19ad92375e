"""Do augmented demonstrations make policies better? LeRobot's ACT on Meta-World, under old and new looks.

    benchmarks/policy_gain.sh OUT   # data, all rows, results/policy_gain.{json,md,png}; a stopped run goes on
    python benchmarks/policy_gain.py OUT --make every_frame --data REAL/train:12   # OUT/data/every_frame
    python benchmarks/policy_gain.py OUT --row half_real --real-share 0.5 \
        --data REAL/train:12 OUT/data/every_frame   # one row
    python benchmarks/policy_gain.py OUT --table
    python benchmarks/policy_gain.py OUT --replay   # results/policy_gain_replay.{json,md}

A row names the datasets that a policy is trained on, any LeRobot v3 datasets with the same camera, states
and actions; FOLDER:12 takes the first twelve episodes of each task. All rows take equally many training
steps. Batches draw from all frames alike, or with `--real-share` that share from the first dataset.
`--transforms` switches LeRobot's own image transforms on, as
`lerobot-train --dataset.image_transforms.enable=true` does.

One policy, seeing one camera and the hand, is trained for all tasks in the data, once for each of `--seeds`,
then tried on `--episodes` placements a task that are in no dataset, under each of `LOOKS`. Its actions are
executed as `metaworld.Scene.drive` does, `EXECUTED` at a time. OUT/ROW.jsonl has a line an episode; training
depends on data and seed alone, and continues where it stopped.

`--make` writes a dataset from the first one of `--data`: `every_frame` edits every frame by its masks, the
same look over an episode, without any model, as `mask2iv augment` does by default; `same_motion` generates
from an edited first frame. `mask2iv augment` makes such datasets with gates and at scale, and new motions.

`--replay` asks what any policy's success rests on: whether recorded actions, executed again from the same
placement, solve the task, at several rates.
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

from mask2iv_ros.augmentation.looks import LOOKS_VERSION, Looks
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.data.episodes import EpisodeReader, open_dataset
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.data.metaworld import RETRY_STRIDE, Scene, draw_scene, frame_rate
from mask2iv_ros.data.metaworld_tasks import TASKS, VIEWS
from mask2iv_ros.evaluation.journal import drop_cut_off_line, read_lines
from mask2iv_ros.evaluation.metrics import wilson_interval

#: What changes in a scene at evaluation: arguments of `Scene.vary` (None: nothing) and `draw_scene`.
LOOKS = {
    'training': (None, 0.0),
    'varied': ({'strength': 1.0}, 0.0),
    'surroundings': ({'strength': 3.0, 'actor': False}, 0.0),  # it is still the same robot
    'strong': ({'strength': 3.0}, 0.0),
    'camera': (None, 1.0),
}
BASELINES = ('real', 'real_4n', 'ordinary')  #: rows that a table begins with
CHANGED = ('surroundings', 'strong')  #: looks that the claim is about; others are reported on their own
FIRST_SEED = 5_000_000  #: of evaluation; no recorded split has seeds so high
CHUNK, EXECUTED = 12, 4  #: actions that a policy predicts, and how many of them are executed
MAX_ACTIONS = 45  #: an episode; experts take 18 to 30
SIZE = (48, 64)  #: height, width that the policy sees
BATCH = 16
CHECKPOINT_EVERY = 250  #: steps
LEARNING_RATE = 5e-4
RESULTS = Path(__file__).parent / 'results' / 'policy_gain'


@dataclass
class Demonstrations:
    """All frames of a row's datasets, small; index arrays say which belong together.

    `images` (N, 3, h, w) uint8; `states` (N, S) and `actions` (N, A) float32; `last` (N,) the index of the
    last frame of each frame's episode; `origin` (N,) the number of its dataset.
    """

    images: torch.Tensor
    states: torch.Tensor
    actions: torch.Tensor
    last: torch.Tensor
    origin: torch.Tensor
    tasks: tuple[str, ...]
    episodes: tuple[int, ...]
    stride: int
    frame_size: tuple[int, int]

    def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a LeRobotDataset gives for these frames, collated."""
        wanted = rows[:, None] + torch.arange(CHUNK)
        last = self.last[rows][:, None]
        return {
            'observation.images.front': self.images[rows].float() / 255,
            'observation.state': self.states[rows],
            'action': self.actions[wanted.minimum(last)],
            'action_is_pad': wanted > last,
        }

    def draw(self, count: int, real_share: float | None, rng: torch.Generator) -> torch.Tensor:
        """(count,) indices of frames; `real_share` of them, rounded by chance, from the first dataset."""
        if real_share is None:
            return torch.randint(len(self.last), (count,), generator=rng)
        is_real = self.origin == 0
        from_real = torch.rand(count, generator=rng) < real_share
        weights = torch.where(from_real[:, None], is_real, ~is_real).float()
        return torch.multinomial(weights, 1, generator=rng)[:, 0]

    def statistics(self) -> dict[str, dict[str, torch.Tensor]]:
        """Mean and deviation of what a policy sees and gives, as LeRobot's `meta.stats`."""
        pixels = self.images[:: max(1, len(self.images) // 500)].float() / 255
        found = {
            'observation.images.front': (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))),
            'observation.state': (self.states.mean(0), self.states.std(0)),
            'action': (self.actions.mean(0), self.actions.std(0)),
        }
        shape = {'observation.images.front': (3, 1, 1)}
        return {
            key: {
                name: value.reshape(shape.get(key, -1))
                for name, value in zip(('mean', 'std'), both, strict=True)
            }
            for key, both in found.items()
        }


def shrink(frames: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """(T, 3, h, w) uint8 of frames (T, H, W, 3): every pixel is the mean of those it covers."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    return F.interpolate(pixels, size, mode='area').round().to(torch.uint8)


def split_name(name: str) -> tuple[Path, int | None]:
    """'FOLDER:10' is FOLDER and 10 episodes a task; 'FOLDER' has no limit."""
    folder, _, count = name.rpartition(':')
    return (Path(folder), int(count)) if folder and count.isdigit() else (Path(name), None)


def chosen_episodes(name: str, tasks: list[str] | None = None) -> tuple[EpisodeReader, list[int]]:
    """Reader of a dataset and the episodes that `name` stands for, of some tasks or all."""
    folder, limit = split_name(name)
    reader = open_dataset(folder)
    chosen, seen = [], Counter()
    for index in range(len(reader)):
        task = reader.source(index)['task']
        if tasks and task not in tasks:
            continue
        seen[task] += 1
        if limit is None or seen[task] <= limit:
            chosen.append(index)
    if short := {task: count for task, count in seen.items() if limit and count < limit}:
        raise ValueError(f'{folder}: expected {limit} episodes a task, got {short}')
    if missing := set(tasks or ()) - set(seen):
        raise ValueError(f'{folder}: has no episode of {", ".join(sorted(missing))}')
    return reader, chosen


def load(names: list[str], tasks: list[str] | None = None, size: tuple[int, int] = SIZE) -> Demonstrations:
    """Read and shrink datasets, all or some tasks of each.

    Raises:
        ValueError: an episode has no actions or states, or datasets differ in stride or frame size.
    """
    images, states, actions, last, origin, found, episodes, kinds = [], [], [], [], [], set(), [], set()
    frames = 0
    for number, name in enumerate(names):
        reader, chosen = chosen_episodes(name, tasks)
        episodes.append(len(chosen))
        for index in chosen:
            clip = reader.read(index)
            if clip.actions is None or clip.states is None:
                raise ValueError(f'{name}: episode {index}: expected actions and states')
            kinds.add((clip.source.get('stride'), clip.frames.shape[1:3]))
            found.add(clip.source['task'])
            images.append(shrink(clip.frames, size))
            states.append(torch.from_numpy(clip.states))
            actions.append(torch.from_numpy(clip.actions))
            frames += len(clip)
            last.append(torch.full((len(clip),), frames - 1))
            origin.append(torch.full((len(clip),), number))
    if len(kinds) != 1 or None in next(iter(kinds)):
        raise ValueError(f'{names}: expected one stride and frame size in all episodes, got {kinds}')
    ((stride, frame_size),) = kinds
    arrays = [torch.cat(parts) for parts in (images, states, actions, last, origin)]
    return Demonstrations(*arrays, tuple(sorted(found)), tuple(episodes), stride, frame_size)


def make_policy(demonstrations: Demonstrations):
    """LeRobot's ACT and its two processors. Experts without chance need no latent (`use_vae`)."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.act.processor_act import make_act_pre_post_processors

    states, actions = demonstrations.states.shape[1], demonstrations.actions.shape[1]
    config = ACTConfig(
        input_features={
            'observation.images.front': PolicyFeature(
                FeatureType.VISUAL, tuple(demonstrations.images.shape[1:])
            ),
            'observation.state': PolicyFeature(FeatureType.STATE, (states,)),
        },
        output_features={'action': PolicyFeature(FeatureType.ACTION, (actions,))},
        device='cpu',
        push_to_hub=False,
        pretrained_backbone_weights=None,
        chunk_size=CHUNK,
        n_action_steps=EXECUTED,
        dim_model=128,
        n_heads=4,
        dim_feedforward=256,
        n_encoder_layers=2,
        use_vae=False,
        optimizer_lr=LEARNING_RATE,
        optimizer_lr_backbone=LEARNING_RATE,
    )
    return ACTPolicy(config), *make_act_pre_post_processors(config, demonstrations.statistics())


def train(demonstrations: Demonstrations, folder: Path, seed: int, settings: dict, steps: int):
    """Train in `folder`, or go on; the policy and its processors. Equal seeds give equal policies."""
    torch.manual_seed(seed)
    policy, before, after = make_policy(demonstrations)
    parameters = policy.get_optim_params()
    preset = policy.config.get_optimizer_preset()
    optimizer = torch.optim.AdamW(parameters, lr=preset.lr, weight_decay=preset.weight_decay, fused=True)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))),
    )
    first, seconds, losses = 0, 0.0, []
    if (folder / 'state.pt').exists():
        state = torch.load(folder / 'state.pt', weights_only=True)
        policy.load_state_dict(state['policy'])
        optimizer.load_state_dict(state['optimizer'])
        schedule.load_state_dict(state['schedule'])
        first, seconds, losses = state['step'], state['seconds'], state['losses']
    augment = image_transforms() if settings['transforms'] else None
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    policy.train()
    policy.model.backbone.to(memory_format=torch.channels_last)
    for step in tqdm(range(first, steps), desc=str(folder), initial=first, total=steps, disable=None):
        torch.manual_seed(seed * 1_000_003 + step)  # also of dropout: a stopped run goes on as if it had not
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        batch = demonstrations.batch(demonstrations.draw(BATCH, settings['real_share'], rng))
        if augment:
            key = 'observation.images.front'
            batch[key] = torch.stack([augment(image) for image in batch[key]])
        with torch.autocast('cpu', torch.bfloat16):
            loss, _ = policy(before(batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            state = {'policy': policy.state_dict(), 'optimizer': optimizer.state_dict()}
            state |= {'schedule': schedule.state_dict(), 'step': step + 1, 'losses': losses}
            state['seconds'] = seconds + time.process_time() - begin
            torch.save(state, folder / 'state.part')
            (folder / 'state.part').replace(folder / 'state.pt')
    for part in (policy, before, after):
        part.save_pretrained(folder / 'policy')
    return policy.eval(), before, after


def image_transforms():
    """What `lerobot-train` does to images if it is told to, with its own numbers."""
    from lerobot.transforms import ImageTransforms, ImageTransformsConfig

    return ImageTransforms(ImageTransformsConfig(enable=True))


@cache
def _scene(task: str, size: tuple[int, int]) -> Scene:
    scene = Scene(task, *size)
    _free_scenes_at_exit()
    return scene


@cache
def _free_scenes_at_exit():
    atexit.register(_scene.cache_clear)  # only now: so it runs before the OpenGL context is freed


@cache
def evaluation_seeds(task: str, size: tuple[int, int], count: int) -> tuple[int, ...]:
    """The first seeds of which the expert solves the task."""
    seeds, scene = [], _scene(task, size)
    for seed in range(FIRST_SEED, FIRST_SEED + RETRY_STRIDE):
        if len(seeds) == count:
            break
        if scene.run_expert(seed, draw_scene(task, seed)[0])[-1] is not None:
            seeds.append(seed)
    return tuple(seeds)


@torch.no_grad()
def play(policy, before, after, demonstrations: Demonstrations, task: str, seed: int, look: str) -> dict:
    """One episode in simulation: its line in OUT/ROW.jsonl, without the row's name."""
    variation, jitter = LOOKS[look]
    scene = _scene(task, demonstrations.frame_size)
    offset, cameras = draw_scene(task, seed, camera_jitter=jitter)
    camera, fovy = cameras['front'], VIEWS['front'].fovy
    scene.vary(np.random.default_rng((seed, 2)) if variation else None, **(variation or {}))
    hand = scene.reset(seed, offset)[:4]
    policy.reset()
    solved, done = False, 0
    while not solved and done < MAX_ACTIONS:
        frame = scene.render_colour(camera, fovy)
        observation = {
            'observation.images.front': shrink(frame[None], demonstrations.images.shape[2:])[0].float() / 255,
            'observation.state': torch.from_numpy(np.float32(hand)),
        }
        with torch.autocast('cpu', torch.bfloat16):
            chunk = policy.predict_action_chunk(before(observation))
        for action in after(chunk[0, :EXECUTED].float()).numpy():
            hand, solved = scene.drive(action, demonstrations.stride)
            done += 1
            if solved or done == MAX_ACTIONS:
                break
    return {'task': task, 'seed': seed, 'look': look, 'success': solved, 'actions': done}


def run(args) -> None:
    out, row = args.out, args.row
    out.mkdir(parents=True, exist_ok=True)
    settings = {'data': args.data, 'transforms': args.transforms, 'real_share': args.real_share}
    demonstrations = load(args.data, args.tasks)
    settings |= {'tasks': args.tasks, 'steps': args.steps, 'episodes': list(demonstrations.episodes)}
    refuse_other_settings(out / f'{row}.json', settings)
    drop_cut_off_line(out / f'{row}.jsonl')
    done = {(e['train_seed'], e['task'], e['seed'], e['look']) for e in read_lines(out / f'{row}.jsonl')}
    size = demonstrations.frame_size
    plan = [
        (train_seed, task, seed, look)
        for train_seed in args.seeds
        for task in demonstrations.tasks
        for seed in evaluation_seeds(task, size, args.episodes)
        for look in args.looks
    ]
    for train_seed in args.seeds:
        todo = [job for job in plan if job[0] == train_seed and job not in done]
        if not todo:
            continue
        folder = out / row / str(train_seed)
        trained = train(demonstrations, folder, train_seed, settings, args.steps)
        with (out / f'{row}.jsonl').open('a') as file:
            for _, task, seed, look in tqdm(todo, desc=f'{row} {train_seed}', disable=None):
                line = {'train_seed': train_seed, **play(*trained, demonstrations, task, seed, look)}
                file.write(json.dumps(line) + '\n')
                file.flush()


def refuse_other_settings(path: Path, settings: dict) -> None:
    """Keep what a row was made with; ValueError if it was made with something else."""
    if path.exists() and (there := json.loads(path.read_text())) != settings:
        raise ValueError(f'{path}: was made with {there}, asked for is {settings}: give another row or OUT')
    path.write_text(json.dumps(settings) + '\n')


def make(args) -> Path:
    """Write OUT/data/<method>: `variants` of each episode of the first dataset."""
    if args.make == 'every_frame':
        method = SameMotion(None, Looks(), keep='everything')
    else:
        from mask2iv_ros.pipelines.loading import load_pipeline

        method = SameMotion(load_pipeline(args.model), Looks())
    reader, chosen = chosen_episodes(args.data[0], args.tasks)
    root = args.out / 'data' / args.make
    root.parent.mkdir(parents=True, exist_ok=True)
    facts = {'data': args.data[0], 'variants': args.variants, 'model': args.model, 'looks': LOOKS_VERSION}
    refuse_other_settings(root.with_suffix('.json'), facts)
    jobs = [(variant, index) for variant in range(args.variants) for index in chosen]
    done = len(open_dataset(root)) if root.exists() else 0
    with LeRobotClipWriter(root, robot_type='sawyer') as writer:
        for number, (variant, index) in enumerate(tqdm(jobs[done:], initial=done, total=len(jobs)), done):
            cameras = reader.episode(index).cameras
            views = {camera: reader.read(index, camera=camera) for camera in cameras}
            made = method(views, seed=variant * RETRY_STRIDE + index)
            for clip in made.values():
                clip.fps = reader.episode(index).fps
                clip.source['augmentation'] |= {'mode': args.make, 'variant': variant}
            writer.add(made)
            if (number + 1) % 16 == 0:
                writer.commit()
    return root


def replayed(task: str, strides: tuple[int, ...], episodes: int) -> dict:
    """How many of a task's episodes that the expert solves are solved again by its actions at each rate."""
    scene, solved = Scene(task, 48, 64), dict.fromkeys(strides, 0)
    expert = 0
    for seed in range(episodes):
        offset, _ = draw_scene(task, seed)
        *_, commands, success = scene.run_expert(seed, offset)
        if success is None:
            continue
        expert += 1
        for stride in strides:
            scene.reset(seed, offset)
            ends = np.minimum(np.arange(0, len(commands), stride) + stride, len(commands)) - 1
            solved[stride] += any(scene.drive(action, stride)[1] for action in commands[ends])
    return {'episodes': episodes, 'expert': expert, 'replayed': solved}


def write_replay(results: Path, tasks: list[str], episodes: int, strides=(2, 4, 8)) -> None:
    """Write `results`_replay.json and .md."""
    rows = {task: replayed(task, strides, episodes) for task in tqdm(tasks, disable=None)}
    rates = [f'{frame_rate(stride):.0f} Hz (stride {stride})' for stride in strides]
    text = [
        'Episodes whose recorded actions, executed again from the same placement, solve the task, of those',
        'that the expert solves; see `policy_gain.py --replay`.',
        '',
        '| task | expert | ' + ' | '.join(rates) + ' |',
        '|---' * (len(strides) + 2) + '|',
    ]
    total = {stride: sum(row['replayed'][stride] for row in rows.values()) for stride in strides}
    whole = {
        'episodes': episodes * len(rows),
        'expert': sum(row['expert'] for row in rows.values()),
        'replayed': total,
    }
    for task, row in {**rows, 'all': whole}.items():
        cells = ' | '.join(f'{row["replayed"][stride]}/{row["expert"]}' for stride in strides)
        text.append(f'| {task} | {row["expert"]}/{row["episodes"]} | {cells} |')
    path = results.with_name(f'{results.name}_replay.md')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(text) + '\n')
    path.with_suffix('.json').write_text(json.dumps({'tasks': rows, 'all': whole}, indent=1) + '\n')


def share(lines: list[dict]) -> dict:
    """Success in per cent with its interval, and that of each trained policy.

    Looks and policies meet the same placements, and 'surroundings' is the room of 'strong': the interval is
    that of as many trials as there are placements.
    """
    solved = sum(line['success'] for line in lines)
    trials = len({(line['task'], line['seed']) for line in lines})
    low, high = wilson_interval(trials * solved / len(lines), trials)
    policies = {}
    for line in lines:
        policies.setdefault(line['train_seed'], []).append(line['success'])
    return {
        'success': 100 * solved / len(lines),
        'low': low,
        'high': high,
        'episodes': len(lines),
        'policies': {seed: 100 * float(np.mean(found)) for seed, found in sorted(policies.items())},
    }


def difference(one: dict, other: dict) -> tuple[float, float, float]:
    """Percentage points that `one` is above `other`, with the 95 % interval of Newcombe (1998), method 10."""
    gap = one['success'] - other['success']
    down = np.hypot(one['success'] - one['low'], other['high'] - other['success'])
    up = np.hypot(one['high'] - one['success'], other['success'] - other['low'])
    return gap, gap - down, gap + up


def summary(lines: list[dict]) -> dict:
    looks = [look for look in LOOKS if any(line['look'] == look for line in lines)]
    found = {look: share([line for line in lines if line['look'] == look]) for look in looks}
    if changed := [line for line in lines if line['look'] in CHANGED]:
        found['changed'] = share(changed)
    tasks = sorted({line['task'] for line in lines})
    cells = {
        task: {
            look: share(here)
            for look in looks
            if (here := [line for line in lines if (line['task'], line['look']) == (task, look)])
        }
        for task in tasks
    }
    return {'looks': found, 'tasks': cells}


def write_table(out: Path, results: Path) -> None:
    """Write `results`.json, .md and .png of the rows that are in `out`."""
    rows = {}
    for path in sorted(out.glob('*.jsonl'), key=lambda path: (path.stem not in BASELINES, path.stem)):
        if lines := read_lines(path):
            settings = json.loads(path.with_suffix('.json').read_text())
            settings['data'] = ['/'.join(Path(name).parts[-2:]) for name in settings['data']]
            rows[path.stem] = {'settings': settings, **summary(lines)}
    if not rows:
        raise SystemExit(f'{out}: has no row')
    columns = [look for look in (*LOOKS, 'changed') if any(look in row['looks'] for row in rows.values())]

    def cell(found: dict | None) -> str:
        return '' if found is None else f'{found["success"]:.0f} [{found["low"]:.0f}, {found["high"]:.0f}]'

    text = [
        'Success in per cent with 95 % intervals (Wilson, of as many trials as placements); changed: '
        f'{" and ".join(CHANGED)}; see `policy_gain.py`.',
        '',
        '| row | data | ' + ' | '.join(columns) + ' | policies, changed |',
        '|---' * (len(columns) + 3) + '|',
    ]
    for name, row in rows.items():
        settings = row['settings']
        counts = zip(settings['data'], settings['episodes'], strict=True)
        data = ' + '.join(f'{name} ({count} episodes)' for name, count in counts) + (
            ' + transforms' if settings['transforms'] else ''
        )
        if settings['real_share'] is not None:
            data += f', {settings["real_share"]:.0%} of a batch real'
        each = row['looks'].get('changed', {'policies': {}})['policies'].values()
        cells = ' | '.join(cell(row['looks'].get(look)) for look in columns)
        text.append(f'| {name} | {data} | {cells} | {", ".join(f"{value:.0f}" for value in each)} |')
    text += ['', '| row | task | ' + ' | '.join(columns[:-1] if columns[-1] == 'changed' else columns) + ' |']
    text.append('|---' * (text[-1].count('|') - 1) + '|')
    for name, row in rows.items():
        for task, cells in row['tasks'].items():
            shown = ' | '.join(cell(cells.get(look)) for look in columns if look != 'changed')
            text.append(f'| {name} | {task} | {shown} |')
    if 'real' in rows:
        text += [
            '',
            'Points above `real` (95 % interval of Newcombe; over placements, not training seeds):',
            '',
        ]
        text += ['| row | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
        for name, row in rows.items():
            if name == 'real':
                continue
            gaps = [
                difference(row['looks'][look], rows['real']['looks'][look])
                if look in row['looks'] and look in rows['real']['looks']
                else None
                for look in columns
            ]
            shown = ' | '.join('' if g is None else f'{g[0]:+.0f} [{g[1]:+.0f}, {g[2]:+.0f}]' for g in gaps)
            text.append(f'| {name} | {shown} |')
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix('.md').write_text('\n'.join(text) + '\n')
    results.with_suffix('.json').write_text(json.dumps({'rows': rows}, indent=1) + '\n')
    _figure(rows, columns).savefig(results.with_suffix('.png'), dpi=110)
    print('\n'.join(text))


def _figure(rows: dict, columns: list[str]) -> Figure:
    figure = Figure((9, 4), layout='constrained')
    axes = figure.add_subplot()
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        there = [(place, row['looks'][look]) for place, look in enumerate(columns) if look in row['looks']]
        places = [place + (number - (len(rows) - 1) / 2) * width for place, _ in there]
        heights = np.array([found['success'] for _, found in there])
        ends = np.array([(found['low'], found['high']) for _, found in there]).T
        axes.bar(places, heights, width, yerr=np.abs(ends - heights), label=name,
                 error_kw={'elinewidth': 0.8, 'alpha': 0.6})  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.set(ylabel='success, %', ylim=(0, 105))
    axes.legend(fontsize=8, ncols=4, loc='lower center', bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--row', help='name of the row to train and try; any word')
    parser.add_argument('--make', choices=['every_frame', 'same_motion'], help='write OUT/data/<this>')
    parser.add_argument('--table', action='store_true', help='write the result files of what is in OUT')
    parser.add_argument('--replay', action='store_true', help='write whether recorded actions solve tasks')
    parser.add_argument('--data', nargs='+', metavar='FOLDER[:EPISODES A TASK]', help='real ones first')
    parser.add_argument('--tasks', nargs='+', help='only these of the data')
    parser.add_argument('--transforms', action='store_true', help="LeRobot's image transforms")
    parser.add_argument('--real-share', type=float, help='of a batch from the first dataset')
    parser.add_argument('--steps', type=int, default=2000, help='of training')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='of training')
    parser.add_argument('--episodes', type=int, default=25, help='placements a task and look')
    parser.add_argument('--looks', nargs='+', default=['training', *CHANGED], choices=LOOKS)
    parser.add_argument('--variants', type=int, default=20, help='of each episode, for --make')
    parser.add_argument('--model', default='', help='for --make same_motion; the embedded one if left out')
    parser.add_argument('--results', type=Path, default=RESULTS, help='result files, without their ending')
    args = parser.parse_args(argv)
    if not (args.row or args.make or args.table or args.replay):
        parser.error('give --row, --make, --table or --replay')
    if (args.row or args.make) and not args.data:
        parser.error('give --data')
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))
    if args.make:
        make(args)
    if args.row:
        run(args)
    if args.replay:
        write_replay(args.results, args.tasks or list(TASKS), args.episodes)
    if args.table:
        write_table(args.out, args.results)


if __name__ == '__main__':
    main()
