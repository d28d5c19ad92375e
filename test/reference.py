"""The public implementation's numbers (test/data/parity/README.md), and our models with its weights."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from mask2iv_ros.models.conversion import (
    convert_ldm_resampler,
    convert_ldm_unet,
)
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet

FOLDER = Path(__file__).parent / 'data' / 'parity'


@cache
def tensors() -> dict[str, torch.Tensor]:
    with safe_open(FOLDER / 'reference_tensors.safetensors', 'pt') as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


@cache
def full_size() -> dict:
    """Key -> shape of each part of a full-size checkpoint, and its `unet_config`."""
    files = ('full_size_keys.json', 'full_size_encoder_keys.json')
    return {part: keys for file in files for part, keys in json.loads((FOLDER / file).read_text()).items()}


def random_weights(shapes: Mapping[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Weights whose outputs keep a sensible size; always the same ones, as RandomState promises."""
    random = np.random.RandomState(seed)
    weights = {}
    for key, shape in shapes.items():
        value = np.asarray(random.standard_normal(shape or None), np.float32)
        if len(shape) > 1:
            value = value / np.sqrt(np.prod(shape[1:]))
        else:
            value = 0.1 * value + key.endswith('weight')
        weights[key] = torch.from_numpy(np.asarray(value, np.float32))
    return weights


@cache
def _encoders_file() -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(FOLDER / 'encoders.safetensors', 'pt') as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return values, {key: json.loads(text) for key, text in file.metadata().items()}


def encoder_tensors() -> dict[str, torch.Tensor]:
    return _encoders_file()[0]


def encoder_texts(name: str) -> list[str]:
    return _encoders_file()[1][name]


@cache
def encoder_weights(part: str) -> dict[str, torch.Tensor]:
    """Return the tiny weights of 'first_stage_model', 'cond_stage_model' or 'embedder' in public names."""
    shapes = _encoders_file()[1]['shapes']
    return random_weights(shapes[part], seed=list(shapes).index(part))


def frame() -> np.ndarray:
    """Return the (320, 512, 3) uint8 picture of the encoders' numbers."""
    return np.random.RandomState(9).randint(0, 256, (320, 512, 3)).astype(np.uint8)


@cache
def _weights_file() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(FOLDER / 'reference_weights.safetensors', 'pt') as file:
        weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        return weights, file.metadata()


def ldm_weights(part: str) -> dict[str, torch.Tensor]:
    """Return the weights of 'unet' or 'resampler' under their public names."""
    weights, _ = _weights_file()
    return {
        key.removeprefix(f'{part}.'): value for key, value in weights.items() if key.startswith(f'{part}.')
    }


def unet_config_from_ldm(params: Mapping) -> dict:
    """Translate a public `unet_config.params` (of DynamiCrafter's YAML files) into our UNet's config."""
    base_channels = params['model_channels']
    return {
        'in_channels': params['in_channels'],
        'out_channels': params['out_channels'],
        'block_out_channels': [base_channels * mult for mult in params['channel_mult']],
        'layers_per_block': params['num_res_blocks'],
        'attention_resolutions': sorted(params['attention_resolutions']),
        'attention_head_dim': params['num_head_channels'],
        'transformer_layers_per_block': params['transformer_depth'],
        'cross_attention_dim': params['context_dim'],
        'dropout': params['dropout'],
        'temporal_conv': params['temporal_conv'],
        'temporal_attention': params['temporal_attention'],
        'temporal_transformer_in': params['addition_attention'],
        'image_cross_attention': params['image_cross_attention'],
        'fps_condition': params['fs_condition'],
        'default_fps': params['default_fs'],
    }


def resampler_config_from_ldm(params: Mapping) -> dict:
    """Translate a public `image_proj_stage_config.params` into `Resampler`'s config."""
    return {
        'embedding_dim': params['embedding_dim'],
        'output_dim': params['output_dim'],
        'hidden_dim': params['dim'],
        'num_layers': params['depth'],
        'num_attention_heads': params['heads'],
        'attention_head_dim': params['dim_head'],
        'num_queries': params['num_queries'],
        'num_frames': params['video_length'],
        'ff_mult': params['ff_mult'],
    }


def unet_config() -> dict:
    return unet_config_from_ldm(json.loads(_weights_file()[1]['unet_config']))


def resampler_config() -> dict:
    return resampler_config_from_ldm(json.loads(_weights_file()[1]['resampler_config']))


def unet() -> DynamiCrafterUNet:
    model = DynamiCrafterUNet(**unet_config()).eval()
    model.load_state_dict(convert_ldm_unet(ldm_weights('unet'), unet_config()))
    return model


def resampler() -> Resampler:
    model = Resampler(**resampler_config()).eval()
    model.load_state_dict(convert_ldm_resampler(ldm_weights('resampler'), resampler_config()))
    return model


def unet_inputs() -> dict[str, torch.Tensor]:
    reference = tensors()
    return {
        'sample': reference['x'],
        'timestep': reference['timesteps'],
        'encoder_hidden_states': reference['text_tokens'],
        'image_hidden_states': reference['image_tokens'],
        'fps': reference['fps'],
    }
