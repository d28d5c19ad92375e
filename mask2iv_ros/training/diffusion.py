"""Training of stage 1 (mask trajectories) and stage 2 (video) on encoded latents."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin
from PIL import Image

from mask2iv_ros import labels as lb
from mask2iv_ros.augmentation.looks import LOOKS_VERSION, Looks
from mask2iv_ros.evaluation import metrics
from mask2iv_ros.pictures import clip_strip
from mask2iv_ros.pipelines.components import encode_text, image_features
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline, visible_labels
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.training.arrays import ClipArrays
from mask2iv_ros.training.conditions import (
    ConditionShares,
    draw_conditions,
    goal_variants,
    stop_frames,
)
from mask2iv_ros.training.damage import DamageShares, damage_labels
from mask2iv_ros.training.latents import LatentCache, tensors_id, weights_id
from mask2iv_ros.training.losses import contact_cells, foreground_cells, loss_weights, object_cells
from mask2iv_ros.training.trained_parts import StageModel, count_trained, merge_adapter, select_trained
from mask2iv_ros.training.trainer import Checked, Schedule, Trainer

#: Clips whose residuals give the scale of a residual target.
SCALE_CLIPS = 512
#: Texts, or clips, that a frozen network sees at once.
FROZEN_BATCH = 8
#: Options that may change in the middle of a training.
FREE_OPTIONS = ('batch_size', 'gradient_checkpointing', 'goal_guidance')
#: Held-out clips in a sample picture.
SAMPLE_CLIPS = 6


@dataclass
class StageOptions(Checked):
    """What both stages can be told.

    Attributes:
        batch_size: clips a batch, on each process.
        trained: 'all', 'spatial' (the paper) or 'lora', see `select_trained`.
        lora_rank: rank of the adapters.
        residual: the UNet predicts the difference to the first frame's latent instead of the latent (the
            paper). For new networks only; those of an existing model go on as they are.
        foreground_weight: loss weight of masks.
        object_weight: loss weight of the object's mask, if that is larger. An object covers 1.5 % of the
            pixels of our scenes, the robot 10.7 %. The paper has none.
        weigh_vacated: see `loss_weights`; the paper has False.
        timestep_shift: with s > 1 more samples have much noise: uniform timesteps t of (0, 1) become
            s t / (1 + (s - 1) t), as in Stable Diffusion 3 (arXiv 2403.03206, eq. 23). 1, as in the paper,
            leaves them uniform.
        gradient_checkpointing: compute activations twice instead of keeping them.
    """

    batch_size: int = 4
    trained: str = 'all'
    lora_rank: int = 16
    residual: bool | None = None
    foreground_weight: float = 5.0
    object_weight: float = 1.0
    weigh_vacated: bool = True
    timestep_shift: float = 1.0
    gradient_checkpointing: bool = False

    MINIMA = {  # noqa: RUF012
        'batch_size': 1,
        'lora_rank': 1,
        'damage_variants': 1,
        'predicted_clips': 1,
        'look_variants': 1,
        'contact_size': 1,
        'timestep_shift': 1,
    }

    def __post_init__(self):
        self.check()


@dataclass
class TrajectoryOptions(StageOptions):
    """Options of stage 1.

    Attributes:
        conditions: what samples are told; the fields of `ConditionShares`.
        goal_channels: the UNet sees the goal in channels of its own in all frames, see
            `trajectory_condition`; a network without them gets them, with zero weights. The paper has False;
            left out, a network goes on as it is.
        goal_guidance: of the model, see `MaskTrajectoryPipeline`. The paper has 1; left out, it stays.
    """

    conditions: ConditionShares = field(default_factory=ConditionShares)
    goal_channels: bool | None = None
    goal_guidance: float | None = None

    def __post_init__(self):
        if isinstance(self.conditions, dict):
            self.conditions = ConditionShares(**self.conditions)
        super().__post_init__()


@dataclass
class VideoOptions(StageOptions):
    """Options of stage 2.

    Attributes:
        contact_weight: loss weight of the contact band; the paper has 5, and a `foreground_weight` of 1.
        contact_size: kernel of the contact band, see `labels.paper_kernel`; the paper has 7.
        damage: what is done to the masks; the fields of `DamageShares`. It comes before `masks`.
        damage_variants: damaged versions of each clip that samples are drawn from.
        predicted_clips: at most so many clips, chosen at random, get masks that stage 1 predicts; these see
            them the more often, so that `damage.predicted` stays the share of all samples as long as it can.
            A clip takes all denoising steps of stage 1, more than a training step does.
        looks: share of samples whose video, first frame and all, is in a new look (`Looks`), the same over
            all frames, so that a first frame in colours that no clip has is carried on. For static cameras.
        look_variants: looks of each clip that samples are drawn from.
        masks: 'both', 'actor' or 'none', see `InteractionVideoPipeline`.
        controlnet: a ControlNet sees the masks in place of the UNet. As `residual`, these two are for new
            networks only ('both' and False if left out); those of an existing model go on as they are.
    """

    foreground_weight: float = 1.0
    contact_weight: float = 5.0
    contact_size: int = 7
    damage: DamageShares = field(default_factory=DamageShares)
    damage_variants: int = 4
    predicted_clips: int = 1000
    looks: float = 0.0
    look_variants: int = 2
    masks: str | None = None
    controlnet: bool | None = None

    def __post_init__(self):
        if isinstance(self.damage, dict):
            self.damage = DamageShares(**self.damage)
        super().__post_init__()
        if self.looks > 1:
            raise ValueError(f'looks: expected a share of 0 to 1, got {self.looks}')


@dataclass
class Validation(Checked):
    """How held-out clips choose the weights to export.

    Attributes:
        every_steps: steps between two looks at them.
        clips: how many.
        num_inference_steps: denoising steps for them; None for the model's.
        export: 'best' weights by score (stage 1: mean IoU of object and actor; stage 2: PSNR of moving pixels
            with true masks), or the 'last'.
    """

    every_steps: int = 500
    clips: int = 16
    num_inference_steps: int | None = None
    export: str = 'best'

    MINIMA = {'every_steps': 1, 'clips': 1, 'num_inference_steps': 1}  # noqa: RUF012

    def __post_init__(self):
        self.check()
        if self.export not in ('best', 'last'):
            raise ValueError(f"export: expected 'best' or 'last', got {self.export!r}")


@dataclass
class Batch:
    """What the UNet sees of B clips, and shall make of it; latents are (B, C, T, h, w).

    Attributes:
        target: latents.
        first: those of frame 0 as the clip is conditioned on, (B, C, h, w).
        condition: what stands behind the noise.
        text: (B,) rows of `StageTrainer.texts`.
        features: (B, L, D), what the image projector sees of frame 0.
        frames: (B, T) which frames of the clips are shown; one stays to the end where a clip stops.
    """

    target: torch.Tensor
    first: torch.Tensor
    condition: torch.Tensor
    text: np.ndarray
    features: torch.Tensor
    frames: np.ndarray


class StageTrainer(ABC):
    """Trains a stage's UNet, image projector and ControlNet, in place, on what the frozen networks made.

    Args:
        pipeline: the stage, float32 on the CPU.
        arrays: clips to train on.
        cache: of those clips and the pipeline's VAE.
        folder: of the run; `export` writes the networks' folders, `stage.json` and a LoRA's `adapter/`.
        is_new: the networks have random weights, so that `options.residual` is free.
        fps: the frame rate that the UNet is told of every clip, in training and validation; None for each
            clip's own.

    Raises:
        ValueError: options that do not fit each other or the networks.
    """

    def __init__(
        self,
        pipeline: MaskTrajectoryPipeline | InteractionVideoPipeline,
        arrays: ClipArrays,
        cache: LatentCache,
        folder: Path,
        schedule: Schedule,
        options: TrajectoryOptions | VideoOptions,
        seed: int = 0,
        is_new: bool = True,
        fps: float | None = None,
    ):
        self.pipeline, self.arrays, self.cache = pipeline, arrays, cache
        self.folder, self.options, self.seed = folder, options, seed
        self.scheduler, self.fps, self.is_new = pipeline.scheduler, fps, is_new
        self.device = cache.vae.device
        for network in (pipeline.text_encoder, pipeline.image_encoder):
            if network is not None:
                network.to(self.device).requires_grad_(False)
                if self.device.type == 'cuda':
                    network.bfloat16()
        #: What was made of the clips, and by which frozen networks: a checkpoint of others is not continued.
        self.made_of = [cache.id]
        self.latents = self._encode()
        self.texts, self.text_index = self._encode_texts()
        self.features = self._encode_features()
        self.target_name = 'masks' if pipeline.stage == 'trajectory' else 'video'
        self._set_residual_scale()
        self.maps = self._encode_maps()
        self.trainer = self._prepare(schedule)

    @abstractmethod
    def _encode(self) -> dict[str, np.ndarray]:
        """Latents (N, ...) by name."""

    @abstractmethod
    def _inputs(self, clips: np.ndarray, generator: torch.Generator) -> Batch:
        """What the networks see of some clips, and shall make of it."""

    @abstractmethod
    def predict(self, clips: ClipArrays, picks: np.ndarray, steps: int | None) -> Iterator[np.ndarray]:
        """What the pipeline makes of the picked clips, one after the other."""

    @abstractmethod
    def score(self, clips: ClipArrays, picks: np.ndarray, predicted: list[np.ndarray]) -> dict[str, float]:
        """Scores of predictions; the higher 'score', the better."""

    @abstractmethod
    def _as_pictures(self, clips: ClipArrays, pick: int, predicted: np.ndarray) -> tuple[np.ndarray, ...]:
        """Truth and prediction as (T, h, w, 3)."""

    def _has_text(self) -> bool:
        return False

    def _encode_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """Text tokens (U, L, D) of the U different texts, the first of which is '', and each clip's index."""
        texts = sorted({'', *(self.arrays.tasks if self._has_text() else ())})

        def tokens(start: int) -> Iterator[np.ndarray]:
            for first in range(start, len(texts), FROZEN_BATCH):
                yield from (
                    encode_text(self.pipeline, texts[first : first + FROZEN_BATCH]).float().cpu().numpy()
                )

        listed = hashlib.sha256('\n'.join(texts).encode()).hexdigest()
        made_of = f'{listed} {weights_id(self.pipeline.text_encoder)}'
        self.made_of.append(made_of)
        with torch.no_grad():
            rows = self.cache.batches(f'{self.pipeline.stage}_texts', tokens, made_of, len(texts))
        position = {text: i for i, text in enumerate(texts)}
        return rows, np.array([position.get(task, 0) for task in self.arrays.tasks])

    def _encode_features(self) -> np.ndarray | None:
        """Image encoder's tokens (N, L, D) of the first frames; None where their latents are the features."""
        encoder = self.pipeline.image_encoder
        if encoder is None or self.pipeline.image_projector is None:
            return None

        def row(i: int) -> np.ndarray:
            return self._encoder_tokens(self.arrays.frames[i, :1])[0]

        made_of = f'{self.arrays.digest} {weights_id(encoder)}'
        self.made_of.append(made_of)
        with torch.no_grad():
            return self.cache.rows('image_features', row, made_of)

    def _encoder_tokens(self, images: np.ndarray) -> np.ndarray:
        tokens = image_features(self.pipeline, np.array(images), None)
        return tokens.to('cpu', torch.float16).numpy()

    def _encode_maps(self) -> dict[str, np.ndarray]:
        """Bool maps (N, T, h, w) of latent cells for `loss_weights`."""
        cell = self.arrays.labels.shape[-1] // self.latents[self.target_name].shape[-1]
        labels, made_of = self.arrays.labels, f'{self.arrays.digest} {cell}'
        maps = {
            'foreground': self.cache.rows('foreground', lambda i: foreground_cells(labels[i], cell), made_of)
        }
        if isinstance(self.options, VideoOptions) and self.options.contact_weight != 1:
            size = lb.paper_kernel(self.options.contact_size, labels.shape[-2])
            maps['contact'] = self.cache.rows(
                'contact', lambda i: contact_cells(labels[i], cell, size), f'{made_of} {size}'
            )
        if self.options.object_weight != 1:
            maps['objects'] = self.cache.rows('objects', lambda i: object_cells(labels[i], cell), made_of)
        return maps

    def _set_residual_scale(self) -> None:
        scale, wanted = self.pipeline.config.residual_scale, self.options.residual
        if not self.is_new and wanted is not None and wanted != (scale is not None):
            raise ValueError(
                f'residual: {wanted}, but the model to start from has residual_scale {scale}; leave it out'
            )
        if self.is_new and wanted is not False:
            target = self.latents[self.target_name]
            picks = np.sort(np.random.default_rng(0).permutation(len(target))[:SCALE_CLIPS])
            residual = target[picks, 1:].astype(np.float32) - target[picks, :1]
            scale = float(1 / residual.std())
        elif self.is_new:
            scale = None
        self.pipeline.register_to_config(residual_scale=scale)

    def _prepare(self, schedule: Schedule) -> Trainer:
        model = self._stage_model()
        # As it was before bfloat16 and the adapter.
        self.base = copy.deepcopy(model) if self.options.trained == 'lora' else None
        torch.manual_seed(self.seed)
        if self.options.trained == 'lora' and self.device.type == 'cuda':
            model.bfloat16()
        select_trained(model, self.options.trained, self.options.lora_rank)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self.options.gradient_checkpointing:
            for _, network in model.named_children():
                network.enable_gradient_checkpointing()
        self.made_of.append(tensors_id({n: p for n, p in model.named_parameters() if not p.requires_grad}))
        data = hashlib.sha256(' '.join(self.made_of).encode()).hexdigest()
        objective = self._objective
        if not self.is_new and self.options.trained != 'lora':  # whose adapters are new
            started_from = tensors_id({n: p for n, p in model.named_parameters() if p.requires_grad})
            objective['started_from'] = started_from
        trainer = Trainer(model, self.folder, schedule, self.seed, f'latents {data}', objective)
        counts = count_trained(model)
        trainer.accelerator.print(
            f'{self.folder}: {counts["trained_parameters"]:,} of {counts["parameters"]:,} parameters trained '
            f'({counts["trained_tensors"]} of {counts["tensors"]} tensors), {len(self.arrays)} clips'
        )
        return trainer

    @property
    def _objective(self) -> dict:
        facts = {k: v for k, v in asdict(self.options).items() if k not in (*FREE_OPTIONS, 'residual')}
        if 'goal_channels' in facts:
            facts['goal_channels'] = self.pipeline.goal_channels
            if not facts['goal_channels']:  # as in checkpoints from before there were such channels
                del facts['goal_channels']
        for name in ('timestep_shift', 'object_weight'):  # as in checkpoints from before there were such
            if facts[name] == 1:
                del facts[name]
        if 'conditions' in facts and not facts['conditions']['stopped']:
            del facts['conditions']['stopped']
        if not facts.get('looks'):  # as in checkpoints from before there were looks
            facts = {k: v for k, v in facts.items() if k not in ('looks', 'look_variants')}
        scale = self.pipeline.config.residual_scale
        # Rounded, as the last digits of a mean may differ between machines.
        facts['residual_scale'] = scale and float(f'{scale:.4g}')
        facts['fps'] = self.fps
        if 'masks' in facts:
            has_controlnet = self.pipeline.controlnet is not None
            facts |= {'masks': self.pipeline.config.masks, 'controlnet': has_controlnet}
        networks = {name: known_config(network) for name, network in self._stage_model().named_children()}
        return {**facts, 'scheduler': known_config(self.scheduler), 'networks': networks}

    def _stage_model(self) -> StageModel:
        pipeline = self.pipeline
        return StageModel(pipeline.unet, pipeline.image_projector, getattr(pipeline, 'controlnet', None))

    def _load(self, name: str, *index: np.ndarray) -> torch.Tensor:
        """float32 latents on the device, (B, C, T, h, w) or (B, C, h, w)."""
        latents = torch.from_numpy(self.latents[name][index].astype(np.float32)).to(self.device)
        return latents.transpose(1, 2) if latents.ndim == 5 else latents

    def _image_features(self, clips: np.ndarray) -> torch.Tensor:
        """What the image projector sees of the first frames, (B, L, D)."""
        if self.features is None:
            return self._load('first_frame', clips).flatten(2).transpose(1, 2)
        return torch.from_numpy(self.features[clips].astype(np.float32)).to(self.device)

    def rates(self, clips: ClipArrays) -> np.ndarray:
        """(N,) int64 frames a second that the UNet is told of each clip, at least 1."""
        rates = clips.fps if self.fps is None else np.full(len(clips), self.fps)
        return np.maximum(1, np.round(rates)).astype(np.int64)

    def _batches(self, clips: ClipArrays, picks: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """The picks in their order, as many at once as a batch has and one rate allows, and the rate."""
        rates = self.rates(clips)[picks]
        for start, end in pairwise([0, *(np.flatnonzero(np.diff(rates)) + 1), len(picks)]):
            for first in range(start, end, self.options.batch_size):
                yield picks[first : min(first + self.options.batch_size, end)], int(rates[start])

    def loss_at(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """v-prediction loss of one random batch, weighted by `loss_weights`."""
        options, size = self.options, self.options.batch_size
        clips = torch.randint(len(self.arrays), (size,), generator=generator).numpy()
        timesteps = shifted_timesteps(
            torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator),
            self.scheduler.config.num_train_timesteps,
            options.timestep_shift,
        )
        batch = self._inputs(clips, generator)
        target = batch.target
        if self.pipeline.config.residual_scale is not None:
            target = (target - batch.first.unsqueeze(2)) * self.pipeline.config.residual_scale
        noise = torch.randn(target.shape, generator=generator).to(self.device)
        timesteps = timesteps.to(self.device)
        noisy = self.scheduler.add_noise(target, noise, timesteps)
        velocity = self.scheduler.get_velocity(target, noise, timesteps)
        predicted = self.trainer.model(
            torch.cat([noisy, batch.condition], dim=1),
            timesteps,
            torch.from_numpy(self.texts[batch.text]).to(self.device),
            batch.features,
            torch.from_numpy(self.rates(self.arrays)[clips]).to(self.device),
        )
        error = (predicted.float() - velocity).square().mean(dim=1)
        maps = {name: cells[clips[:, None], batch.frames] for name, cells in self.maps.items()}
        weights = loss_weights(
            maps['foreground'],
            maps.get('contact'),
            options.foreground_weight,
            getattr(options, 'contact_weight', 1.0),
            options.weigh_vacated,
            maps.get('objects'),
            options.object_weight,
        )
        loss = (error * torch.from_numpy(weights).to(self.device)).mean()
        return {'loss': loss, 'mse': error.mean()}

    def run(
        self, held_out: ClipArrays, max_minutes: float | None = None, validation: Validation | None = None
    ) -> bool:
        """Train; on the way score clips of `held_out` and draw some. True, and exported, if complete."""
        validation = validation or Validation()
        picks = self._pick(held_out, validation.clips)
        self.pipeline.set_progress_bar_config(disable=True)

        def evaluate(step: int) -> dict[str, float]:
            predicted = list(self.predict(held_out, picks, validation.num_inference_steps))
            rows = []
            for pick, prediction in list(zip(picks, predicted, strict=True))[:SAMPLE_CLIPS]:
                rows += [clip_strip(clip) for clip in self._as_pictures(held_out, pick, prediction)]
            Image.fromarray(np.concatenate(rows)).save(self.folder / f'sample_{step:06d}.png')
            return self.score(held_out, picks, predicted)

        scored = {'clips': validation.clips, 'num_inference_steps': validation.num_inference_steps}
        scored |= {'data': held_out.digest, 'goal_guidance': self.pipeline.config.get('goal_guidance')}
        done = self.trainer.run(
            self.loss_at, max_minutes, evaluate, evaluate_steps=validation.every_steps, scored=scored
        )
        if done:
            self.export(best=validation.export == 'best')
        return done

    def _pick(self, held_out: ClipArrays, count: int) -> np.ndarray:
        # At random: tasks take turns in a data set, and even steps would meet one again and again.
        return np.sort(np.random.default_rng(0).permutation(len(held_out))[:count])

    def export(self, best: bool) -> None:
        """Write the trained networks, in float16, with averaged weights or those of the best score."""
        state = self.trainer.final_state(best)
        if self.trainer.accelerator.is_main_process:
            pipeline = self.pipeline
            if self.base is not None:
                self.trainer.accelerator.unwrap_model(self.trainer.model).load_state_dict(state)
                pipeline.unet.save_lora_adapter(self.folder / 'adapter')
                networks = dict(self.base.named_children())
                networks['unet'] = merge_adapter(self.base.unet, self.folder / 'adapter')
            else:
                networks = dict(self._stage_model().named_children())
                networks = {name: type(n).from_config(n.config) for name, n in networks.items()}
                for name, network in networks.items():
                    network.load_state_dict({k: state[f'{name}.{k}'] for k in network.state_dict()})
            for name, network in networks.items():
                network.register_to_config(_name_or_path='')  # else it remembers where it came from
                network.half().save_pretrained(self.folder / name)
            record = {'best': self.trainer.best if best else None}
            facts = ('residual_scale', 'goal_guidance', 'masks')
            record |= {name: pipeline.config[name] for name in facts if name in pipeline.config}
            (self.folder / 'stage.json').write_text(json.dumps(record))
        self.trainer.accelerator.wait_for_everyone()


class TrajectoryTrainer(StageTrainer):
    """Trains stage 1."""

    options: TrajectoryOptions

    def _has_text(self) -> bool:
        return self.options.conditions.goal_only < 1

    def _encode(self) -> dict[str, np.ndarray]:
        labels, goals, shares = self.arrays.labels, self.arrays.goals, self.options.conditions
        self._set_goal_channels()
        if self.options.goal_guidance is not None:
            self.pipeline.register_to_config(goal_guidance=self.options.goal_guidance)
        latents = {
            'first_frame': self.cache.encoded('first_frame', lambda i: self.arrays.frames[i, 0]),
            'masks': self.cache.encoded('masks', lambda i: lb.labels_to_rgb(labels[i])),
        }
        if shares.text_only < 1:
            latents['goals'] = self.cache.encoded(
                'goals', lambda i: lb.labels_to_rgb(goal_variants(goals[i], labels[i, 0]))
            )
        if shares.stopped:
            rngs = [np.random.default_rng((self.seed, i)) for i in range(len(labels))]
            self.stops = np.stack([stop_frames(clip, rng) for clip, rng in zip(labels, rngs, strict=True)])
            latents['stopped_goals'] = self.cache.encoded(
                'stopped_goals', self._stopped_goals, str(self.seed)
            )
        if shares.no_actor:
            latents['no_actor'] = self.cache.encoded(
                'no_actor', lambda i: lb.labels_to_rgb(lb.without_actor(labels[i, 0]))
            )
        self.has_goal = torch.tensor([bool(goal.any()) for goal in goals])
        return latents

    def _stopped_goals(self, i: int) -> np.ndarray:
        """(STOPS, 3, h, w, 3) uint8: the goals of a clip that stops, in every form."""
        labels = self.arrays.labels[i]
        seen = [*lb.without_actor(labels[:-1]), self.arrays.goals[i]]
        goals = [goal_variants(seen[t], labels[0]) for t in self.stops[i]]
        return lb.labels_to_rgb(np.stack(goals))

    def _set_goal_channels(self) -> None:
        wanted, pipeline = self.options.goal_channels, self.pipeline
        if wanted is False and pipeline.goal_channels:
            raise ValueError('goal_channels: False, but the model to start from has them; leave it out')
        if wanted and not pipeline.goal_channels:
            if self.options.trained == 'lora':
                raise ValueError('goal_channels: a LoRA does not train the convolution that would see them')
            pipeline.unet.widen_input(pipeline.vae.config.latent_channels)

    def _inputs(self, clips, generator):
        drawn = draw_conditions(self.options.conditions, self.has_goal[clips], generator)
        stop, form = drawn.stop.numpy(), drawn.goal_form.numpy()
        frames = np.tile(np.arange(self.arrays.labels.shape[1]), (len(clips), 1))
        if stop.any():
            last = np.where(stop > 0, self.stops[clips, stop - 1], frames[:, -1])
            frames = np.minimum(frames, last[:, None])
        masks, image = self._load('masks', clips[:, None], frames), self._load('first_frame', clips)

        def choose(flag: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
            return torch.where(flag.to(self.device).view(-1, *[1] * (yes.ndim - 1)), yes, no)

        first = masks[:, :, 0]
        if 'no_actor' in self.latents:
            first = choose(drawn.actor, first, self._load('no_actor', clips))
        condition = self.pipeline.condition(first, None, image)
        if 'goals' in self.latents:
            goal = self._load('goals', clips, form)
            if stop.any():
                goal = choose(drawn.stop > 0, self._load('stopped_goals', clips, stop - 1, form), goal)
            condition = choose(drawn.goal, self.pipeline.condition(first, goal, image), condition)
        text = np.where(drawn.text.numpy(), self.text_index[clips], 0)
        return Batch(masks, first, condition, text, self._image_features(clips), frames)

    def _pick(self, held_out: ClipArrays, count: int) -> np.ndarray:
        every = np.random.default_rng(0).permutation(len(held_out))
        with_goal = [i for i in every if held_out.goals[i].any()]
        return np.sort((with_goal or every)[:count])

    def predict(self, clips, picks, steps):
        shares = self.options.conditions
        for batch, fps in self._batches(clips, picks):
            yield from self.pipeline(
                clips.frames[batch, 0],
                clips.labels[batch, 0],
                [clips.tasks[i] if shares.goal_only < 1 else '' for i in batch],
                clips.goals[batch] if shares.text_only < 1 else None,
                num_inference_steps=steps,
                fps=fps,
                generator=[torch.Generator().manual_seed(int(i)) for i in batch],
            ).labels

    def score(self, clips, picks, predicted):
        names = {'object_iou': lb.OBJECT, 'actor_iou': lb.ACTOR}
        scores = {
            name: np.nanmean(
                [metrics.mask_iou(p, clips.labels[i], label) for i, p in zip(picks, predicted, strict=True)]
            )
            for name, label in names.items()
        }
        return {**scores, 'score': float(np.nanmean(list(scores.values())))}

    def _as_pictures(self, clips, pick, predicted):
        return lb.labels_to_rgb(clips.labels[pick]), lb.labels_to_rgb(predicted)


def known_config(model: ConfigMixin) -> dict:
    """The configuration of a diffusers model or scheduler, without what says where it came from."""
    return {key: value for key, value in model.config.items() if not key.startswith('_')}


def shifted_timesteps(timesteps: torch.Tensor, count: int, shift: float) -> torch.Tensor:
    """Int64 timesteps of 0 to `count` - 1, moved towards noise; see `StageOptions.timestep_shift`."""
    if shift == 1:
        return timesteps
    level = (timesteps + 0.5) / count
    return (shift * level / (1 + (shift - 1) * level) * count).long()


def predicted_picks(options: VideoOptions, count: int, seed: int) -> np.ndarray:
    """Which of `count` clips get predicted masks, (n,) int64, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[: options.predicted_clips])


class VideoTrainer(StageTrainer):
    """Trains stage 2.

    Args:
        predicted: (n, T, h, w) label images that stage 1 predicts for the clips `predicted_clips` (n,) of the
            training arrays, see `predictions.py`.
    """

    options: VideoOptions

    def __init__(
        self,
        *args,
        predicted: np.ndarray | None = None,
        predicted_clips: np.ndarray | None = None,
        predicted_id: str = '',
        **options,
    ):
        self.predicted, self.predicted_clips, self.predicted_id = predicted, predicted_clips, predicted_id
        super().__init__(*args, **options)

    def _has_text(self) -> bool:
        return self.masks == 'none'

    def _encode(self) -> dict[str, np.ndarray]:
        labels, shares = self.arrays.labels, self.options.damage
        self.masks = self.pipeline.config.masks
        for name, has in (('masks', self.masks), ('controlnet', self.pipeline.controlnet is not None)):
            if (wanted := getattr(self.options, name)) not in (None, has):
                raise ValueError(f'{name}: {wanted}, but the model to start from has {has}; leave it out')
        latents = {
            'first_frame': self.cache.encoded('first_frame', lambda i: self.arrays.frames[i, 0]),
            'video': self.cache.encoded('video', lambda i: self.arrays.frames[i]),
        }
        if self.options.looks:
            latents['looks'] = self.cache.encoded('looks', self._looks, self._looks_made_of)
        if self.masks != 'both':
            self.made_of.append(self.masks)
        if self.masks == 'none':
            return latents
        prefix = '' if self.masks == 'both' else f'{self.masks}_'

        def painted(seen: np.ndarray) -> np.ndarray:
            return lb.labels_to_rgb(visible_labels(seen, self.masks))

        latents['masks'] = self.cache.encoded(f'{prefix}masks', lambda i: painted(labels[i]))

        def damaged(i: int) -> np.ndarray:
            variants = range(self.options.damage_variants)
            generators = [np.random.default_rng((self.seed, i, v)) for v in variants]
            return painted(np.stack([damage_labels(labels[i], shares, g) for g in generators]))

        if any(shares.drawn.values()):
            made_of = f'{shares.drawn} {self.options.damage_variants} {self.seed}'
            latents['damaged'] = self.cache.encoded(f'{prefix}damaged', damaged, made_of)
        if shares.predicted:
            if self.predicted is None:
                raise ValueError('damage: a share of predicted masks needs a stage 1 that predicts them')
            self.made_of.append(self.predicted_id)
            latents['predicted'] = self.cache.encoded(
                f'{prefix}predicted',
                lambda i: painted(self.predicted[i]),
                self.predicted_id,
                len(self.predicted),
            )
            self.row_of_predicted = np.full(len(labels), -1)
            self.row_of_predicted[self.predicted_clips] = np.arange(len(self.predicted_clips))
        return latents

    @property
    def _looks_made_of(self) -> str:
        return f'{Looks()} {LOOKS_VERSION} {self.options.look_variants} {self.seed}'

    def _looks(self, i: int) -> np.ndarray:
        """(V, T, H, W, 3) uint8: a clip in drawn looks."""
        generators = [np.random.default_rng((self.seed, i, v)) for v in range(self.options.look_variants)]
        frames, labels = np.array(self.arrays.frames[i]), np.array(self.arrays.labels[i])
        return np.stack([Looks().draw(generator).all_frames(frames, labels) for generator in generators])

    def _encode_features(self):
        features = super()._encode_features()
        self.look_features = None
        if features is not None and self.options.looks:
            made_of = f'{self.arrays.digest} {self._looks_made_of} {weights_id(self.pipeline.image_encoder)}'
            with torch.no_grad():
                self.look_features = self.cache.rows(
                    'look_features',
                    lambda i: np.stack([self._encoder_tokens(look[:1])[0] for look in self._looks(i)]),
                    made_of,
                )
        return features

    def _inputs(self, clips, generator):
        shares = self.options.damage
        dice = torch.rand(len(clips), generator=generator)
        variant = torch.randint(self.options.damage_variants, (len(clips),), generator=generator).numpy()
        video = self._load('video', clips)
        masks = self._load('masks', clips) if 'masks' in self.latents else torch.zeros_like(video)
        drawn = sum(shares.drawn.values())
        is_drawn = (dice < drawn).to(self.device)[:, None, None, None, None]
        if 'damaged' in self.latents:
            masks = torch.where(is_drawn, self._load('damaged', clips, variant), masks)
        if 'predicted' in self.latents:
            share = min(shares.predicted * len(self.arrays) / len(self.predicted), 1 - drawn)
            rows = self.row_of_predicted[clips]
            is_predicted = (dice >= 1 - share) & torch.from_numpy(rows >= 0)
            masks[is_predicted] = self._load('predicted', rows[is_predicted.numpy()])
        features = self._image_features(clips)
        if 'looks' in self.latents:
            has_look = torch.rand(len(clips), generator=generator) < self.options.looks
            variant = torch.randint(self.options.look_variants, (len(clips),), generator=generator)
            picks = clips[has_look.numpy()], variant[has_look].numpy()
            video[has_look] = looks = self._load('looks', *picks)
            if self.look_features is None:
                features[has_look] = looks[:, :, 0].flatten(2).transpose(1, 2)
            else:
                tokens = torch.from_numpy(self.look_features[picks].astype(np.float32))
                features[has_look] = tokens.to(self.device)
        first = video[:, :, 0]
        condition = torch.cat([first.unsqueeze(2).expand_as(video), masks], dim=1)
        text = self.text_index[clips] if self._has_text() else np.zeros_like(clips)
        frames = np.tile(np.arange(video.shape[2]), (len(clips), 1))
        return Batch(video, first, condition, text, features, frames)

    def predict(self, clips, picks, steps):
        for batch, fps in self._batches(clips, picks):
            yield from self.pipeline(
                clips.frames[batch, 0],
                clips.labels[batch],
                [clips.tasks[i] for i in batch],
                num_inference_steps=steps,
                fps=fps,
                generator=[torch.Generator().manual_seed(int(i)) for i in batch],
            ).frames

    def score(self, clips, picks, predicted):
        pairs = [(p, clips.frames[i]) for i, p in zip(picks, predicted, strict=True)]
        moving = [metrics.psnr(p, truth, metrics.moving_pixels(truth)) for p, truth in pairs]
        every = [metrics.psnr(p, truth) for p, truth in pairs]
        scores = {'psnr': float(np.nanmean(every)), 'psnr_moving_pixels': float(np.nanmean(moving))}
        return {**scores, 'score': scores['psnr_moving_pixels']}

    def _as_pictures(self, clips, pick, predicted):
        return clips.frames[pick], predicted
