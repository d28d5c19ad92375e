"""What the command `mask2iv augment` loads in each worker: method, gates, and what is told of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path

import torch

from mask2iv_ros.augmentation.gates import Gates, Thresholds
from mask2iv_ros.augmentation.looks import LOOKS_VERSION, Look, Looks, Pictures
from mask2iv_ros.augmentation.same_motion import SameMotion
from mask2iv_ros.augmentation.worker import Measure, Method
from mask2iv_ros.data.images import read_image
from mask2iv_ros.weights import DEFAULT_MODEL, default_model_path, hash_weights, unpack

#: What `Looks` can change.
CHANGES = tuple(part.name for part in fields(Look))
#: How far goals of new motions are from the recorded ones, if nothing was said.
GOAL_SHIFT = 0.3


def check_options(args: argparse.Namespace) -> None:
    """Refuse what can be told before anything is loaded.

    Raises:
        ValueError: the job would ignore an option, or lacks one.
        FileNotFoundError: there is no such segmenter, or model of inverse dynamics.
    """

    def given(*names: str) -> list[str]:
        return [name for name in names if getattr(args, name) not in (None, [], '')]

    same_motion, measured = args.mode == 'same-motion', args.segmenter is not None
    for ignored, when, why in (
        (
            given('model') + ['steps'] * bool(args.steps),
            not _draws(args),
            'no model draws; say --keep background to have one',
        ),
        (given('keep', 'change', 'pictures'), not same_motion, 'new motions have no new looks'),
        (
            given('texts', 'goal_shift'),
            same_motion,
            'the motion stays as recorded; say --mode new-motion for another',
        ),
        (
            given('gates', *['inverse_dynamics'] * same_motion),
            not measured,
            'nothing is measured without --segmenter',
        ),
        (
            given('change', *['keep'] * (args.keep == 'everything')),
            args.pictures,
            'given first frames have no looks that could be repainted',
        ),
        (
            given('goal_shift'),
            args.texts,
            'new texts have no goal that could be moved',
        ),
        (given('workers'), args.executor != 'ray', 'one process does it all; say --executor ray'),
    ):
        if ignored and when:
            raise ValueError(f'{", ".join("--" + name.replace("_", "-") for name in ignored)}: {why}')
    if args.workers is not None and args.workers < 1:
        raise ValueError(f'--workers: expected at least 1, got {args.workers}')
    if args.goal_shift is not None and not math.isfinite(args.goal_shift):
        raise ValueError(f'--goal-shift: expected a number, got {args.goal_shift}')
    if not same_motion and args.inverse_dynamics is None:
        raise ValueError(
            '--mode new-motion: expected --inverse-dynamics (`mask2iv train inverse-dynamics` makes it); '
            'without it, nobody knows the actions of a new motion'
        )
    if measured and args.ungated:
        raise ValueError('--ungated: with --segmenter, what fails a gate is left out; say one of both')
    for name, command in (('segmenter', 'segmenter'), ('inverse_dynamics', 'inverse-dynamics')):
        folder = getattr(args, name)
        if folder is not None and not (folder / 'config.json').is_file():
            raise FileNotFoundError(
                f'--{command}: expected a folder with config.json, which `mask2iv train {command}` makes; '
                f'got {folder}'
            )


def build_method(args: argparse.Namespace) -> tuple[Method, Measure | None]:
    """The method that the command line asks for, and what measures its episodes for the gates."""
    from mask2iv_ros.augmentation.new_motion import NewMotion
    from mask2iv_ros.models.inverse_dynamics import InverseDynamics
    from mask2iv_ros.models.segmenter import Segmenter
    from mask2iv_ros.pipelines.loading import choose_device, load_pipeline

    pipeline = None
    if _draws(args):
        pipeline = load_pipeline(args.model, args.device)
        pipeline.set_progress_bar_config(disable=True)
        if args.steps:
            pipeline.register_to_config(num_inference_steps=args.steps)
    device, dynamics = choose_device(args.device), None
    if args.inverse_dynamics:
        dynamics = InverseDynamics.load(args.inverse_dynamics, device)
    if args.mode == 'new-motion':
        method = NewMotion(pipeline, dynamics, _goal_shift(args), args.texts)
    else:
        method = SameMotion(pipeline, build_edit(args), _kept(args))
    if args.segmenter is None:
        return method, None
    segmenter = Segmenter.from_pretrained(args.segmenter, local_files_only=True)
    segmenter = segmenter.to(device, memory_format=torch.channels_last).eval()
    window = pipeline and pipeline.config.num_frames
    return method, Gates(segmenter, dynamics, window)


def _kept(args: argparse.Namespace) -> str:
    """What is not left to the model: all that can be repainted, if nothing was said."""
    return args.keep or ('background' if args.pictures else 'everything')


def _draws(args: argparse.Namespace) -> bool:
    """Whether a model draws anything."""
    return args.mode == 'new-motion' or _kept(args) != 'everything'


def _goal_shift(args: argparse.Namespace) -> float:
    return GOAL_SHIFT if args.goal_shift is None else args.goal_shift


def uses_gpu(args: argparse.Namespace) -> bool:
    """Whether a worker has work for a GPU: what only repaints has not."""
    return args.device != 'cpu' and (_draws(args) or args.segmenter is not None)


def build_edit(args: argparse.Namespace) -> Looks | Pictures:
    """What is done to first frames."""
    if args.pictures:
        files = pictures(args)
        names = {camera: Path(file).name for camera, file in files.items()}
        return Pictures({camera: read_image(Path(file)) for camera, file in files.items()}, names)
    return Looks(**{part: 0 for part in CHANGES if args.change and part not in args.change})


def pictures(args: argparse.Namespace) -> dict[str, str]:
    """File of the given first frame of each camera."""
    return dict(_pair(text, 'CAMERA=FILE') for text in args.pictures or ())


def build_thresholds(args: argparse.Namespace) -> Thresholds | None:
    """The gates that the command line asks for; None for an ungated job.

    Raises:
        ValueError: nothing measures, and nobody said that this is wanted; there is no such gate; or nothing
            measures what one has a threshold for.
    """
    if args.segmenter is None:
        if not args.ungated:
            raise ValueError(
                'nothing measures whether generated robots do what the actions say: give --segmenter '
                '(`mask2iv train segmenter` makes one), or say --ungated'
            )
        return None
    names = [gate.name for gate in fields(Thresholds)]
    unmeasured = {}
    if args.inverse_dynamics is None:
        unmeasured['cycle_error'] = 'needs --inverse-dynamics'
    if not _draws(args):
        unmeasured['seam_jump'] = 'only what a model draws has seams; say --keep background'
    values = {}
    for text in args.gates:
        name, value = _pair(text, 'GATE=VALUE')
        if name not in names:
            raise ValueError(f'--gates: expected one of {", ".join(names)}, got {name!r}')
        values[name] = None if value == 'off' else _number(value)
        if value != 'off' and values[name] is None:
            raise ValueError(f'--gates: {name}: expected a number or off, got {value!r}')
        if value != 'off' and name in unmeasured:
            raise ValueError(f'--gates: {name}: {unmeasured[name]}')
    return Thresholds(**values)


def method_facts(args: argparse.Namespace) -> dict:
    """What the provenance of an episode says of the method; JSON-serialisable.

    Files and folders are known by hashes; beside them stand their names, without the places where they lie.
    """
    facts = {'model': None, 'weights': None, 'steps': None}
    if _draws(args):
        folder = unpack(Path(args.model) if args.model else default_model_path())
        name = Path(args.model).name if args.model else DEFAULT_MODEL
        facts = {'model': name, 'weights': hash_weights(folder)}
        facts['steps'] = args.steps or None
    for name in ('segmenter', 'inverse_dynamics'):
        if folder := getattr(args, name):
            facts[name] = {'name': folder.name, 'weights': hash_weights(folder)}
    if args.mode == 'new-motion':
        return {**facts, 'goal_shift': _goal_shift(args), 'texts': args.texts}
    if args.pictures:
        hashes = {name: sha256(Path(file).read_bytes()).hexdigest() for name, file in pictures(args).items()}
        return {**facts, 'keep': _kept(args), 'pictures': hashes}
    facts['looks'] = {**asdict(build_edit(args)), 'version': LOOKS_VERSION}
    return {**facts, 'keep': _kept(args), 'change': args.change or list(CHANGES)}


def _number(text: str) -> float | None:
    """A finite number; None if it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _pair(text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition('=')
    if not (name and equals and value):
        raise ValueError(f'expected {form}, got {text!r}')
    return name, value
