"""The small VAE of `mask2iv-sim`: diffusers' AutoencoderKL over space-to-depth patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.configuration_utils import register_to_config

# Diffusers finds a custom component's load method by looking up this name in the component's module.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401


class PatchAutoencoderKL(AutoencoderKL):
    """AutoencoderKL whose convolutions run on `patch_size` x `patch_size` pixel patches instead of pixels.

    At 128 x 160 this is about four times faster on a CPU than the plain one at equal size, because no
    convolution runs at full resolution. Images are (N, 3, H, W) in [-1, 1]; latents (N, latent_channels,
    H / f, W / f) with f = patch_size * 2 ** (len(block_out_channels) - 1).
    """

    @register_to_config
    def __init__(
        self,
        patch_size: int = 4,
        block_out_channels: tuple[int, ...] = (96, 160),
        layers_per_block: int = 1,
        latent_channels: int = 8,
        norm_num_groups: int = 16,
        scaling_factor: float = 1.0,
        sample_size: int = 160,
    ):
        # The undecorated parent constructor: the decorated one would register its own arguments too.
        AutoencoderKL.__init__.__wrapped__(
            self,
            in_channels=3 * patch_size**2,
            out_channels=3 * patch_size**2,
            down_block_types=('DownEncoderBlock2D',) * len(block_out_channels),
            up_block_types=('UpDecoderBlock2D',) * len(block_out_channels),
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            scaling_factor=scaling_factor,
            sample_size=sample_size,
            mid_block_add_attention=False,
            force_upcast=False,
        )

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        return super()._encode(F.pixel_unshuffle(x, self.config.patch_size))

    def _decode(self, z: torch.Tensor, return_dict: bool = True):
        decoded = super()._decode(z, return_dict=True)
        decoded.sample = F.pixel_shuffle(decoded.sample, self.config.patch_size)
        return decoded if return_dict else (decoded.sample,)
