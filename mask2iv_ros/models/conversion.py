"""Weights between the public LDM key names (DynamiCrafter, Mask2IV checkpoints) and this package's modules.

The key maps are bijective: `to_ldm_unet` and `to_ldm_resampler` undo `convert_ldm_unet` and
`convert_ldm_resampler` bit by bit. `encoder_conversion.py` does the frozen parts, `pipelines/conversion.py`
whole checkpoint files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet

StateDict = dict[str, torch.Tensor]

# Within one module: our name -> LDM's name. Transformers have the same names on both sides.
_RESNET_NAMES = {
    'norm1': 'in_layers.0',
    'conv1': 'in_layers.2',
    'time_emb_proj': 'emb_layers.1',
    'norm2': 'out_layers.0',
    'conv2': 'out_layers.3',
    'conv_shortcut': 'skip_connection',
    # "temopral" is the public implementation's spelling.
    **{f'temporal_conv.norms.{i}': f'temopral_conv.conv{i + 1}.0' for i in range(4)},
    **{f'temporal_conv.convs.{i}': f'temopral_conv.conv{i + 1}.{3 if i else 2}' for i in range(4)},
}
_RESAMPLER_NAMES = {'attn': '0', 'ff': '1'}


def ldm_unet_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {our key: LDM key} for every weight of the `DynamiCrafterUNet` with this config."""
    with torch.device('meta'):
        unet = DynamiCrafterUNet.from_config(dict(config))
    prefixes = _unet_module_prefixes(unet)
    return {key: _rename_unet_key(key, prefixes) for key in unet.state_dict()}


def ldm_resampler_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {our key: LDM key} for every weight of the `Resampler` with this config."""
    with torch.device('meta'):
        resampler = Resampler.from_config(dict(config))
    keys = {}
    for key in resampler.state_dict():
        match = re.fullmatch(r'layers\.(\d+)\.(attn|ff)\.(.+)', key)
        if match:
            keys[key] = f'layers.{match[1]}.{_RESAMPLER_NAMES[match[2]]}.{match[3]}'
        else:
            keys[key] = 'latents' if key == 'queries' else key
    return keys


def _unet_module_prefixes(unet: DynamiCrafterUNet) -> dict[str, str]:
    """Return {our module: LDM module} for the modules that LDM numbers through over all levels."""
    prefixes = {
        'time_embedding.linear_1': 'time_embed.0',
        'time_embedding.linear_2': 'time_embed.2',
        'fps_embedding.linear_1': 'fps_embedding.0',
        'fps_embedding.linear_2': 'fps_embedding.2',
        'conv_in': 'input_blocks.0.0',
        'transformer_in': 'init_attn.0',
        'conv_norm_out': 'out.0',
        'conv_out': 'out.2',
        'mid_block.resnets.0': 'middle_block.0',
        'mid_block.attentions.0': 'middle_block.1',
        'mid_block.temp_attentions.0': 'middle_block.2',
        'mid_block.resnets.1': f'middle_block.{2 + len(unet.mid_block.temp_attentions)}',
    }
    index = 1
    for level, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            prefixes.update(_layer_prefixes(f'down_blocks.{level}', layer, f'input_blocks.{index}'))
            index += 1
        if block.downsamplers:
            prefixes[f'down_blocks.{level}.downsamplers.0.conv'] = f'input_blocks.{index}.0.op'
            index += 1
    index = 0
    for level, block in enumerate(unet.up_blocks):
        for layer in range(len(block.resnets)):
            prefixes.update(_layer_prefixes(f'up_blocks.{level}', layer, f'output_blocks.{index}'))
            index += 1
        if block.upsamplers:
            # It is the last member of the level's last layer, behind whatever transformers there are.
            position = 1 + bool(block.attentions) + bool(block.temp_attentions)
            prefixes[f'up_blocks.{level}.upsamplers.0.conv'] = f'output_blocks.{index - 1}.{position}.conv'
    return prefixes


def _layer_prefixes(block: str, layer: int, ldm_block: str) -> dict[str, str]:
    return {
        f'{block}.resnets.{layer}': f'{ldm_block}.0',
        f'{block}.attentions.{layer}': f'{ldm_block}.1',
        f'{block}.temp_attentions.{layer}': f'{ldm_block}.2',
    }


def _rename_unet_key(key: str, prefixes: dict[str, str]) -> str:
    module = next(module for module in prefixes if key.startswith(f'{module}.'))
    name = key[len(module) + 1 :]
    if '.resnets.' in module:
        name, _, parameter = name.rpartition('.')
        return f'{prefixes[module]}.{_RESNET_NAMES[name]}.{parameter}'
    return f'{prefixes[module]}.{name}'


def _is_trailing_kernel(key: str) -> bool:
    """Whether LDM has a weight with one more kernel dimension of size 1 at its end than ours."""
    temporal_conv = '.temporal_conv.convs.' in key
    linear_instead_of_conv1d = key.startswith(('transformer_in.proj_in.', 'transformer_in.proj_out.'))
    return key.endswith('.weight') and (temporal_conv or linear_instead_of_conv1d)


def convert_ldm_unet(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename the weights of a public `UNetModel` (no prefix) for the `DynamiCrafterUNet` with this config.

    Keys that the model does not have are left out; KeyError if one is missing.
    """
    return {
        key: state_dict[ldm].squeeze(-1) if _is_trailing_kernel(key) else state_dict[ldm]
        for key, ldm in ldm_unet_keys(config).items()
    }


