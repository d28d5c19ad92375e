"""The noise schedule and sampler of Mask2IV: DDIM with zero-terminal SNR and dynamic rescale.

Zero-terminal SNR (arXiv 2305.08891) lets sampling start from pure noise. Dynamic rescale (DynamiCrafter,
arXiv 2310.12190) trains the model on latents multiplied by a scale that falls from 1 to `rescale_base` over
the first timesteps; sampling moves the predicted latents from each timestep's scale to the next one's. This
scheduler owns both sides: `add_noise` and `get_velocity` for training, `step` for sampling.

It is not a subclass of diffusers' DDIMScheduler because that one takes the previous timestep from an integer
division, which is off the timesteps used unless the number of steps divides 1000, and rounds the schedule to
the samples' dtype, in which (bfloat16) the noise of early timesteps is lost.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor


class RescaledDDIMScheduler(SchedulerMixin, ConfigMixin):
    """DDIM (arXiv 2010.02502) for v-prediction, with trailing timesteps; samples are (B, ...) of any shape.

    Args:
        num_train_timesteps: number of timesteps of the schedule.
        beta_start: first beta of the schedule, which is linear in the square root of beta and then rescaled
            to zero terminal SNR.
        beta_end: last beta of the schedule, before the rescale.
        rescale_base: scale of the latents from timestep `rescale_turning_step` on; 1.0 turns dynamic rescale
            off.
        rescale_turning_step: number of first timesteps over which the scale falls linearly from 1.
        rescale_last_step: whether the last sampling step takes the result back to scale 1. The public
            implementation does not (`False`), which shows with few steps: 5 end at scale 0.85, 50 at 0.99.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        rescale_base: float = 0.7,
        rescale_turning_step: int = 400,
        rescale_last_step: bool = False,
    ):
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        sqrt_alphas_cumprod = np.sqrt(np.cumprod(1 - betas))
        first, last = sqrt_alphas_cumprod[0], sqrt_alphas_cumprod[-1]
        alphas_cumprod = ((sqrt_alphas_cumprod - last) * first / (first - last)) ** 2
        scales = np.full(num_train_timesteps, rescale_base)
        scales[:rescale_turning_step] = np.linspace(1.0, rescale_base, rescale_turning_step)

        #: (num_train_timesteps,) float64, on the CPU.
        self.alphas_cumprod = torch.from_numpy(alphas_cumprod)
        #: (num_train_timesteps,) float64, on the CPU: the factor of dynamic rescale at each timestep.
        self.scales = torch.from_numpy(scales)

        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set `timesteps` to `num_inference_steps` equal strides that start at the last training timestep."""
        num_train_timesteps = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= num_train_timesteps:
            raise ValueError(
                f'num_inference_steps: expected 1..{num_train_timesteps}, got {num_inference_steps}'
            )
        self.num_inference_steps = num_inference_steps
        stride = num_train_timesteps / num_inference_steps
        timesteps = np.round(num_train_timesteps - stride * np.arange(num_inference_steps)) - 1
        self.timesteps = torch.from_numpy(timesteps.astype(np.int64)).to(device)

    def scale_model_input(
        self, sample: torch.Tensor, timestep: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Return `sample`: this schedule needs no scaling (diffusers' scheduler interface)."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Take `sample` from `timestep`, which must be one of `timesteps`, to the next of them.

        Args:
            model_output: predicted v, like `sample`.
            timestep: where `sample` is.
            sample: (B, ...) noisy latents.
            eta: share of fresh noise, 0 (deterministic) to 1 (as in Mask2IV).
            generator: source of that noise.
            return_dict: `False` returns the tuple (prev_sample, pred_original_sample).

        Returns:
            `prev_sample`, and `pred_original_sample` at the next timestep's scale, in the dtype of `sample`.
        """
        indices = (self.timesteps == timestep).nonzero()
        if self.num_inference_steps is None or len(indices) != 1:
            raise ValueError(f'timestep {int(timestep)} is not one of those made by set_timesteps()')
        index = int(indices)
        is_last = index + 1 == len(self.timesteps)
        t = int(timestep)
        t_prev = 0 if is_last else int(self.timesteps[index + 1])

        alpha, alpha_prev = float(self.alphas_cumprod[t]), float(self.alphas_cumprod[t_prev])
        rescale = float(self.scales[t_prev] / self.scales[t])
        if is_last and not self.config.rescale_last_step:
            rescale = 1.0
        std_dev = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)) ** 0.5

        dtype = sample.dtype
        sample, model_output = sample.float(), model_output.float()
        pred_original_sample = rescale * (alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output)
        pred_noise = alpha**0.5 * model_output + (1 - alpha) ** 0.5 * sample
        # With eta 1 it vanishes from zero SNR on; rounding must not make its square negative.
        noise_level = max(1 - alpha_prev - std_dev**2, 0.0) ** 0.5
        prev_sample = alpha_prev**0.5 * pred_original_sample + noise_level * pred_noise
        if eta > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            prev_sample = prev_sample + std_dev * noise

        prev_sample, pred_original_sample = prev_sample.to(dtype), pred_original_sample.to(dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return what the model sees at `timesteps` (B,): scaled, noisy `original_samples` (B, ...)."""
        signal, noise_level, scale = self._levels(original_samples, timesteps)
        return signal * scale * original_samples + noise_level * noise

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return the training target v for the unscaled, clean `sample` (B, ...) and `add_noise`'s noise."""
        signal, noise_level, scale = self._levels(sample, timesteps)
        return signal * noise - noise_level * scale * sample

    def _levels(
        self, sample: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        timesteps = timesteps.cpu()
        shape = (-1,) + (1,) * (sample.ndim - 1)
        alphas = self.alphas_cumprod[timesteps]
        levels = (alphas.sqrt(), (1 - alphas).sqrt(), self.scales[timesteps])
        return tuple(level.to(sample).view(shape) for level in levels)
