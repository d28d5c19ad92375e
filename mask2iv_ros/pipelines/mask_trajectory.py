"""Stage 1: from a first frame, its masks, and a text and/or a goal to the masks of all frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from mask2iv_ros import labels as lb
from mask2iv_ros.pipelines.components import (
    check_call,
    check_images,
    decode_latents,
    encode_first_frame,
    encode_images,
    encode_text,
)


@dataclass
class MaskTrajectoryPipelineOutput(BaseOutput):
    """`labels`: (B, T, H, W) uint8 label images, frame 0 as observed; or latents (B, C, T, h, w)."""

    labels: np.ndarray | torch.Tensor


def trajectory_condition(
    first: torch.Tensor, goal: torch.Tensor | None, image: torch.Tensor, num_frames: int, goal_channels: bool
) -> torch.Tensor:
    """All that stage 1 sees beside the noise: (B, 2 C or 3 C, T, h, w), masks before images.

    As in Mask2IV, text mode repeats the first mask's latent (B, C, h, w) over all frames; with a goal, frame
    0 holds the first mask, the last frame the goal, and the frames between are zero latents (position mode).

    With `goal_channels`, all frames hold the first mask, and the goal in channels of its own behind the
    image, times t / (num_frames - 1): so each frame, which the UNet's finest level sees alone, tells how near
    the end is. Without a goal they are zero.
    """

    def repeat(latents: torch.Tensor) -> torch.Tensor:
        return latents.unsqueeze(2).expand(-1, -1, num_frames, -1, -1)

    masks = repeat(first)
    if goal_channels:
        nearness = torch.linspace(0, 1, num_frames, device=first.device, dtype=first.dtype)
        goals = torch.zeros_like(masks) if goal is None else repeat(goal) * nearness[:, None, None]
        return torch.cat([masks, repeat(image), goals], dim=1)
    if goal is not None:
        masks = torch.zeros_like(masks)
        masks[:, :, 0], masks[:, :, -1] = first, goal
    return torch.cat([masks, repeat(image)], dim=1)


class MaskTrajectoryPipeline(DiffusionPipeline):
    """Predicts the mask trajectories of actor and object.

    Components: `vae` (frames and colour masks), `unet` (`DynamiCrafterUNet`), `scheduler`
    (`RescaledDDIMScheduler`), `text_encoder` with an optional `tokenizer`; optional `image_encoder`,
    `feature_extractor` and `image_projector` (`Resampler`) for image tokens.

    Config:
        num_frames, num_inference_steps, eta, fps: what the checkpoint was made for; defaults of a call.
        residual_scale: None if the UNet's target is the mask latent itself, as in the paper; a number if it
            is the difference to the first mask's latent times that number.
        goal_guidance: the `guidance_scale` of a call that has a goal and names none.
    """

    stage = 'trajectory'
    model_cpu_offload_seq = 'text_encoder->image_encoder->image_projector->unet->vae'
    _optional_components = ['tokenizer', 'image_encoder', 'feature_extractor', 'image_projector']  # noqa: RUF012
    _callback_tensor_inputs = ['latents', 'pred_original_sample', 'first']  # noqa: RUF012

    def __init__(
        self,
        vae,
        unet,
        scheduler,
        text_encoder,
        tokenizer=None,
        image_encoder=None,
        feature_extractor=None,
        image_projector=None,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        eta: float = 1.0,
        fps: float = 15.0,
        residual_scale: float | None = None,
        goal_guidance: float = 1.0,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projector=image_projector,
        )
        self.register_to_config(
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            eta=eta,
            fps=fps,
            residual_scale=residual_scale,
            goal_guidance=goal_guidance,
        )

    @property
    def goal_channels(self) -> bool:
        """The UNet sees the goal in channels of its own, see `trajectory_condition`; the paper's does not."""
        return self.unet.config.in_channels == 4 * self.vae.config.latent_channels

    def condition(self, first: torch.Tensor, goal: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
        """The `trajectory_condition` of this UNet, from latents (B, C, h, w)."""
        return trajectory_condition(first, goal, image, self.config.num_frames, self.goal_channels)

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running call."""
        return self._num_timesteps

    def check_inputs(self, image, labels, task, goal, output_type, callback_on_step_end_tensor_inputs):
        check_call(self, image, output_type, callback_on_step_end_tensor_inputs)
        check_images(labels, 'labels', image.shape[:3])
        lb.check_labels(labels)
        if goal is not None:
            check_images(goal, 'goal', image.shape[:3])
            lb.check_labels(goal, 'goal')
        if not isinstance(task, str) and len(task) != len(image):
            raise ValueError(f'task: expected one text or {len(image)}, got {len(task)}')

    def latents_to_labels(self, latents: torch.Tensor, first: torch.Tensor, labels: np.ndarray) -> np.ndarray:
        """Decode UNet-space latents (B, C, T, h, w) of any frames to (B, T, H, W) label images.

        `labels` (B, H, W) are the first label images and `first` (B, C, h, w) their latents, to which
        residual targets are relative. A pixel of a residual target whose decoded label is that of the decoded
        first frame keeps the observed label, so the VAE's error does not show where nothing changes.
        """
        if self.config.residual_scale is None:
            return lb.rgb_to_labels(decode_latents(self.vae, latents))
        first, observed = first.unsqueeze(2), labels[:, None]
        first_decoded = lb.rgb_to_labels(decode_latents(self.vae, first))
        decoded = lb.rgb_to_labels(decode_latents(self.vae, latents / self.config.residual_scale + first))
        keep = decoded == first_decoded
        for label in (lb.OBJECT, lb.ACTOR, lb.PART):
            # Not a rim that the VAE lost in frame 0 already, when the mask beside it has moved away.
            keep &= (observed != label) | lb.dilate(decoded == label, 5)
        merged = np.where(keep, observed, decoded)
        closed = (lb.close_holes(merged == label, 3) for label in (lb.OBJECT, lb.ACTOR, lb.PART))
        return np.where(merged == lb.BACKGROUND, lb.combine_masks(*closed), merged)  # seams between the two

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        task: str | list[str] = '',
        goal: np.ndarray | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = 'np',
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ('latents',),
    ):
        """Generate mask trajectories.

        Args:
            image: (B, H, W, 3) uint8 RGB first frames, H and W multiples of the VAE's factor times the
                UNet's.
            labels: (B, H, W) uint8 first label images.
            task: what to do, one text or one an image; '' if only the goal says it.
            goal: (B, H, W) uint8 label images of where the object ends, or None.
            guidance_scale: above 1, text and goal count for more, at twice the time (classifier-free
                guidance, arXiv 2207.12598). For checkpoints that have seen samples with neither; 1 is none,
                as in the paper. None: `goal_guidance` of the checkpoint with a goal, 1 without.
            latents: (B, C, T, h, w) starting noise, or None to draw it from `generator`.
            output_type: 'np' for uint8 arrays (diffusers' own 'np' is float 0..1), or 'latent' for what the
                UNet predicts.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); an exception it raises stops
                the generation between two steps.
            callback_on_step_end_tensor_inputs: the tensors it gets, names from `_callback_tensor_inputs`.

        Raises:
            ValueError: a shape, dtype, count or name that does not fit.
        """
        # 1. Check inputs
        self.check_inputs(image, labels, task, goal, output_type, callback_on_step_end_tensor_inputs)
        num_frames = self.config.num_frames
        device = self._execution_device

        # 2. Encode first frame, first mask, goal, text
        seen = [image, *(lb.labels_to_rgb(masks) for masks in (labels, goal) if masks is not None)]
        image_latents, first, *goals = encode_images(self.vae, np.stack(seen, axis=1), device).unbind(2)
        goal_latents = goals[0] if goals else None
        tasks = [task] * len(image) if isinstance(task, str) else list(task)
        text_tokens = encode_text(self, tasks).to(self.unet.dtype)
        image_tokens = encode_first_frame(self, image, image_latents)
        dtype = self.unet.dtype
        condition = self.condition(first, goal_latents, image_latents)
        fps_condition = torch.full((len(image),), round(fps or self.config.fps), device=device)
        if guidance_scale is None:
            guidance_scale = 1.0 if goal is None else self.config.goal_guidance
        is_guided = guidance_scale != 1
        if is_guided:  # the first half of the batch sees neither text nor goal
            condition = torch.cat([self.condition(first, None, image_latents), condition])
            no_text = encode_text(self, [''] * len(image)).to(self.unet.dtype)
            text_tokens = torch.cat([no_text, text_tokens])
            fps_condition = fps_condition.repeat(2)
            image_tokens = None if image_tokens is None else image_tokens.repeat(2, 1, 1)
        condition = condition.to(dtype)

        # 3. Timesteps and noise
        self.scheduler.set_timesteps(num_inference_steps or self.config.num_inference_steps, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)
        shape = (len(image), first.shape[1], num_frames, *first.shape[2:])
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device) * self.scheduler.init_noise_sigma

        # 4. Denoise; channel order noise, mask, image (, goal)
        eta = self.config.eta if eta is None else eta
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for step, t in enumerate(self.scheduler.timesteps):
                model_input = torch.cat([latents] * 2) if is_guided else latents
                model_input = torch.cat([model_input.to(dtype), condition], dim=1)
                velocity = self.unet(model_input, t, text_tokens, image_tokens, fps_condition).sample
                if is_guided:
                    unguided, velocity = velocity.chunk(2)
                    velocity = unguided + guidance_scale * (velocity - unguided)
                result = self.scheduler.step(velocity.float(), t, latents, eta=eta, generator=generator)
                latents, pred_original_sample = result.prev_sample, result.pred_original_sample
                if callback_on_step_end is not None:
                    tensors = {
                        'latents': latents,
                        'pred_original_sample': pred_original_sample,
                        'first': first,
                    }
                    tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    outputs = callback_on_step_end(self, step, int(t), tensors) or {}
                    latents = outputs.get('latents', latents)
                progress_bar.update()

        # 5. Decode
        if output_type == 'latent':
            predicted = latents
        else:
            later = self.latents_to_labels(latents[:, :, 1:], first, labels)
            predicted = np.concatenate([labels[:, None], later], axis=1)
        self.maybe_free_model_hooks()
        return MaskTrajectoryPipelineOutput(labels=predicted) if return_dict else (predicted,)