def to_ldm_unet(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Undo `convert_ldm_unet`."""
    return {
        ldm: state_dict[key].unsqueeze(-1) if _is_trailing_kernel(key) else state_dict[key]
        for key, ldm in ldm_unet_keys(config).items()
    }


def convert_ldm_resampler(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Rename the weights of a public `Resampler` (no prefix) for the `Resampler` with this config."""
    return {key: state_dict[ldm] for key, ldm in ldm_resampler_keys(config).items()}


def to_ldm_resampler(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StateDict:
    """Undo `convert_ldm_resampler`."""
    return {ldm: state_dict[key] for key, ldm in ldm_resampler_keys(config).items()}


def infer_unet_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read `DynamiCrafterUNet`'s config off the shapes of a public `UNetModel`'s weights (no prefix).

    Shapes do not tell `dropout` and `default_fps`, which keep their defaults, nor, without `init_attn`, the
    size of a head, which is then taken as 64.
    """
    blocks = {int(key.split('.')[1]) for key in state_dict if key.startswith('input_blocks.')}
    downsamplers = [block for block in blocks if f'input_blocks.{block}.0.op.weight' in state_dict]
    layers_per_block = min(downsamplers, default=len(blocks)) - 1
    first_layers = [
        f'input_blocks.{1 + level * (layers_per_block + 1)}' for level in range(len(downsamplers) + 1)
    ]
    config = {
        'in_channels': state_dict['input_blocks.0.0.weight'].shape[1],
        'out_channels': state_dict['out.2.weight'].shape[0],
        'block_out_channels': [state_dict[f'{name}.0.out_layers.3.weight'].shape[0] for name in first_layers],
        'layers_per_block': layers_per_block,
        'attention_resolutions': [
            2**level for level, name in enumerate(first_layers) if f'{name}.1.norm.weight' in state_dict
        ],
        'transformer_layers_per_block': len(
            [key for key in state_dict if re.fullmatch(r'middle_block\.1\..+\.attn1\.to_q\.weight', key)]
        ),
        'cross_attention_dim': state_dict['middle_block.1.transformer_blocks.0.attn2.to_k.weight'].shape[1],
        'temporal_conv': any('.temopral_conv.' in key for key in state_dict),
        'temporal_attention': 'middle_block.3.in_layers.0.weight' in state_dict,
        'temporal_transformer_in': 'init_attn.0.norm.weight' in state_dict,
        'image_cross_attention': any(key.endswith('.to_k_ip.weight') for key in state_dict),
        'fps_condition': 'fps_embedding.0.weight' in state_dict,
    }
    if config['temporal_transformer_in']:
        config['attention_head_dim'] = state_dict['init_attn.0.proj_in.weight'].shape[0] // 8
    return config


def infer_resampler_config(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Read `Resampler`'s config off the shapes of a public `Resampler`'s weights (no prefix).

    Heads are taken as 64 wide and queries as 16 a frame, as in DynamiCrafter: shapes do not tell.
    """
    _, num_queries, hidden_dim = state_dict['latents'].shape
    return {
        'embedding_dim': state_dict['proj_in.weight'].shape[1],
        'output_dim': state_dict['proj_out.weight'].shape[0],
        'hidden_dim': hidden_dim,
        'num_layers': len([key for key in state_dict if key.endswith('.0.to_q.weight')]),
        'num_attention_heads': state_dict['layers.0.0.to_q.weight'].shape[0] // 64,
        'attention_head_dim': 64,
        'num_queries': 16,
        'num_frames': num_queries // 16,
        'ff_mult': state_dict['layers.0.1.1.weight'].shape[0] // hidden_dim,
    }
