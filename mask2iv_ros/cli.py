"""`mask2iv`: the package from a shell. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import mask2iv_ros
from mask2iv_ros.resources import config_path, set_environment

#: What `mask2iv augment --change` takes (`mask2iv_ros.augmentation.method.CHANGES`, whose import is slow).
CHANGES = ('object', 'background', 'light', 'distractors')

SOURCE_HELP = 'folder of LeRobot v3, BridgeData V2, HOI4D, rosbag2 or a prepared benchmark, or HDF5 file(s)'


def add_source(sub: argparse.ArgumentParser, name: str = 'source', more: str = ''):
    """The argument for a dataset of any kind, and the options that some kinds need; see `reader_options`."""
    sub.add_argument(name, type=Path, help=SOURCE_HELP + more)
    sub.add_argument('--split', help='robomimic: filter key; prepared benchmark: train, val or test')
    sub.add_argument(
        '--contract', type=Path, help='rosbag2: YAML file of its topics, see config/recording.yaml'
    )


def reader_options(args: argparse.Namespace) -> dict:
    """What `open_dataset` has to be told of a source; JSON-serialisable."""
    options = {'split': args.split, 'contract': args.contract and str(args.contract.resolve())}
    options |= {name: getattr(args, name, None) for name in ('orientation', 'standard_jpeg')}
    return {name: value for name, value in options.items() if value}


def read_image(path: Path):
    """Read a picture as (H, W, 3) uint8 RGB; ValueError if it has more than 8 bits a channel."""
    import numpy as np

    return np.asarray(_open_picture(path).convert('RGB'))


def read_mask(path: Path):
    """Read a mask picture as (H, W) bool: every pixel that is not black, and not transparent."""
    import numpy as np

    image = _open_picture(path)
    mask = np.asarray(image.convert('RGB')).any(axis=-1)
    if 'A' in image.getbands():
        mask &= np.asarray(image.getchannel('A')) > 0
    if mask.all():
        raise ValueError(f'{path}: every pixel is object; expected a black background')
    return mask


def _open_picture(path: Path):
    from PIL import Image

    try:
        image = Image.open(path)
        image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f'{path}: {error}') from error
    if image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):
        raise ValueError(f'{path}: expected 8 bits a channel, got a picture of mode {image.mode}')
    return image


def simulate(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.metaworld import simulate
    from mask2iv_ros.data.metaworld_tasks import SIZES

    if args.size not in SIZES:
        raise ValueError(f'unknown size {args.size!r}; known: {", ".join(SIZES)}')
    for name, split in SIZES[args.size].items():
        options = vars(split).copy()
        if args.tasks:
            options['tasks'] = args.tasks
        wanted = args.episodes if name == 'train' else args.test_episodes
        if wanted is not None:
            options['episodes'] = wanted
        if not options['episodes'] or (args.tasks and name == 'test_tasks'):
            continue
        manifest = simulate(
            args.out, name, workers=args.workers, height=args.height, width=args.width,
            variation=args.variation, stride=args.stride, camera_jitter=args.camera_jitter, **options
        )  # fmt: skip
        counts = manifest['counts']
        print(f'{args.out / name}: {len(counts)} tasks, {sum(counts.values())} episodes', end='')
        print(f', sha256 {manifest["sha256"]}')


def train(args: argparse.Namespace) -> None:
    from mask2iv_ros.training.recipe import Recipe

    config = Path(args.config)
    if not config.is_file() and config.name == args.config:  # one of the package's
        config = config_path(f'train/{args.config}.yaml')
    recipe = Recipe(config, args.data, args.out, args.init)
    parts = recipe.parts if args.part == 'all' else [args.part]
    if missing := set(parts) - set(recipe.parts):
        raise ValueError(f'{config} says nothing of {missing.pop()}; it trains {", ".join(recipe.parts)}')
    end = None if args.max_minutes is None else time.monotonic() + args.max_minutes * 60
    for part in parts:
        if not recipe.train(part, None if end is None else (end - time.monotonic()) / 60):
            recipe.state.print(f'{part}: stopped before its schedule ended; the same command continues it')
            return
    if args.part == 'all':
        model = recipe.assemble()
        recipe.state.print(f'model: {model}')


def train_inverse_dynamics(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.episodes import open_dataset
    from mask2iv_ros.training import inverse_dynamics as training

    if args.model and not args.generate:
        raise ValueError('--model: expected --generate, for which it draws; nothing else needs a model')
    options = training.InverseDynamicsOptions(
        steps=args.steps, chunk=args.chunk, sample_size=tuple(args.size), seed=args.seed
    )
    reader = open_dataset(args.data, **reader_options(args))
    report = training.train_inverse_dynamics(reader, args.out, args.cameras, options, args.max_minutes)
    if report is None:
        print('stopped before its schedule ended; the same command continues it')
        return
    if args.generate:
        from mask2iv_ros.augmentation.same_motion import SameMotion
        from mask2iv_ros.pipelines.loading import load_pipeline

        method = SameMotion(load_pipeline(args.model), lambda frame, labels, rng: frame)
        report = training.add_generated_errors(args.out, reader, args.generate, method)
    print(training.report_table(report))
    print(f'{args.out}: model and {training.REPORT}')


def train_segmenter(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.episodes import open_dataset
    from mask2iv_ros.training.segmenter import train_segmenter

    reader = open_dataset(args.data, **reader_options(args))
    report = train_segmenter(reader, args.out, max_minutes=args.max_minutes, seed=args.seed)
    if report is None:
        print('stopped before its schedule ended; the same command continues it')
        return
    print(json.dumps(report, indent=2))
    print(f'{args.out / "segmenter"}: IoU by label on held-out frames is in {args.out / "report.json"}')


def generate(args: argparse.Namespace) -> None:
    from mask2iv_ros.pipelines.loading import load_pipeline
    from mask2iv_ros.planning.assess import check_plans
    from mask2iv_ros.planning.checks import PlanLimits
    from mask2iv_ros.planning.generate import generate_plans
    from mask2iv_ros.planning.request import GenerationRequest, plan_to_clip

    request = GenerationRequest(
        frame=read_image(args.image),
        object_mask=read_mask(args.mask),
        actor_mask=read_mask(args.actor_mask) if args.actor_mask else None,
        task=args.task,
        goal_mask=read_mask(args.goal_mask) if args.goal_mask else None,
        goal_pixel=tuple(args.goal_pixel) if args.goal_pixel else None,
        num_samples=args.samples,
        seed=args.seed,
        num_inference_steps=args.steps,
        trajectory_only=args.trajectory_only,
        num_frames=args.frames,
        guidance_scale=args.guidance,
    )
    if args.export and args.trajectory_only:
        raise ValueError('--export needs the video, which --trajectory-only leaves out')
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as opened:
        writer = None
        if args.export:  # before the work, so that a place that cannot be written is known at once
            from mask2iv_ros.data.lerobot import LeRobotClipWriter, is_filled, load_metadata

            if is_filled(args.export):
                load_metadata(args.export)
            writer = opened.enter_context(LeRobotClipWriter(args.export))
        pipeline = load_pipeline(args.model, args.device, low_memory=args.low_memory)
        plans = generate_plans(pipeline, request)
        plans = check_plans(plans, PlanLimits())
        write_plans(args.out, plans, request)
        for plan in plans if writer else ():
            writer.add(plan_to_clip(plan, request))
    if writer:
        print(f'{args.export}: {len(plans)} episodes added')


def write_plans(out: Path, plans: list, request) -> None:
    """Write each plan into `out/plan_<i>/`, in place of the plans of an earlier run."""
    from mask2iv_ros.labels import overlay
    from mask2iv_ros.pictures import plan_sheet, write_picture, write_video
    from mask2iv_ros.planning.request import plan_facts

    for folder in out.glob('plan_*'):
        if (folder / 'plan.json').is_file():
            shutil.rmtree(folder)
    for i, plan in enumerate(plans):
        folder = out / f'plan_{i}'
        (folder / 'labels').mkdir(parents=True, exist_ok=True)
        for t, labels in enumerate(plan.labels):
            write_picture(folder / 'labels' / f'{t:02d}.png', labels)
        backdrop = plan.frames if plan.frames is not None else request.frame[None].repeat(len(plan.labels), 0)
        write_video(folder / 'mask_overlay.mp4', overlay(backdrop, plan.labels), plan.fps)
        if plan.frames is not None:
            write_video(folder / 'video.mp4', plan.frames, plan.fps)
            write_video(folder / 'video.gif', plan.frames, plan.fps)
        sheet = plan_sheet(plan.labels, plan.frames, plan.task or 'goal')
        write_picture(folder / 'contact_sheet.png', sheet)
        facts = plan_facts(plan)
        (folder / 'plan.json').write_text(json.dumps(facts, indent=2) + '\n')
        print(f'{folder}: seed {plan.seed}, score {plan.score:.2f} ({plan.score_meaning})')
        for check in plan.checks:
            if not check.passed:
                print(f'  fails the check {check.name}: {check.reason}')


def prepare(args: argparse.Namespace) -> None:
    from mask2iv_ros.data import paper_benchmarks

    if args.benchmark == 'hoi4d':
        manifest = paper_benchmarks.prepare_hoi4d(args.source, args.out)
    else:
        manifest = paper_benchmarks.prepare_bridge(args.source, args.out, args.masks)
    print(f'{args.out}: clips {manifest["kept"]}, dropped by rule {manifest["dropped"]}')
    for item in manifest['skipped']:
        print(f'skipped: {item["error"]}', file=sys.stderr)


def import_(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.episodes import open_dataset, options_identity
    from mask2iv_ros.data.transfer import copy_episodes

    options = reader_options(args)
    skipped = [] if args.skip_bad else None
    reader = open_dataset(args.source, **options)
    told = options_identity(options)
    count = copy_episodes(reader, args.out, args.cameras, args.depth, args.task, None, skipped, told)
    print(f'{args.out}: {count} episodes')
    for error in skipped or ():
        print(f'skipped: {error}', file=sys.stderr)


def segment(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.episodes import open_dataset, options_identity
    from mask2iv_ros.data.masking import DatasetSegmenter, segment_dataset

    segmenter = DatasetSegmenter(
        detector=args.detector,
        segmenter=args.segmenter,
        device=args.device,
        actor=args.actor,
        objects=args.objects,
        masks=args.masks,
        actor_masks=args.actor_masks,
        first_masks=args.first_masks,
    )
    skipped = [] if args.skip_bad else None
    options = reader_options(args)
    reader = open_dataset(args.source, **options)
    asked = ('detector', 'segmenter', 'actor', 'objects', 'masks', 'actor_masks', 'first_masks')
    told = options_identity(options)
    for name in asked:
        if (value := getattr(args, name)) is not None:
            told[name] = str(value.resolve() if isinstance(value, Path) else value)
    count, rejected = segment_dataset(reader, args.out, segmenter, args.camera, skipped, told)
    print(f'{args.out}: {count} episodes with masks; look at {args.out}_review/')
    for reason in rejected:
        print(f'rejected: {reason}')
    for error in skipped or ():
        print(f'skipped: {error}', file=sys.stderr)


def augment(args: argparse.Namespace) -> None:
    import functools

    from mask2iv_ros.augmentation.job import augment
    from mask2iv_ros.augmentation.method import (
        build_method,
        build_thresholds,
        check_options,
        method_facts,
        pictures,
        uses_gpu,
    )
    from mask2iv_ros.augmentation.worker import Job

    check_options(args)
    for name in ('source', 'segmenter', 'inverse_dynamics'):  # workers of a cluster are elsewhere
        if path := getattr(args, name):
            setattr(args, name, path.resolve())
    args.model = args.model and str(Path(args.model).expanduser().resolve())
    args.pictures = [f'{camera}={Path(file).resolve()}' for camera, file in pictures(args).items()]
    job = Job(
        source=str(args.source),
        mode=args.mode.replace('-', '_'),
        variants=args.variants,
        seed=args.seed,
        cameras=args.cameras and tuple(args.cameras),
        other_cameras=args.other_cameras,
        drop=tuple(args.drop),
        include_source=args.include_source,
        hold_out=args.hold_out,
        method=method_facts(args),
        license=args.license,
        options=reader_options(args),
    )
    build = functools.partial(build_method, args)
    thresholds = build_thresholds(args)
    report = augment(job, args.out, build, thresholds, args.executor, args.workers, uses_gpu(args))
    told = [f'{count} {kind}' for kind, count in report.counts.items() if kind != 'frames']
    print(f'{args.out}: episodes {", ".join(told)}', end='')
    print(f'; {report.episodes_per_hour:.0f} an hour' if report.episodes_per_hour else '')
    for gate, count in report.dropped_by_gate.items():
        print(f'dropped by {gate}: {count}')
    for reason in report.failed:
        print(f'failed: {reason}', file=sys.stderr)
    if not report.complete:
        raise RuntimeError('not finished; the same command does the rest, and keeps what is done')
    if report.failed:
        raise RuntimeError(f'{len(report.failed)} episodes could not be made; the dataset has the others')


def show(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.dataset_page import write_page
    from mask2iv_ros.data.episodes import open_dataset

    reader = open_dataset(args.source, **reader_options(args))
    print(write_page(reader, args.out, args.clips, args.camera, args.skip_bad))


def evaluate(args: argparse.Namespace) -> None:
    import torch

    from mask2iv_ros.evaluation.evaluate import Evaluation, Settings, open_splits
    from mask2iv_ros.evaluation.extractors import Extractors
    from mask2iv_ros.pipelines.loading import load_pipeline

    readers = open_splits(args.data, args.split)
    models = {}
    for value in args.model:
        name, equals, folder = value.partition('=')
        if not equals or Path(value).exists():
            name, folder = '', value
        pipeline = load_pipeline(folder, args.device, args.dtype and getattr(torch, args.dtype))
        if args.steps:
            pipeline.register_to_config(num_inference_steps=args.steps)
        name = name or pipeline.config.name
        if name in models:
            raise ValueError(f'two models are called {name!r}; name them, as in --model first={folder}')
        models[name] = pipeline
    first = next(iter(models.values()))
    settings = Settings(
        size=tuple(args.size or first.config.sample_size),
        seed=args.seed,
        samples=args.samples,
        trajectory_only=args.trajectory_only,
        text_clips=args.text_clips,
        camera=args.camera,
        short_side=args.short_side,
        **({'controls': tuple(args.controls)} if args.controls else {}),
    )
    extractors = Extractors(args.weights, args.clip_model, first.device)
    for metric, why in extractors.left_out.items():
        print(f'left out: {metric}: {why}', file=sys.stderr)
    evaluation = Evaluation(models, args.out, settings, extractors)
    for split, reader in readers.items():
        evaluation.run(reader, split, args.clips)
        print((args.out / f'{split}.md').read_text())
    print(f'{args.out}: JSON, tables, figures and contact sheets of {", ".join(readers)}')


def convert(args: argparse.Namespace) -> None:
    from mask2iv_ros.pipelines.conversion import convert_checkpoint

    report = convert_checkpoint(args.checkpoint, args.out, args.video, args.stage, args.size)
    for note in report['notes']:
        print(note)
    for account in report['checkpoints']:
        counts = ', '.join(f'{len(account[kind])} {kind}' for kind in ('used', 'not_needed', 'unused'))
        print(f'{account["file"]}: keys {counts}'.replace('_', ' '))
    print(f'{args.out}: {report["pipeline"]}; every key is in {args.out / "report.json"}')


def demo(args: argparse.Namespace) -> None:
    try:
        from mask2iv_ros.ros.demo import run_demo
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f'the demo talks over ROS 2, and {error.name} is missing; run `make demo`, which sets it up'
        ) from error
    run_demo(args.out, args.scene, args.seed, args.task)


#: Commands of two words; data whose folder is called as the second are given as ./segmenter.
TWO_WORDS = ('train inverse-dynamics', 'train segmenter')


class _Parser(argparse.ArgumentParser):
    """Takes a command of two words for one."""

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        if (words := ' '.join(args[:2])) in TWO_WORDS:
            args[:2] = [words]
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog='mask2iv', description=mask2iv_ros.__doc__.splitlines()[0])
    parser.add_argument('--version', action='version', version=mask2iv_ros.__version__)
    commands = parser.add_subparsers(
        title='commands', required=True, metavar='COMMAND', parser_class=argparse.ArgumentParser
    )

    def command(function, text: str, name: str = '') -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name or function.__name__.rstrip('_'),
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(function=function)
        return sub

    sub = command(generate, 'plan an interaction on a picture: mask trajectories and a video')
    sub.add_argument('image', type=Path, help='picture of the scene')
    sub.add_argument('mask', type=Path, help='mask of the object to act on, same size; not black is object')
    sub.add_argument('--task', default='', help='what to do, such as "open the drawer"')
    sub.add_argument('--actor-mask', type=Path, help='mask of the visible robot or hand')
    sub.add_argument('--goal-mask', type=Path, help='mask of where the object should end')
    sub.add_argument(
        '--goal-pixel', type=float, nargs=2, metavar=('X', 'Y'), help='where its centre should end'
    )
    sub.add_argument('-o', '--out', type=Path, default=Path('out'), help='folder for the results')
    sub.add_argument('--export', type=Path, metavar='DATASET', help='also append to this LeRobot v3 dataset')
    sub.add_argument('--samples', type=int, default=1, help='plans to draw')
    sub.add_argument('--seed', type=int, default=0, help='seed of the first plan')
    sub.add_argument('--steps', type=int, default=0, help='denoising steps a stage; 0: as the model says')
    sub.add_argument(
        '--frames', type=int, default=0, help="frames of the plan, finer in time; 0: the model's"
    )
    sub.add_argument(
        '--guidance',
        type=float,
        help="above 1, text and goal count for more, at twice the time; left out: the model's",
    )
    sub.add_argument('--trajectory-only', action='store_true', help='masks only, no video')
    sub.add_argument('--model', default='', help='model folder; empty: the embedded mask2iv-sim')
    sub.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    sub.add_argument('--low-memory', action='store_true', help='for small cards: 8-bit weights, offloading')

    sub = command(simulate, 'make the simulated benchmark: a LeRobot v3 dataset for each split')
    sub.add_argument('out', type=Path, help='folder for the datasets; an interrupted run is continued')
    sub.add_argument(
        '--size',
        default='sim8',
        help='tiny, small (48 tasks, minutes) or full (48 tasks, hours): three cameras, held-out tasks and '
        'camera, depth; execution: 14 tasks, also from the cameras plans are executed with; scenes: '
        'more of these, one camera each; goals: 3 tasks in which only the goal tells where the object ends; '
        'sim8: 8 tasks from one camera',
    )
    sub.add_argument('--tasks', nargs='+', metavar='TASK', help='only these Meta-World tasks')
    sub.add_argument('--episodes', type=int, help='training episodes a task, instead of those of the size')
    sub.add_argument('--test-episodes', type=int, help='episodes a task of every other split')
    sub.add_argument('--variation', action='store_true', help='vary light, colours, textures, cameras more')
    sub.add_argument(
        '--stride',
        type=int,
        metavar='STEPS',
        help='whole episodes at a true rate, with actions that can be executed: simulator steps (80 a '
        'second) between frames, 4 for 20 frames a second; left out: 16 frames spread over each episode',
    )
    sub.add_argument(
        '--camera-jitter', type=float, default=1.0, help='how far cameras move between episodes; 0: stay'
    )
    sub.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes that render')
    sub.add_argument('--height', type=int, default=240, help='pixels')
    sub.add_argument('--width', type=int, default=320, help='pixels')

    sub = command(train, 'train a model or a stage of one, or continue training')
    sub.add_argument('data', type=Path, help='dataset with masks, or folder with datasets train, val, test')
    sub.add_argument('out', type=Path, help='folder of the run; a stopped run is continued')
    sub.add_argument(
        '--part', choices=['all', 'autoencoder', 'trajectory', 'video'], default='all', help='what'
    )
    sub.add_argument(
        '--config',
        default='mask2iv-sim',
        help='YAML file, or one of config/train: mask2iv-sim (a whole small model), finetune (the embedded '
        'one, trained on), {hoi4d,bridge,metaworld}_{trajectory,video} (a stage, as in the paper), '
        'lora_{trajectory,video} (a stage, on few clips), and baselines',
    )
    sub.add_argument('--init', help="model folder to start from, in place of the configuration's")
    sub.add_argument(
        '--max-minutes', type=float, help='stop after the step in which it ends; the same command continues'
    )

    sub = command(
        train_inverse_dynamics,
        'learn which actions belong to what is seen, from a dataset that has actions',
        'train inverse-dynamics',
    )
    add_source(sub, 'data')
    sub.add_argument('out', type=Path, help='folder for model and report; a stopped run is continued')
    sub.add_argument('--cameras', nargs='+', help='cameras to look through; all with masks if left out')
    sub.add_argument('--steps', type=int, default=3000, help='optimiser steps')
    sub.add_argument('--chunk', type=int, default=4, help='frames from the first to the second of a pair')
    sub.add_argument(
        '--size', type=int, nargs=2, default=(48, 64), metavar=('HEIGHT', 'WIDTH'), help='pixels it looks at'
    )
    sub.add_argument('--seed', type=int, default=0, help='of weights and batches')
    sub.add_argument(
        '--max-minutes', type=float, help='stop after the step in which it ends; the same command continues'
    )
    sub.add_argument(
        '--generate', type=int, default=0, metavar='EPISODES',
        help='also measure it on so many held-out episodes as a model films them again',
    )  # fmt: skip
    sub.add_argument('--model', default='', help='model folder for --generate; empty: the embedded one')

    sub = command(
        train_segmenter,
        'learn to read masks off frames, from a dataset that has both, for the gates of `mask2iv augment`',
        'train segmenter',
    )
    add_source(sub, 'data', ', with masks')
    sub.add_argument('out', type=Path, help='folder for model and report; a stopped run is continued')
    sub.add_argument('--seed', type=int, default=0, help='of weights and batches')
    sub.add_argument(
        '--max-minutes', type=float, help='stop after the step in which it ends; the same command continues'
    )

    sub = command(prepare, "make one of the paper's two benchmarks: clips, captions and splits in a manifest")
    sub.add_argument('benchmark', choices=['hoi4d', 'bridge'], help='which')
    sub.add_argument('source', type=Path, help='folder of HOI4D, or of raw BridgeData V2')
    sub.add_argument('out', type=Path, help='folder for manifest.json; `mask2iv import` and `show` read it')
    sub.add_argument('--masks', type=Path, help='bridge: folder of masks, if they are not in the dataset')

    sub = command(import_, 'copy any dataset, with masks if it has some, into a LeRobot v3 dataset')
    add_source(sub)
    sub.add_argument('out', type=Path, help='LeRobot dataset; a stopped copy is continued')
    sub.add_argument('--cameras', nargs='+', help='cameras to copy; all of the first episode if left out')
    sub.add_argument('--depth', action='store_true', help='copy depth too')
    sub.add_argument('--task', help='text for episodes that have none')
    sub.add_argument(
        '--orientation',
        choices=['upright', 'opengl', 'rotated'],
        help='HDF5: how images are stored, where the file does not tell it right',
    )
    sub.add_argument(
        '--standard-jpeg', action='store_true', help='ALOHA: JPEGs with right colours in a viewer'
    )
    sub.add_argument('--skip-bad', action='store_true', help='leave damaged episodes out and list them')

    sub = command(segment, 'draw the masks of a dataset that has none: detection on a frame, then tracking')
    add_source(sub)
    sub.add_argument(
        'out', type=Path, help='LeRobot dataset with masks, of one a full copy; a stopped run is continued'
    )
    sub.add_argument('--camera', help='camera to segment; the first if left out')
    sub.add_argument('--actor', default='black robot gripper', help='what the actor looks like, in words')
    sub.add_argument('--objects', nargs='+', help='what the object is, in words; from the task if left out')
    sub.add_argument('--masks', type=Path, help='known masks: folder with EPISODE/ of one PNG a frame')
    sub.add_argument('--actor-masks', type=Path, help='known actor masks: folder with EPISODE.mp4')
    sub.add_argument('--first-masks', type=Path, help='masks to follow: folder with EPISODE.png, first frame')
    sub.add_argument('--detector', default='IDEA-Research/grounding-dino-base', help='Grounding DINO model')
    sub.add_argument('--segmenter', default='facebook/sam2.1-hiera-large', help='SAM 2 model')
    sub.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    sub.add_argument('--skip-bad', action='store_true', help='leave damaged episodes out and list them')

    sub = command(augment, 'make new demonstrations of recorded ones, as a LeRobot v3 dataset with actions')
    add_source(sub, more=', with masks; never written to')
    sub.add_argument('out', type=Path, help='new LeRobot dataset; the same command continues a stopped job')
    sub.add_argument(
        '--mode',
        choices=['same-motion', 'new-motion'],
        default='same-motion',
        help='same-motion: new looks, actions as recorded; new-motion: actions by inverse dynamics',
    )
    sub.add_argument(
        '--segmenter',
        type=Path,
        help='folder of `mask2iv train segmenter`: measures each episode; what fails a gate is left out',
    )
    sub.add_argument('--ungated', action='store_true', help='keep every episode, unmeasured')
    sub.add_argument(
        '--gates', nargs='+', default=[], metavar='GATE=VALUE', help='other thresholds; off switches one off'
    )
    sub.add_argument(
        '--inverse-dynamics',
        type=Path,
        help='folder of `mask2iv train inverse-dynamics`: tells the actions of new motions, and measures '
        'those of new looks',
    )
    sub.add_argument(
        '--change', nargs='+', choices=CHANGES, help='what new looks change; any of it if left out'
    )
    sub.add_argument(
        '--keep',
        choices=['nothing', 'background', 'everything'],
        help='what the model does not draw. everything (without --pictures the default): each recorded frame '
        'is repainted by its masks, without a model (if the camera moves, without patterns and things '
        'on the background); background: that of a still camera is repainted, the '
        'model draws the rest',
    )
    sub.add_argument(
        '--pictures', nargs='+', metavar='CAMERA=FILE', help='first frames that are given, in place of looks'
    )
    sub.add_argument('--texts', nargs='+', default=[], help='tasks of new motions; their own if left out')
    sub.add_argument(
        '--goal-shift',
        type=float,
        help="how far goals of new motions are from the recorded ones, in parts of the object's way; 0.3 if "
        'left out',
    )
    sub.add_argument('--variants', type=int, default=3, help='new episodes for each recorded one')
    sub.add_argument('--cameras', nargs='+', help='cameras to generate; all with masks if left out')
    sub.add_argument(
        '--other-cameras',
        choices=['keep', 'drop'],
        help='cameras that are not generated, such as one on the wrist: keep their pictures as recorded, or '
        'drop them; the job refuses a source that has some if left out',
    )
    sub.add_argument(
        '--drop', nargs='+', default=[], metavar='FEATURE', help='features to leave out; * is any text'
    )
    sub.add_argument(
        '--include-source',
        type=int,
        nargs='?',
        const=1,
        default=0,
        metavar='TIMES',
        help='each recorded episode before its variants; TIMES times, if a number follows',
    )
    sub.add_argument(
        '--hold-out',
        type=float,
        default=0.0,
        metavar='FRACTION',
        help="make no variants of each task's last demonstrations, for validation with LeRobot's eval_split",
    )
    sub.add_argument('--seed', type=int, default=0, help='of everything that is drawn')
    sub.add_argument('--steps', type=int, default=0, help='denoising steps a stage; 0: as the model says')
    sub.add_argument('--model', default='', help='model folder; empty: the embedded mask2iv-sim')
    sub.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    sub.add_argument('--license', help='of the result, as the Hugging Face Hub names it, such as cc-by-4.0')
    sub.add_argument(
        '--executor',
        choices=['local', 'ray'],
        default='local',
        help='ray: workers on the cluster of RAY_ADDRESS, else on this machine; all must see the folders',
    )
    sub.add_argument(
        '--workers',
        type=int,
        help='of Ray; if left out one a GPU, or one a CPU where none is there or needed',
    )

    sub = command(show, 'look at a dataset: HTML page with statistics, sample videos, contact sheet')
    add_source(sub)
    sub.add_argument('-o', '--out', type=Path, default=Path('show'), help='folder for the page')
    sub.add_argument('--clips', type=int, default=24, help='episodes to decode, drawn at random')
    sub.add_argument('--camera', help='camera to show; the first of each episode if left out')
    sub.add_argument('--skip-bad', action='store_true', help='list damaged episodes instead of stopping')

    sub = command(evaluate, 'score models on test clips: JSON, tables, a figure, contact sheets a task')
    sub.add_argument(
        'data',
        type=Path,
        help='folder with datasets test, test_camera, test_tasks, as simulate makes; or a '
        + SOURCE_HELP.replace('rosbag2 or ', 'or '),
    )
    sub.add_argument(
        '-o', '--out', type=Path, default=Path('evaluation'), help='folder; a stopped evaluation goes on'
    )
    sub.add_argument(
        '--model',
        nargs='+',
        default=[''],
        metavar='[NAME=]FOLDER',
        help='models to compare; without it the embedded mask2iv-sim',
    )
    sub.add_argument(
        '--split',
        nargs='+',
        help='splits, each reported on its own; all test splits if left out; one dataset has test and all',
    )
    sub.add_argument('--clips', type=int, default=64, help='first clips of each split; 0: all')
    sub.add_argument('--camera', help='camera to see through; the first of each episode if left out')
    sub.add_argument('--samples', type=int, default=1, help='predictions a clip, whose mean score counts')
    sub.add_argument('--seed', type=int, default=0, help='seed of the first prediction of each clip')
    sub.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='pixels to score at, in the paper 320 512; that of the first model if left out',
    )
    sub.add_argument(
        '--short-side',
        type=int,
        metavar='PIXELS',
        help='scale pictures to it and see the middle; in the paper 384 (HOI4D), 320 (BridgeData V2); '
        'left out: the whole picture is fitted in',
    )
    sub.add_argument('--steps', type=int, help="denoising steps of each stage; each model's own if left out")
    sub.add_argument('--trajectory-only', action='store_true', help='masks only, no video')
    sub.add_argument(
        '--controls',
        nargs='+',
        metavar='CONTROL',
        help="only these control modes: 'text', 'goal', 'text+goal', 'text without actor'",
    )
    sub.add_argument('--text-clips', type=int, default=32, help='clips of a split to try other texts on')
    sub.add_argument(
        '--weights', type=Path, help="folder with weights of LPIPS and FVD; torch's cache if left out"
    )
    sub.add_argument(
        '--clip-model', default='openai/clip-vit-base-patch32', help='CLIP: name in cache or folder'
    )
    sub.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    sub.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16'],
        help='of the weights; bfloat16 on a GPU and on a CPU with AMX, else float32, if left out',
    )

    sub = command(convert, 'convert Mask2IV or DynamiCrafter checkpoints to a diffusers folder')
    sub.add_argument('checkpoint', type=Path, help='.ckpt or .safetensors file of stage 1, or the only one')
    sub.add_argument('out', type=Path, help='new folder for the result')
    sub.add_argument('--video', type=Path, metavar='CHECKPOINT', help='stage 2: makes a model to plan with')
    sub.add_argument(
        '--stage',
        choices=['trajectory', 'video'],
        help='what a single checkpoint is; if left out: trajectory, but for one of 8 input channels '
        '(DynamiCrafter) both, as training starts',
    )
    sub.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(320, 512),
        metavar=('HEIGHT', 'WIDTH'),
        help='pixels that it was trained at',
    )

    sub = command(demo, 'simulated robot camera, node, plan and LeRobot episode over real ROS 2')
    sub.add_argument('-o', '--out', type=Path, default=Path('demo_output'), help='folder for the results')
    sub.add_argument('--scene', default='drawer-open', help='Meta-World task that the camera sees')
    sub.add_argument('--seed', type=int, default=0, help='which test scene')
    sub.add_argument('--task', default='', help='text to ask for; empty: what the scene is made for')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors a user can act on are one line on stderr."""
    set_environment()
    args = build_parser().parse_args(argv)
    try:
        args.function(args)
    except KeyboardInterrupt:
        print('mask2iv: interrupted', file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get('MASK2IV_TRACEBACK'):
            raise
        known = isinstance(error, (ValueError, RuntimeError, OSError, ImportError))
        print(f'mask2iv: {error if known else repr(error)}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
