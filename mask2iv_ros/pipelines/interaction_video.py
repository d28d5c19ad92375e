"""Stage 2: from a first frame and the masks of all frames to the video that follows them."""

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
    keep_observed,
)


@dataclass
class InteractionVideoPipelineOutput(BaseOutput):
    """`frames`: (B, T, H, W, 3) uint8 RGB, frame 0 as observed; or latents (B, C, T, h, w)."""

    frames: np.ndarray | torch.Tensor


def anchored_windows(length: int, size: int, overlap: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows of `size` frames that make a clip of `length` frames, in the order in which to generate them.

    The first holds key frames, spread from first to last. Each further one fills in between: frame 0, then a
    run of new frames among the `overlap` or more nearest ones that are there already. So every window starts
    from the observed frame, and errors do not add up along the clip.

    Returns:
        (frames, known) pairs: (size,) increasing frame numbers, and (size,) bool, whether an earlier window
        has made them (frame 0: it is observed).

    Raises:
        ValueError: `length` below `size`, or `overlap` that leaves no room for new frames.
    """
    if length < size or not 0 <= overlap < size - 1:
        raise ValueError(
            f'expected at least {size} frames and an overlap of 0 to {size - 2}, '
            f'got {length} frames and an overlap of {overlap}'
        )
    done = np.linspace(0, length - 1, size).round().astype(int)
    windows = [(done, np.zeros(size, dtype=bool))]
    while len(done) < length:
        new = np.setdiff1d(np.arange(length), done)[: size - 1 - overlap]
        near = done[done > 0]
        distance = np.minimum(np.abs(near - new[0]), np.abs(near - new[-1]))
        distance[(near > new[0]) & (near < new[-1])] = 0
        kept = near[np.argsort(distance, kind='stable')[: size - 1 - len(new)]]
        frames = np.sort(np.concatenate([[0], kept, new]))
        windows.append((frames, ~np.isin(frames, new)))
        done = np.union1d(done, new)
    return windows


def stretch_noise(noise: torch.Tensor, length: int) -> torch.Tensor:
    """Noise (B, C, T, h, w) of key frames -> (B, C, length, h, w), turning from one's to the next's.

    It stays of unit variance. Frames that are near each other so look alike, whichever window makes them.
    """
    place = torch.linspace(0, noise.shape[2] - 1, length, device=noise.device)
    before = place.long().clamp(max=noise.shape[2] - 2)
    share = (place - before).view(-1, 1, 1).to(noise.dtype)
    blend = (1 - share) * noise[:, :, before] + share * noise[:, :, before + 1]
    return blend / ((1 - share) ** 2 + share**2).sqrt()


class InteractionVideoPipeline(DiffusionPipeline):
    """Generates the RGB video that follows given mask trajectories.

    A clip that is longer than the model's `num_frames` is made in windows (`anchored_windows`), in which the
    frames of earlier windows are kept (as in RePaint, arXiv 2201.09865, without its resampling).

    Components and config as in `MaskTrajectoryPipeline`; here the target is the latent of each video frame,
    or with `residual_scale` its difference to the first frame's latent times that number. The text is ''.
    """

    stage = 'video'
    model_cpu_offload_seq = 'text_encoder->image_encoder->image_projector->unet->vae'
    _optional_components = ['tokenizer', 'image_encoder', 'feature_extractor', 'image_projector']  # noqa: RUF012
    _callback_tensor_inputs = ['latents', 'pred_original_sample']  # noqa: RUF012

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
        )

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running call, all windows together."""
        return self._num_timesteps

    def check_inputs(self, image, labels, output_type, callback_on_step_end_tensor_inputs):
        check_call(self, image, output_type, callback_on_step_end_tensor_inputs)
        check_images(labels, 'labels', (len(image), None, *image.shape[1:3]))
        if labels.shape[1] < self.config.num_frames:
            raise ValueError(
                f'labels: expected at least {self.config.num_frames} frames, got {labels.shape[1]}'
            )
        lb.check_labels(labels)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray,
        labels: np.ndarray,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = 'np',
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ('latents',),
    ):
        """Generate videos.

        Args:
            image: (B, H, W, 3) uint8 RGB first frames, H and W multiples of the VAE's factor times the
                UNet's.
            labels: (B, T, H, W) uint8 label images of all frames; T at least the config's `num_frames`.
            latents: (B, C, T, h, w) starting noise, or None to draw it from `generator`.
            output_type, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                `MaskTrajectoryPipeline`.

        Raises:
            ValueError: a shape, dtype, count or name that does not fit.
        """
        # 1. Check inputs
        self.check_inputs(image, labels, output_type, callback_on_step_end_tensor_inputs)
        num_frames, device = self.config.num_frames, self._execution_device

        # 2. Encode first frame and masks
        first = encode_images(self.vae, image[:, None], device)[:, :, 0]
        mask_latents = encode_images(self.vae, lb.labels_to_rgb(labels), device)
        text_tokens = encode_text(self, [''] * len(image)).to(self.unet.dtype)
        image_tokens = encode_first_frame(self, image, first)
        dtype = self.unet.dtype
        condition = torch.cat([first.unsqueeze(2).expand_as(mask_latents), mask_latents], dim=1).to(dtype)
        fps_condition = torch.full((len(image),), round(fps or self.config.fps), device=device)

        # 3. Timesteps, noise, and the windows that the UNet sees at a time
        self.scheduler.set_timesteps(num_inference_steps or self.config.num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        if latents is None:
            shape = (*mask_latents.shape[:2], num_frames, *mask_latents.shape[3:])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            if labels.shape[1] > num_frames:
                latents = stretch_noise(latents, labels.shape[1])
        noise = latents.to(device) * self.scheduler.init_noise_sigma
        windows = anchored_windows(labels.shape[1], num_frames)
        self._num_timesteps = len(windows) * len(timesteps)
        video = torch.zeros_like(noise)

        # 4. Denoise one window after the other; channel order noise, image, mask
        eta = self.config.eta if eta is None else eta
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for window, (frames, is_known) in enumerate(windows):
                known = frames[is_known]
                latents = noise[:, :, frames]
                for step, t in enumerate(timesteps, start=window * len(timesteps)):
                    if len(known):
                        latents[:, :, is_known] = self.scheduler.add_noise(
                            video[:, :, known], noise[:, :, known], t.expand(len(image))
                        )
                    model_input = torch.cat([latents.to(dtype), condition[:, :, frames]], dim=1)
                    velocity = self.unet(model_input, t, text_tokens, image_tokens, fps_condition).sample
                    result = self.scheduler.step(velocity.float(), t, latents, eta=eta, generator=generator)
                    latents = result.prev_sample
                    if callback_on_step_end is not None:
                        tensors = {'latents': latents, 'pred_original_sample': result.pred_original_sample}
                        tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                        outputs = callback_on_step_end(self, step, int(t), tensors) or {}
                        latents = outputs.get('latents', latents)
                    progress_bar.update()
                video[:, :, frames[~is_known]] = latents[:, :, ~is_known]
                if len(windows) > 1:  # frame 0 is known from now on
                    video[:, :, 0] = first if self.config.residual_scale is None else 0
        latents = video

        # 5. Decode
        if output_type == 'latent':
            frames = latents
        else:
            if self.config.residual_scale is None:
                frames = decode_latents(self.vae, latents)
            else:
                latents = latents / self.config.residual_scale + first.unsqueeze(2)
                decoded = decode_latents(self.vae, torch.cat([first.unsqueeze(2), latents], dim=2))
                frames = keep_observed(decoded[:, 1:], decoded[:, 0], image)
            frames[:, 0] = image
        self.maybe_free_model_hooks()
        return InteractionVideoPipelineOutput(frames=frames) if return_dict else (frames,)
