"""Training of stage 1 (mask trajectories) and stage 2 (video) on encoded latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mask2iv_ros import labels as lb
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.text_encoder import PackagedTextEncoder
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pictures import clip_strip
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline, trajectory_condition
from mask2iv_ros.training.arrays import ClipArrays, latents_id
from mask2iv_ros.training.losses import contact_weight, foreground_weight
from mask2iv_ros.training.trainer import Schedule, Trainer


class StageModel(torch.nn.Module):
    """What one stage trains: its UNet and its image projector, called together."""

    def __init__(self, unet: DynamiCrafterUNet, image_projector: Resampler):
        super().__init__()
        self.unet, self.image_projector = unet, image_projector

    def forward(self, sample, timesteps, text_tokens, first_latents, fps) -> torch.Tensor:
        image_tokens = self.image_projector(first_latents.flatten(2).transpose(1, 2))
        return self.unet(sample, timesteps, text_tokens, image_tokens, fps).sample


@dataclass
class StageOptions:
    """What the loss of a stage looks at.

    Attributes:
        stage: 'trajectory' or 'video'.
        batch_size: clips a step.
        residual: the UNet predicts the difference to the first frame's latent instead of the latent.
        foreground_weight: loss weight on masks; the paper has 5 in stage 1 and none (1) in stage 2.
        contact_weight: stage 2: loss weight on the contact band; the paper has 5.
        contact_size: kernel in pixels of the contact band; the paper has 7 at 320 x 512.
        text_only, goal_only: stage 1: share of samples that see one condition; the others see both.
        damage: stage 2: share of clips whose masks are dilated or eroded; the paper has 0.2.
    """

    stage: str
    batch_size: int = 4
    residual: bool = True
    foreground_weight: float = 5.0
    contact_weight: float = 5.0
    contact_size: int = 3
    text_only: float = 0.4
    goal_only: float = 0.25
    damage: float = 0.2


class StageTrainer:
    """Trains one stage of `mask2iv-sim` and exports it as a diffusers pipeline."""

    def __init__(
        self,
        arrays: ClipArrays,
        latents: dict[str, np.ndarray],
        vae,
        folder: Path,
        unet_config: dict,
        projector_config: dict,
        scheduler_config: dict,
        schedule: Schedule,
        options: StageOptions,
        seed: int = 0,
    ):
        if options.stage not in ('trajectory', 'video'):
            raise ValueError(f"stage: expected 'trajectory' or 'video', got {options.stage!r}")
        torch.manual_seed(seed)
        self.arrays, self.latents, self.vae, self.options, self.folder = arrays, latents, vae, options, folder
        self.scheduler = RescaledDDIMScheduler(**scheduler_config)
        self.text_encoder = PackagedTextEncoder()
        texts = sorted({'', *arrays.tasks})
        self.text_tokens = self.text_encoder(texts)
        self.text_index = np.array([texts.index(task) for task in arrays.tasks])
        self.no_text = texts.index('')
        self.target = latents['masks' if options.stage == 'trajectory' else 'video']
        self.residual_scale = self._residual_scale() if options.residual else None
        self.weights = self._weights()
        model = StageModel(DynamiCrafterUNet(**unet_config), Resampler(**projector_config))
        self.trainer = Trainer(model, folder, schedule, seed, f'latents {latents_id(arrays, vae, seed)}')
        self.device = self.trainer.device

    def _residual_scale(self) -> float:
        residual = self.target[:, 1:].astype(np.float32) - self.target[:, :1]
        return float(1 / residual.std())

    def _weights(self) -> np.ndarray:
        cell = self.arrays.labels.shape[-1] // self.target.shape[-1]
        options = self.options
        if options.stage == 'trajectory':
            maps = [foreground_weight(clip, cell, options.foreground_weight) for clip in self.arrays.labels]
        else:
            maps = [
                contact_weight(
                    clip, cell, options.contact_weight, options.foreground_weight, options.contact_size
                )
                for clip in self.arrays.labels
            ]
        return np.stack(maps)

    def _batch(self, clips: np.ndarray, key: str) -> torch.Tensor:
        """(B, C, T, h, w) or (B, C, h, w) float32 latents of the clips on the device."""
        latents = torch.from_numpy(self.latents[key][clips].astype(np.float32)).to(self.device)
        return latents.transpose(1, 2) if latents.ndim == 5 else latents

    def loss_at(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """v-prediction loss of one random batch, weighted by the stage's map."""
        options, size = self.options, self.options.batch_size
        clips = torch.randint(len(self.arrays), (size,), generator=generator).numpy()
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator)
        dice = torch.rand(size, generator=generator)
        video, masks = self._batch(clips, 'video'), self._batch(clips, 'masks')
        num_frames = video.shape[2]
        image_condition = video[:, :, :1].expand_as(video)
        text = torch.full((size,), self.no_text)
        if options.stage == 'trajectory':
            target = masks
            has_text = (dice < options.text_only) | (dice >= options.text_only + options.goal_only)
            has_goal = (dice >= options.text_only).to(self.device)
            text = torch.where(has_text, torch.from_numpy(self.text_index[clips]), text)
            repeated = trajectory_condition(masks[:, :, 0], None, num_frames)
            with_goal = trajectory_condition(masks[:, :, 0], self._batch(clips, 'goal'), num_frames)
            mask_condition = torch.where(has_goal[:, None, None, None, None], with_goal, repeated)
            condition = torch.cat([mask_condition, image_condition], dim=1)
        else:
            target = video
            damaged = (dice < options.damage).to(self.device)[:, None, None, None, None]
            mask_condition = torch.where(damaged, self._batch(clips, 'damaged_masks'), masks)
            condition = torch.cat([image_condition, mask_condition], dim=1)
        if self.residual_scale is not None:
            target = (target - target[:, :, :1]) * self.residual_scale
        noise = torch.randn(target.shape, generator=generator).to(self.device)
        timesteps = timesteps.to(self.device)
        noisy = self.scheduler.add_noise(target, noise, timesteps)
        velocity = self.scheduler.get_velocity(target, noise, timesteps)
        predicted = self.trainer.model(
            torch.cat([noisy, condition], dim=1),
            timesteps,
            self.text_tokens[text].to(self.device),
            video[:, :, 0],
            torch.from_numpy(self.arrays.fps[clips].round()).long().to(self.device),
        )
        error = (predicted.float() - velocity).square().mean(dim=1)
        weights = torch.from_numpy(self.weights[clips]).to(self.device)
        return {'loss': (error * weights).mean(), 'mse': error.mean()}

    def pipeline(self, **config) -> MaskTrajectoryPipeline | InteractionVideoPipeline:
        """The stage as a pipeline over the weights that are in training."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        stage_class = (
            MaskTrajectoryPipeline if self.options.stage == 'trajectory' else InteractionVideoPipeline
        )
        return stage_class(
            vae=self.vae,
            unet=model.unet,
            scheduler=self.scheduler,
            text_encoder=self.text_encoder,
            image_projector=model.image_projector,
            residual_scale=self.residual_scale,
            **config,
        )

    def run(self, held_out: ClipArrays, max_minutes: float | None, **config) -> bool:
        """Train, draw pictures of `held_out` clips on the way, export to `folder/pipeline`."""

        def sample(step: int) -> None:
            pipe = self.pipeline(**config)
            pipe.set_progress_bar_config(disable=True)
            # At random: tasks take turns in a data set, and even steps would meet one again and again.
            picks = np.sort(np.random.default_rng(0).permutation(len(held_out))[:6])
            image, labels = held_out.frames[picks, 0], held_out.labels[picks]
            generator = torch.Generator().manual_seed(0)
            if self.options.stage == 'trajectory':
                tasks = [held_out.tasks[i] for i in picks]
                predicted = pipe(
                    image, labels[:, 0], tasks, lb.goal_labels(labels), generator=generator
                ).labels
                pairs = zip(lb.labels_to_rgb(labels), lb.labels_to_rgb(predicted), strict=True)
            else:
                predicted = pipe(image, labels, generator=generator).frames
                pairs = zip(held_out.frames[picks], predicted, strict=True)
            sheet = np.concatenate([clip_strip(frames) for pair in pairs for frames in pair])
            Image.fromarray(sheet).save(self.folder / f'sample_{step:06d}.png')

        done = self.trainer.run(self.loss_at, max_minutes, sample)
        self.trainer.averaged_model().eval()
        self.pipeline(**config).save_pretrained(self.folder / 'pipeline')
        return done
