"""A whole checkpoint in the public key names: random weights, so small that it converts in a moment."""

from __future__ import annotations

from functools import cache

import torch

import reference
from mask2iv_ros.models.conversion import to_ldm_resampler, to_ldm_unet
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.unet import DynamiCrafterUNet

UNET = {
    'in_channels': 12,
    'out_channels': 4,
    'block_out_channels': [32, 64],
    'layers_per_block': 1,
    'attention_resolutions': [1, 2],
    'attention_head_dim': 16,
    'cross_attention_dim': 128,
}
RESAMPLER = {
    'embedding_dim': 128,
    'output_dim': 128,
    'hidden_dim': 64,
    'num_layers': 1,
    'num_attention_heads': 2,
    'attention_head_dim': 64,
}


def buffers(rescale_base: float = 0.7) -> dict[str, torch.Tensor]:
    """The noise schedule as DynamiCrafter keeps it: the rescale goes on beyond the last timestep."""
    scheduler = RescaledDDIMScheduler(rescale_base=rescale_base)
    values = {key: torch.zeros(shape) for key, shape in reference.full_size()[''].items()}
    values['alphas_cumprod'] = scheduler.alphas_cumprod.float()
    values['scale_arr'] = torch.cat([scheduler.scales, torch.full((400,), rescale_base)]).float()
    return values


@cache
def _denoiser(in_channels: int, seed: int) -> dict[str, torch.Tensor]:
    with torch.device('meta'):
        unet = to_ldm_unet(DynamiCrafterUNet(**UNET).state_dict(), UNET)
        resampler = to_ldm_resampler(Resampler(**RESAMPLER).state_dict(), RESAMPLER)
    unet['input_blocks.0.0.weight'] = torch.empty(32, in_channels, 3, 3, device='meta')
    parts = {'model.diffusion_model': unet, 'image_proj_model': resampler}
    shapes = {
        f'{part}.{key}': list(value.shape)
        for part, weights in parts.items()
        for key, value in weights.items()
    }
    return reference.random_weights(shapes, seed)


def tiny_checkpoint(in_channels: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """All five parts and the buffers; `seed` is that of UNet and Resampler, the frozen parts are the same."""
    frozen = {
        f'{part}.{key}': value
        for part in ('first_stage_model', 'cond_stage_model', 'embedder')
        for key, value in reference.encoder_weights(part).items()
    }
    frozen['embedder.model.token_embedding.weight'] = torch.zeros(1, 128)  # never read, and most of the file
    return {**_denoiser(in_channels, seed), **frozen, **buffers()}
