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
from mask2iv_ros.models.controlnet import predict
from mask2iv_ros.pipelines.components import (
    check_call,
    check_images,
    decode_latents,
    encode_first_frame,
    encode_images,
    encode_text,
    keep_observed,
)

#: Masks that a stage 2 may see: the paper's; the actor's alone; or none, and the task's text in their place.
MASKS = ('both', 'actor', 'none')


@dataclass
class InteractionVideoPipelineOutput(BaseOutput):
    """`frames`: (B, T, H, W, 3) uint8 RGB, frame 0 as observed; or latents (B, C, T, h, w)."""

    frames: np.ndarray | torch.Tensor


def anchored_windows(length: int, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows of `size` frames that make a clip of `length` frames, in the order in which to generate them.

    The first holds key frames, spread from first to last. Each further one fills in between: frame 0, then
    neighbouring frames from one that is there already to another. So every window starts from the observed
    frame, and errors do not add up along the clip.

    Returns:
        (frames, known) pairs: (size,) increasing frame numbers, and (size,) bool, whether an earlier window
        has made them (frame 0: it is observed).

    Raises:
        ValueError: `length` below `size`, or above it where `size` is too small to fill in (below 4).
    """
    if length < size or (length > size and size < 4):
        raise ValueError(f'expected {size} frames{" or more" if size > 3 else ""}, got {length}')
    done = np.linspace(0, length - 1, size).round().astype(int)
    windows = [(done, np.zeros(size, dtype=bool))]
    while len(done) < length:
        missing = np.setdiff1d(np.arange(length), done)[0]
        run = np.arange(max(1, missing - 1), length)[: size - 1]
        if len(run) < size - 1:
            run = np.arange(length - size + 1, length)
        run[-1] = done[done >= run[-1]][0]
        frames = np.append(0, run)
        windows.append((frames, np.isin(frames, done)))
        done = np.union1d(done, frames)
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


def visible_labels(labels: np.ndarray, masks: str) -> np.ndarray:
    """What a stage 2 with these `masks` ('both' or 'actor') sees of (..., H, W) label images."""
    if masks == 'both':
        return labels
    return np.where(labels == lb.ACTOR, lb.ACTOR, lb.BACKGROUND).astype(np.uint8)


class InteractionVideoPipeline(DiffusionPipeline):
    """Generates the RGB video that follows given mask trajectories.

    A clip that is longer than the model's `num_frames` is made in windows (`anchored_windows`), in which the
    frames of earlier windows are kept (as in RePaint, arXiv 2201.09865, without its resampling).

    Components and config as in `MaskTrajectoryPipeline`; here the target is the latent of each video frame,
    or with `residual_scale` its difference to the first frame's latent times that number. The text is ''.

    Baselines that the paper compares with are two more choices. `masks`, one of `MASKS`: with 'actor' it sees
    the actor alone; with 'none' it is a one-stage image-to-video model, which sees zeros for mask latents and
    reads the task. `controlnet`: a `DynamiCrafterControlNet` that sees the masks in place of the UNet.
    """

    stage = 'video'
    model_cpu_offload_seq = 'text_encoder->image_encoder->image_projector->controlnet->unet->vae'
    _optional_components = [  # noqa: RUF012
        'tokenizer',
        'image_encoder',
        'feature_extractor',
        'image_projector',
        'controlnet',
    ]
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
        controlnet=None,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        eta: float = 1.0,
        fps: float = 15.0,
        residual_scale: float | None = None,
        masks: str = 'both',
    ):
        super().__init__()
        if masks not in MASKS:
            raise ValueError(f'masks: expected one of {MASKS}, got {masks!r}')
        self.register_modules(
            vae=vae,
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projector=image_projector,
            controlnet=controlnet,
        )
        self.register_to_config(
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            eta=eta,
            fps=fps,
            residual_scale=residual_scale,
            masks=masks,
        )

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running call, all windows together."""
        return self._num_timesteps

    def check_inputs(self, image, labels, task, output_type, callback_on_step_end_tensor_inputs):
        check_call(self, image, output_type, callback_on_step_end_tensor_inputs)
        if not isinstance(task, str) and len(task) != len(image):
            raise ValueError(f'task: expected one text or {len(image)}, got {len(task)}')
        if labels is None and self.config.masks == 'none':
            return
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
        labels: np.ndarray | None,
        task: str | list[str] = '',
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
            labels: (B, T, H, W) uint8 label images of all frames; T at least the config's `num_frames`. With
                the config's `masks` 'none' only T counts, and None is `num_frames`.
            task: what to do, one text or one a frame of `image`; read with `masks` 'none' alone.
            latents: (B, C, T, h, w) starting noise, or None to draw it from `generator`.
            output_type, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                `MaskTrajectoryPipeline`.

        Raises:
            ValueError: a shape, dtype, count or name that does not fit.
        """
        # 1. Check inputs
        self.check_inputs(image, labels, task, output_type, callback_on_step_end_tensor_inputs)
        num_frames, device = self.config.num_frames, self._execution_device
        length = num_frames if labels is None else labels.shape[1]

        # 2. Encode first frame and masks
        first = encode_images(self.vae, image[:, None], device)[:, :, 0]
        repeated = first.unsqueeze(2).expand(-1, -1, length, -1, -1)
        texts = [''] * len(image)
        if self.config.masks == 'none':
            mask_latents = torch.zeros_like(repeated)
            texts = [task] * len(image) if isinstance(task, str) else list(task)
        else:
            seen = lb.labels_to_rgb(visible_labels(labels, self.config.masks))
            mask_latents = encode_images(self.vae, seen, device)
        text_tokens = encode_text(self, texts).to(self.unet.dtype)
        image_tokens = encode_first_frame(self, image, first)
        dtype = self.unet.dtype
        condition = torch.cat([repeated, mask_latents], dim=1).to(dtype)
        fps_condition = torch.full((len(image),), round(fps or self.config.fps), device=device)

        # 3. Timesteps, noise, and the windows that the UNet sees at a time
        self.scheduler.set_timesteps(num_inference_steps or self.config.num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        if latents is None:
            shape = (*mask_latents.shape[:2], num_frames, *mask_latents.shape[3:])
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            if length > num_frames:
                latents = stretch_noise(latents, length)
        noise = latents.to(device) * self.scheduler.init_noise_sigma
        windows = anchored_windows(length, num_frames)
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
                    conditions = (t, text_tokens, image_tokens, fps_condition)
                    velocity = predict(self.unet, self.controlnet, model_input, *conditions)
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
            later, first = latents[:, :, 1:], first.unsqueeze(2)
            if self.config.residual_scale is None:
                frames = decode_latents(self.vae, later)
            else:
                frames = decode_latents(self.vae, later / self.config.residual_scale + first)
                frames = keep_observed(frames, decode_latents(self.vae, first)[:, 0], image)
            frames = np.concatenate([image[:, None], frames], axis=1)
        self.maybe_free_model_hooks()
        return InteractionVideoPipelineOutput(frames=frames) if return_dict else (frames,)
