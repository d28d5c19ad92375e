"""A model folder of the real classes, with random weights and so small that a request takes a moment."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.text_encoder import PackagedTextEncoder
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline

LATENT_CHANNELS = 4


def build_tiny_pipeline(seed: int = 0) -> Mask2IVPipeline:
    """Make a `Mask2IVPipeline` of random weights: 32 x 48 pixels, 8 frames, 2 steps."""
    torch.manual_seed(seed)
    unet = {
        'in_channels': 3 * LATENT_CHANNELS,
        'out_channels': LATENT_CHANNELS,
        'block_out_channels': (8, 16),
        'layers_per_block': 1,
        'attention_resolutions': (2,),
        'attention_head_dim': 8,
        'cross_attention_dim': 384,
        'image_cross_attention': False,
        'norm_num_groups': 4,
    }
    pipeline = Mask2IVPipeline(
        vae=PatchAutoencoderKL(block_out_channels=(8, 8), latent_channels=LATENT_CHANNELS, norm_num_groups=4),
        trajectory_unet=DynamiCrafterUNet(**unet),
        video_unet=DynamiCrafterUNet(**unet),
        scheduler=RescaledDDIMScheduler(),
        text_encoder=PackagedTextEncoder(),
        name='tiny',
        sample_size=(32, 48),
        num_frames=8,
        num_inference_steps=2,
    )
    for unet in (pipeline.trajectory_unet, pipeline.video_unet):
        unet.eval()
    return pipeline


def build_tiny_model(folder: Path) -> Path:
    """Save `build_tiny_pipeline` to `folder`, which is returned."""
    build_tiny_pipeline().save_pretrained(folder)
    return folder


if __name__ == '__main__':
    build_tiny_model(Path(sys.argv[1]))
