"""Weights of DynamiCrafter's frozen encoders, from their public names to diffusers and transformers.

LDM's VAE (`first_stage_model`) becomes an `AutoencoderKL`; the two halves of OpenCLIP (`cond_stage_model`,
`embedder`), whose attention layers hold query, key and value in one matrix, become a `CLIPTextModel` and a
`CLIPVisionModel`. The key maps are as in `conversion.py`, but one of theirs can hold several of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from mask2iv_ros.models.openclip import CONTEXT_LENGTH, PAD_TOKEN_ID

StateDict = dict[str, torch.Tensor]

#: Of Stable Diffusion's VAE; a checkpoint holds it only if it was measured (`scale_factor`).
SCALING_FACTOR = 0.18215

_VAE_NAMES = (
    (r'\.down_blocks\.(\d+)\.resnets\.(\d+)\.', r'.down.\1.block.\2.'),
    (r'\.down_blocks\.(\d+)\.downsamplers\.0\.', r'.down.\1.downsample.'),
    (r'\.up_blocks\.(\d+)\.resnets\.(\d+)\.', r'.up.\1.block.\2.'),
    (r'\.up_blocks\.(\d+)\.upsamplers\.0\.', r'.up.\1.upsample.'),
    (r'\.mid_block\.resnets\.0\.', '.mid.block_1.'),
    (r'\.mid_block\.resnets\.1\.', '.mid.block_2.'),
    (r'\.mid_block\.attentions\.0\.', '.mid.attn_1.'),
    (r'\.attn_1\.group_norm\.', '.attn_1.norm.'),
    (r'\.attn_1\.to_([qkv])\.', r'.attn_1.\1.'),
    (r'\.attn_1\.to_out\.0\.', '.attn_1.proj_out.'),
    (r'\.conv_shortcut\.', '.nin_shortcut.'),
    (r'\.conv_norm_out\.', '.norm_out.'),
)
_CLIP_NAMES = (
    (r'^(text_model|vision_model)\.', ''),
    (r'^embeddings\.position_embedding\.weight', 'positional_embedding'),
    (r'^embeddings\.patch_embedding\.', 'conv1.'),
    (r'^embeddings\.', ''),
    (r'^encoder\.layers\.', 'transformer.resblocks.'),
    (r'\.self_attn\.[qkv]_proj\.', '.attn.in_proj_'),
    (r'\.self_attn\.', '.attn.'),
    (r'\.layer_norm([12])\.', r'.ln_\1.'),
    (r'\.mlp\.fc1\.', '.mlp.c_fc.'),
    (r'\.mlp\.fc2\.', '.mlp.c_proj.'),
    (r'^final_layer_norm\.', 'ln_final.'),
    (r'^pre_layrnorm\.', 'ln_pre.'),
    (r'^post_layernorm\.', 'ln_post.'),
)


def _rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def build_text_encoder(config: Mapping[str, Any]) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**config))


def build_image_encoder(config: Mapping[str, Any]) -> CLIPVisionModel:
    return CLIPVisionModel(CLIPVisionConfig(**config))


def ldm_vae_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {our key: LDM key} for every weight of the `AutoencoderKL` with this config."""
    with torch.device('meta'):
        vae = AutoencoderKL.from_config(dict(config))
    last = len(config['block_out_channels']) - 1

    def reverse_level(match: re.Match) -> str:  # LDM counts levels from the full resolution on both sides
        return f'.up_blocks.{last - int(match[1])}.'

    return {
        key: _rename(re.sub(r'\.up_blocks\.(\d+)\.', reverse_level, key), _VAE_NAMES)
        for key in vae.state_dict()
    }


def ldm_text_encoder_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {our key: OpenCLIP key} for every weight of the `CLIPTextModel` with this config."""
    with torch.device('meta'):
        return {key: _rename(key, _CLIP_NAMES) for key in build_text_encoder(config).state_dict()}


def ldm_image_encoder_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {our key: OpenCLIP `visual` key} for every weight of the `CLIPVisionModel` with this config."""
    with torch.device('meta'):
        return {key: _rename(key, _CLIP_NAMES) for key in build_image_encoder(config).state_dict()}


