"""Training of inverse dynamics on a dataset's own episodes, and the report of what it can be trusted with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import EpisodeReader, files_id, split_episodes
from mask2iv_ros.models.inverse_dynamics import (
    CHANNELS,
    INPUTS,
    InverseDynamics,
    InverseDynamicsModel,
    reduce_clip,
    to_input,
)
from mask2iv_ros.training.arrays import check_room
from mask2iv_ros.training.trainer import Checked, Schedule, Trainer
from mask2iv_ros.weights import REPORT


@dataclass
class InverseDynamicsOptions(Checked):
    """Options of the training.

    Attributes:
        steps, learning_rate, batch_size: of AdamW, the rate falling to its end; pairs a batch.
        chunk, sample_size: see `InverseDynamicsModel`.
        without_frames, without_masks: share of pairs that show masks alone, or frames alone.
        seed: of weights and batches.
    """

    steps: int = 3000
    learning_rate: float = 1e-3
    batch_size: int = 16
    chunk: int = 4
    sample_size: Sequence[int] = (48, 64)
    without_frames: float = 0.25
    without_masks: float = 0.25
    seed: int = 0

    MINIMA = {'steps': 1, 'batch_size': 1, 'chunk': 1}  # noqa: RUF012

    def __post_init__(self):
        self.sample_size = list(self.sample_size)  # as JSON has it
        self.check()


@dataclass
class Episodes:
    """Episodes as the network sees them, all frames one after the other.

    Attributes:
        frames: (F, cameras, 6, h, w) uint8 of `reduce_clip`, memory mapped.
        actions: (F, A) float32.
        states: (F, S) float32, S = 0 where there are none.
        ends: (E,) first frame after each episode.
        image_size, fps: of the dataset.
        digest: sha256 of all, hex.
    """

    frames: np.ndarray
    actions: np.ndarray
    states: np.ndarray
    ends: np.ndarray
    image_size: tuple[int, int]
    fps: float
    digest: str

    def span(self, episode: int) -> slice:
        """The frames of an episode."""
        return slice(self.ends[episode - 1] if episode else 0, self.ends[episode])


def train_inverse_dynamics(
    reader: EpisodeReader,
    out: str | Path,
    cameras: Sequence[str] | None = None,
    options: InverseDynamicsOptions | None = None,
    max_minutes: float | None = None,
) -> dict | None:
    """Train on the episodes of `reader` into `out`; the same call continues a stopped training.

    Every tenth demonstration, beginning with the first, is held out. `out` becomes a folder for
    `InverseDynamics.load`, with `report.json`; `out/run` has the checkpoint and the losses. Pairs are
    recoloured, object, arm and background each in its own way, so that new looks and generated pictures are
    no news; masks are blurred, grown and shrunk, and lose the object at times.

    Args:
        cameras: names; None for those that have masks, or all if none has.
        max_minutes: stop after the step in which they end.

    Returns:
        The report, also in `out/report.json`: errors on held-out episodes in the dataset's own units, for
        each kind of input, beside those of the mean of the training episodes and of holding the first value.
        None if the training was stopped before its end. If it was finished before, the report that is there.

    Raises:
        ValueError: episodes without actions, with other cameras, sizes or rates, or fewer than two
            demonstrations.
    """
    out, options = Path(out), options or InverseDynamicsOptions()
    training, held_out = split_episodes(reader)
    if not training:
        raise ValueError(
            f'{reader.path}: expected two demonstrations or more, one of them held out; got {len(reader)} '
            'episodes of one'
        )
    cameras = tuple(cameras or reader.episode(0).masked or reader.episode(0).cameras)
    facts = {'cameras': list(cameras), 'options': asdict(options), 'files': files_id(reader.path, (out,))}
    facts = json.loads(json.dumps(facts))
    if (out / REPORT).is_file():
        report = json.loads((out / REPORT).read_text())
        if all(report.get(key) == value for key, value in facts.items()):
            return report
    out.mkdir(parents=True, exist_ok=True)
    pictures = out / 'frames.npy'
    data = read_episodes(reader, cameras, tuple(options.sample_size), pictures)
    seen = np.concatenate([np.arange(s.start, s.stop) for s in map(data.span, training)])
    config = {
        'cameras': cameras,
        'image_size': data.image_size,
        'fps': data.fps,
        'chunk': options.chunk,
        'sample_size': tuple(options.sample_size),
        'action_min': data.actions[seen].min(axis=0).tolist(),
        'action_max': data.actions[seen].max(axis=0).tolist(),
    }
    for name, values in (('action', data.actions[seen]), ('state', data.states[seen])):
        deviation = values.std(axis=0)
        config[f'{name}_mean'] = values.mean(axis=0).tolist()
        config[f'{name}_std'] = np.where(deviation > 1e-6, deviation, 1).tolist()  # what never changes
    torch.manual_seed(options.seed)
    schedule = Schedule(
        options.steps,
        options.learning_rate,
        warmup_steps=min(100, options.steps // 10),
        max_grad_norm=1.0,
        ema_decay=None,
        mixed_precision='bf16',
    )
    objective = asdict(options)
    for name in ('steps', 'learning_rate', 'batch_size', 'seed'):  # those may change, or are checked anyway
        del objective[name]
    trainer = Trainer(
        InverseDynamicsModel(**config), out / 'run', schedule, options.seed, data.digest, objective
    )
    loss = Pairs(data, training, options, trainer)
    if not trainer.run(loss, max_minutes):
        return None
    model = InverseDynamicsModel(**config).to(trainer.device)
    model.load_state_dict(trainer.final_state())
    inverse_dynamics = InverseDynamics(model)
    report = {
        'dataset': reader.path.name,
        **facts,
        'episodes': {'training': training, 'held out': held_out},
        'frames': {'training': len(seen), 'held out': len(data.actions) - len(seen)},
        'parameters': sum(p.numel() for p in model.parameters()),
        'seconds': round(trainer.seconds, 1),
        'held out': held_out_errors(inverse_dynamics, data, held_out, seen),
    }
    model.save_pretrained(out)
    (out / REPORT).write_text(json.dumps(report, indent=1) + '\n')
    del data, loss
    pictures.unlink()
    return report


def read_episodes(
    reader: EpisodeReader, cameras: Sequence[str], size: tuple[int, int], pictures: Path
) -> Episodes:
    """Decode all episodes once; what the network sees of the frames goes to the file `pictures`.

    Raises:
        ValueError: as `train_inverse_dynamics`.
    """
    reader.with_depth = False
    lengths = [reader.episode(index).length for index in range(len(reader))]
    ends = np.cumsum(lengths)
    shape = (int(ends[-1]), len(cameras), 3 + len(CHANNELS), *size)
    pictures.unlink(missing_ok=True)  # of a run that was stopped
    check_room(pictures, math.prod(shape))
    frames = np.lib.format.open_memmap(pictures, 'w+', np.uint8, shape)
    actions, states, found, digest = [], [], None, hashlib.sha256()
    for index, end in enumerate(tqdm(ends, desc='read episodes', unit='episode', mininterval=2)):
        episode = reader.episode(index)
        views = {camera: reader.read(index, camera=camera) for camera in cameras}
        first = views[cameras[0]]
        if first.actions is None:
            raise ValueError(
                f'{reader.path}: episode {episode.name}: has no actions, and inverse dynamics learns actions'
            )
        here = [(*clip.frames.shape[1:3], clip.fps) for clip in views.values()]
        here += [first.actions.shape[1], 0 if first.states is None else first.states.shape[1]]
        found = found or here
        if here != found or len(set(here[: len(cameras)])) > 1:
            raise ValueError(
                f'{reader.path}: episode {episode.name}: expected height, width and rate of each view and '
                f'numbers in actions and states to be the same in all episodes and views, {found}, got {here}'
            )
        for i, clip in enumerate(views.values()):
            frames[end - len(clip) : end, i] = reduce_clip(clip, size)
        actions.append(first.actions)
        states.append(np.zeros((len(first), 0), np.float32) if first.states is None else first.states)
        for values in (frames[end - len(first) : end], actions[-1], states[-1]):
            digest.update(np.ascontiguousarray(values).tobytes())
    height, width, fps = found[0]
    return Episodes(
        frames,
        np.concatenate(actions).astype(np.float32),
        np.concatenate(states).astype(np.float32),
        ends,
        (height, width),
        fps,
        digest.hexdigest(),
    )


class Pairs:
    """The loss of a batch: called by `Trainer.run` with the batch's generator."""

    def __init__(
        self, data: Episodes, episodes: np.ndarray, options: InverseDynamicsOptions, trainer: Trainer
    ):
        self.data, self.options, self.trainer = data, options, trainer
        config = trainer.accelerator.unwrap_model(trainer.model).config
        self.actions = _normalised(data.actions, config.action_mean, config.action_std)
        self.states = _normalised(data.states, config.state_mean, config.state_std)
        spans = [data.span(episode) for episode in episodes]
        starts = [np.arange(s.start, max(s.start + 1, s.stop - options.chunk)) for s in spans]
        self.starts = np.concatenate(starts)
        self.last = np.concatenate([np.full(len(n), s.stop - 1) for s, n in zip(spans, starts, strict=True)])

    def __call__(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        chosen = torch.randint(len(self.starts), (self.options.batch_size,), generator=generator).numpy()
        frames = self.starts[chosen][:, None] + np.arange(self.options.chunk + 1)
        frames = np.minimum(frames, self.last[chosen][:, None])
        first, second = (torch.from_numpy(self.data.frames[frames[:, i]]) for i in (0, -1))
        pair = torch.stack([first, second], dim=1)  # (B, 2, cameras, 6, h, w)
        pair = vary(to_input(pair), self.options, generator).to(self.trainer.device)
        actions, states = self.trainer.model(pair[:, 0], pair[:, 1])
        wanted_actions = torch.from_numpy(self.actions[frames[:, :-1]]).to(actions.device)
        losses = {'actions': F.smooth_l1_loss(actions.float(), wanted_actions)}
        if self.states.shape[1]:
            wanted_states = torch.from_numpy(self.states[frames]).to(states.device)
            losses['states'] = F.smooth_l1_loss(states.float(), wanted_states)
        return {'loss': sum(losses.values()), **losses}


def _normalised(values: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    return ((values - np.float32(mean)) / np.float32(std)).astype(np.float32)


def vary(pair: torch.Tensor, options: InverseDynamicsOptions, generator: torch.Generator) -> torch.Tensor:
    """(B, 2, cameras, 6, h, w) of `to_input` with other looks and worse masks, the same in both frames."""
    batch = len(pair)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        shape = (batch, *shape, *[1] * (5 - len(shape)))
        return low + (high - low) * torch.rand(shape, generator=generator)

    def chance(share: float) -> torch.Tensor:
        return (torch.rand((batch, *[1] * 5), generator=generator) < share).float()

    colours, masks = pair[..., :3, :, :], pair[..., 3:, :, :]
    # Object and part, arm, and the rest have a mixing matrix and an offset each.
    regions = torch.stack([masks[..., 0, :, :] + masks[..., 2, :, :], masks[..., 1, :, :]], dim=3)
    regions = torch.cat([regions, 1 - regions.sum(dim=3, keepdim=True)], dim=3).clamp(0, 1)
    mixing = torch.eye(3) + 0.25 * torch.randn((batch, 3, 3, 3), generator=generator)
    offset = 0.3 * torch.randn((batch, 3, 3), generator=generator)
    looks = torch.einsum('brij,bnvjhw->bnvrihw', mixing, colours) + offset[:, None, None, :, :, None, None]
    looks = (regions.unsqueeze(4) * looks).sum(dim=3)
    recoloured = chance(0.8)
    colours = recoloured * looks + (1 - recoloured) * colours
    colours = (colours * uniform(0.7, 1.3) + uniform(-0.2, 0.2)).clamp(-1, 1)
    colours = _blur(colours, chance(0.3))
    colours = colours + chance(0.5) * 0.06 * torch.randn(colours.shape, generator=generator)
    masks = _blur(masks, chance(0.3))
    masks = masks ** torch.exp(
        chance(0.5) * uniform(-1, 1, 1, 1, 3)
    )  # outlines inside or outside the true ones
    lost = chance(0.1)
    keep = torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1)
    masks = masks * (1 - lost + lost * keep)
    draw = torch.rand((batch, *[1] * 5), generator=generator)
    colours = colours * (draw >= options.without_frames)
    masks = masks * (draw < 1 - options.without_masks)
    return torch.cat([colours, masks], dim=3)


def _blur(images: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    blurred = F.avg_pool2d(images.flatten(0, 2), 3, stride=1, padding=1, count_include_pad=False)
    return share * blurred.unflatten(0, images.shape[:3]) + (1 - share) * images


def held_out_errors(
    inverse_dynamics: InverseDynamics, data: Episodes, episodes: Iterable[int], seen: np.ndarray
) -> dict:
    """Errors of actions and states on `episodes`: told from each kind of input, and by trivial rules."""
    told: dict[str, list] = {}
    spans = [data.span(episode) for episode in episodes]
    for inputs in INPUTS:
        answers = [inverse_dynamics.from_reduced(data.frames[span], inputs) for span in spans]
        told[inputs] = [
            np.concatenate(values) for values in zip(*answers, strict=True) if values[0] is not None
        ]
    true = [np.concatenate([values[s] for s in spans]) for values in (data.actions, data.states)]
    told['mean'] = [values[seen].mean(axis=0, keepdims=True) for values in (data.actions, data.states)]
    told['hold'] = [
        np.concatenate([values[s.start : s.start + 1].repeat(s.stop - s.start, axis=0) for s in spans])
        for values in (data.actions, data.states)
    ]
    names = ('actions', 'states') if true[1].shape[1] else ('actions',)
    return {
        name: {
            **{kind: errors(values[i], true[i]) for kind, values in told.items()},
            'deviation': true[i].std(axis=0).round(6).tolist(),
        }
        for i, name in enumerate(names)
    }


def errors(told: np.ndarray, true: np.ndarray) -> dict[str, list[float]]:
    """Mean absolute and root mean square error of each dimension of (T, N)."""
    difference = np.asarray(told, np.float64) - true
    return {
        'mean absolute': np.abs(difference).mean(axis=0).round(6).tolist(),
        'root mean square': np.sqrt((difference**2).mean(axis=0)).round(6).tolist(),
    }


def add_generated_errors(
    out: str | Path,
    reader: EpisodeReader,
    count: int,
    method: Callable[[Mapping[str, InteractionClip], int], Mapping[str, InteractionClip]],
) -> dict:
    """Add to the report in `out` the errors on generated episodes that move as recorded ones do; returns it.

    Args:
        reader: the dataset of the training.
        count: held-out episodes to generate, at most all.
        method: of mode 'same_motion', such as `mask2iv_ros.augmentation.same_motion.SameMotion`.
    """
    out = Path(out)
    report = json.loads((out / REPORT).read_text())
    inverse_dynamics = InverseDynamics.load(out)
    told: dict[str, list] = {inputs: [] for inputs in INPUTS}
    true = []
    episodes = report['episodes']['held out'][:count]
    for index in tqdm(episodes, desc='generate episodes', unit='episode', mininterval=2):
        views = {camera: reader.read(index, camera=camera) for camera in inverse_dynamics.cameras}
        clip = views[inverse_dynamics.cameras[0]]
        true.append([values for values in (clip.actions, clip.states) if values is not None])
        generated = method(views, index)
        for inputs, answers in told.items():
            answers.append(inverse_dynamics.actions(generated, inputs))
    report['generated'] = {
        name: {
            inputs: errors(*(np.concatenate([values[i] for values in these]) for these in (answers, true)))
            for inputs, answers in told.items()
        }
        for i, name in enumerate(report['held out'])
    } | {'episodes': episodes}
    (out / REPORT).write_text(json.dumps(report, indent=1) + '\n')
    return report


def report_table(report: dict) -> str:
    """Mean absolute errors of a report as a Markdown table."""
    lines = []
    for name, rows in report['held out'].items():
        count = len(rows['deviation'])
        lines += [f'| {name}, mean absolute error | ' + ' | '.join(map(str, range(count))) + ' |']
        lines += ['|---' * (count + 1) + '|']
        rows = {f'{kind}, held out': found for kind, found in rows.items() if kind != 'deviation'}
        rows |= {f'{kind}, generated': e for kind, e in report.get('generated', {}).get(name, {}).items()}
        for kind, found in rows.items():
            lines.append(f'| {kind} | ' + ' | '.join(f'{e:.4g}' for e in found['mean absolute']) + ' |')
        lines.append('')
    return '\n'.join(lines)
