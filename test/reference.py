"""The public implementation's numbers (test/data/parity/README.md), and our models with its weights."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from mask2iv_ros.models.conversion import (
    convert_ldm_resampler,
    convert_ldm_unet,
    resampler_config_from_ldm,
    unet_config_from_ldm,
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
    return json.loads((FOLDER / 'full_size_keys.json').read_text())


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