def convert_ldm_vae(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename the weights of LDM's `AutoencoderKL` (no prefix) for diffusers' with this config."""
    return {
        # Attention is a 1x1 convolution there, a linear layer here.
        key: state_dict[ldm].flatten(1) if re.search(r'\.to_\w+(\.0)?\.weight$', key) else state_dict[ldm]
        for key, ldm in ldm_vae_keys(config).items()
    }


def convert_ldm_text_encoder(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename and split the weights of OpenCLIP's text half (no prefix)."""
    return {key: _openclip_weight(state_dict, key, ldm) for key, ldm in ldm_text_encoder_keys(config).items()}


def convert_ldm_image_encoder(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename and split the weights of OpenCLIP's `visual` (no prefix)."""
    return {
        key: _openclip_weight(state_dict, key, ldm) for key, ldm in ldm_image_encoder_keys(config).items()
    }


def _openclip_weight(state_dict: Mapping[str, torch.Tensor], key: str, ldm: str) -> torch.Tensor:
    match = re.search(r'\.([qkv])_proj\.', key)
    if not match:
        return state_dict[ldm]
    return state_dict[ldm].chunk(3)['qkv'.index(match[1])].clone()  # no storage shared between our weights


def infer_vae_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read `AutoencoderKL`'s config off the shapes of LDM's weights (no prefix)."""
    levels = 1 + max(int(key.split('.')[2]) for key in state_dict if key.startswith('encoder.down.'))
    layers = 1 + max(int(key.split('.')[4]) for key in state_dict if key.startswith('encoder.down.0.block.'))
    return {
        'in_channels': state_dict['encoder.conv_in.weight'].shape[1],
        'out_channels': state_dict['decoder.conv_out.weight'].shape[0],
        'down_block_types': ['DownEncoderBlock2D'] * levels,
        'up_block_types': ['UpDecoderBlock2D'] * levels,
        'block_out_channels': [
            state_dict[f'encoder.down.{level}.block.0.conv1.weight'].shape[0] for level in range(levels)
        ],
        'layers_per_block': layers,
        'latent_channels': state_dict['post_quant_conv.weight'].shape[1],
        'norm_num_groups': 32,
        'scaling_factor': SCALING_FACTOR,
        'sample_size': 512,
    }


def infer_text_encoder_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read `CLIPTextModel`'s config off the shapes of OpenCLIP's text half (no prefix).

    It has one layer less: DynamiCrafter's text tokens are those of the penultimate layer, normalised by the
    final layer norm. Shapes do not tell the size of a head, which is 64 in all OpenCLIP text encoders.
    """
    vocab_size, width = state_dict['token_embedding.weight'].shape
    length = state_dict['positional_embedding'].shape[0]
    if length != CONTEXT_LENGTH:
        raise ValueError(f'positional_embedding has {length} positions, expected {CONTEXT_LENGTH}')
    return {
        'vocab_size': vocab_size,
        'max_position_embeddings': length,
        'num_hidden_layers': _num_layers(state_dict, {1024: 24}.get(width)) - 1,
        'num_attention_heads': width // 64,
        'pad_token_id': PAD_TOKEN_ID,
        **_layer_config(state_dict, width),
    }


def infer_image_encoder_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read `CLIPVisionModel`'s config off the shapes of OpenCLIP's `visual` (no prefix).

    Shapes do not tell the size of a head: 80 in ViT-H, the encoder of DynamiCrafter, and 64 in the smaller.
    """
    width, _, patch_size, _ = state_dict['conv1.weight'].shape
    grid = round((state_dict['positional_embedding'].shape[0] - 1) ** 0.5)
    return {
        'image_size': grid * patch_size,
        'patch_size': patch_size,
        'num_hidden_layers': _num_layers(state_dict, {1280: 32}.get(width)),
        'num_attention_heads': width // (80 if width == 1280 else 64),
        **_layer_config(state_dict, width),
    }


def _num_layers(state_dict: Mapping[str, torch.Tensor], expected: int | None) -> int:
    """Number of layers; ValueError if it is not that of ViT-H (`expected`): the last ones could be lost."""
    prefix = 'transformer.resblocks.'
    count = 1 + max(int(key[len(prefix) :].split('.')[0]) for key in state_dict if key.startswith(prefix))
    if expected not in (None, count):
        raise ValueError(f'{count} layers, expected {expected}')
    return count


def _layer_config(state_dict: Mapping[str, torch.Tensor], width: int) -> dict[str, Any]:
    return {
        'hidden_size': width,
        'intermediate_size': state_dict['transformer.resblocks.0.mlp.c_fc.weight'].shape[0],
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-5,
    }
