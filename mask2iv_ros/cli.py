"""`mask2iv`: the package from a shell. Heavy imports happen inside the commands that need them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import mask2iv_ros

#: No command needs the network; without this, libraries try to look for newer files.
OFFLINE = {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1'}


def config_path(name: str) -> Path:
    """A file of the config folder: in the installed package, or beside it in a source checkout."""
    package = Path(mask2iv_ros.__file__).parent
    candidates = [package / 'config' / name, package.parent / 'config' / name]
    return next((path for path in candidates if path.is_file()), candidates[0])


def read_image(path: Path):
    """Read a picture as (H, W, 3) uint8 RGB."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path).convert('RGB'))


def read_mask(path: Path):
    """Read a mask picture as (H, W) bool: every pixel that is not black."""
    return read_image(path).any(axis=-1)


def simulate(args: argparse.Namespace) -> None:
    from mask2iv_ros.data.metaworld import TASKS, simulate

    tasks = args.tasks or list(TASKS)
    for split, episodes in (('train', args.episodes), ('test', args.test_episodes)):
        if episodes:
            manifest = simulate(args.out, split, tasks, episodes, args.workers, args.height, args.width)
            print(f'{args.out / split}: {len(tasks)} tasks x {episodes}, sha256 {manifest["sha256"]}')


def train(args: argparse.Namespace) -> None:
    from mask2iv_ros.training.recipe import PARTS, Recipe

    recipe = Recipe(args.config or config_path('train/mask2iv-sim.yaml'), args.data, args.out)
    parts = PARTS if args.part == 'all' else [args.part]
    for part in parts:
        if not recipe.train(part, args.max_minutes):
            print(f'{part}: stopped before its schedule ended; the same command continues it')
    if args.part == 'all':
        print(f'model: {recipe.assemble()}')


def generate(args: argparse.Namespace) -> None:
    from mask2iv_ros.evaluation.pictures import plan_sheet, write_png, write_video
    from mask2iv_ros.labels import overlay
    from mask2iv_ros.pipelines.loading import load_pipeline
    from mask2iv_ros.planning.generate import GenerationRequest, generate_plans

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
    )
    plans = generate_plans(load_pipeline(args.model, args.device), request)
    for i, plan in enumerate(plans):
        folder = args.out / f'plan_{i}'
        (folder / 'labels').mkdir(parents=True, exist_ok=True)
        for t, labels in enumerate(plan.labels):
            write_png(folder / 'labels' / f'{t:02d}.png', labels)
        backdrop = plan.frames if plan.frames is not None else request.frame[None].repeat(len(plan.labels), 0)
        write_video(folder / 'mask_overlay.mp4', overlay(backdrop, plan.labels), 1 / plan.frame_period)
        if plan.frames is not None:
            write_video(folder / 'video.mp4', plan.frames, 1 / plan.frame_period)
            write_video(folder / 'video.gif', plan.frames, 1 / plan.frame_period)
        sheet = plan_sheet(plan.labels, plan.frames, plan.task or 'goal')
        write_png(folder / 'contact_sheet.png', sheet)
        facts = {key: value for key, value in vars(plan).items() if key not in ('labels', 'frames')}
        (folder / 'plan.json').write_text(json.dumps(facts, indent=2) + '\n')
        print(f'{folder}: seed {plan.seed}, score {plan.score:.2f} ({plan.score_meaning})')
    if args.export:
        export(args.export, plans)


def export(root: Path, plans: list) -> None:
    """Append plans to the LeRobot dataset at `root`."""
    from mask2iv_ros.data.lerobot import LeRobotClipWriter
    from mask2iv_ros.planning.generate import plan_to_clip

    with LeRobotClipWriter(root) as writer:
        for plan in plans:
            episode = writer.add(plan_to_clip(plan))
            print(f'{root}: episode {episode}')


def convert(args: argparse.Namespace) -> None:
    from mask2iv_ros.models.conversion import convert_checkpoint

    convert_checkpoint(args.checkpoint, args.out)
    print(f'{args.out}: converted, see {args.out / "report.json"}')


def demo(args: argparse.Namespace) -> None:
    try:
        from mask2iv_ros.ros.demo import run_demo
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f'the demo talks over ROS 2, and {error.name} is missing; run `make demo`, which sets it up'
        ) from error
    run_demo(args.out, args.scene, args.seed, args.task)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog='mask2iv', description=mask2iv_ros.__doc__.splitlines()[0])
    parser.add_argument('--version', action='version', version=mask2iv_ros.__version__)
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')

    def command(function, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            function.__name__,
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
    sub.add_argument('--trajectory-only', action='store_true', help='masks only, no video')
    sub.add_argument('--model', default='', help='model folder; empty: the embedded mask2iv-sim')
    sub.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')

    sub = command(simulate, 'make the simulated benchmark: LeRobot v3 datasets OUT/train and OUT/test')
    sub.add_argument('out', type=Path, help='folder for both datasets; an interrupted run is continued')
    sub.add_argument('--tasks', nargs='+', metavar='TASK', help='Meta-World tasks; all known if left out')
    sub.add_argument('--episodes', type=int, default=120, help='training episodes a task')
    sub.add_argument('--test-episodes', type=int, default=10, help='test episodes a task')
    sub.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes that render')
    sub.add_argument('--height', type=int, default=240, help='pixels')
    sub.add_argument('--width', type=int, default=320, help='pixels')

    sub = command(train, 'train the VAE and both stages, or continue training')
    sub.add_argument('data', type=Path, help='folder that `mask2iv simulate` wrote')
    sub.add_argument('out', type=Path, help='folder of the run; a stopped run is continued')
    sub.add_argument(
        '--part', choices=['all', 'autoencoder', 'trajectory', 'video'], default='all', help='what'
    )
    sub.add_argument('--config', type=Path, help='configuration; the default trains mask2iv-sim')
    sub.add_argument('--max-minutes', type=float, help='time budget of each part')

    sub = command(convert, 'convert a Mask2IV or DynamiCrafter checkpoint to a diffusers folder')
    sub.add_argument('checkpoint', type=Path, help='.ckpt or .safetensors file')
    sub.add_argument('out', type=Path, help='folder for the result')

    sub = command(demo, 'simulated robot camera, node, plan and LeRobot episode over real ROS 2')
    sub.add_argument('-o', '--out', type=Path, default=Path('demo_output'), help='folder for the results')
    sub.add_argument('--scene', default='drawer-open', help='Meta-World task that the camera sees')
    sub.add_argument('--seed', type=int, default=0, help='which test scene')
    sub.add_argument('--task', default='', help='text to ask for; empty: what the scene is made for')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors a user can act on are one line on stderr."""
    os.environ.update({key: os.environ.get(key, value) for key, value in OFFLINE.items()})
    args = build_parser().parse_args(argv)
    try:
        args.function(args)
    except KeyboardInterrupt:
        print('mask2iv: interrupted', file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if os.environ.get('MASK2IV_TRACEBACK'):
            raise
        print(f'mask2iv: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
