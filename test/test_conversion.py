"""Weights in the public names become those of our UNet and Resampler, and back."""

import pytest
import torch

import reference
from mask2iv_ros.models.conversion import (
    convert_ldm_resampler,
    convert_ldm_unet,
    infer_resampler_config,
    infer_unet_config,
    ldm_resampler_keys,
    to_ldm_resampler,
    to_ldm_unet,
)
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet


def meta_weights(part: str) -> dict[str, torch.Tensor]:
    shapes = reference.full_size()[part]
    return {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}


def shapes_of(weights) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in weights.items()}


@pytest.mark.parametrize('in_channels', [8, 12])
def test_full_size_unet_has_the_public_keys_and_shapes(in_channels):
    config = reference.unet_config_from_ldm(
        reference.full_size()['unet_config'] | {'in_channels': in_channels}
    )
    with torch.device('meta'):
        unet = DynamiCrafterUNet(**config)
    expected = dict(reference.full_size()['model.diffusion_model'])
    expected['input_blocks.0.0.weight'] = [320, in_channels, 3, 3]
    assert shapes_of(to_ldm_unet(unet.state_dict(), config)) == expected
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    assert parameters == 1_438_866_500 - (12 - in_channels) * 320 * 9


def test_full_size_unet_is_the_default():
    config = reference.unet_config_from_ldm(reference.full_size()['unet_config'])
    with torch.device('meta'):
        default = DynamiCrafterUNet().config
    assert {key: config[key] for key in config} == {
        key: list(default[key]) if isinstance(default[key], tuple) else default[key] for key in config
    }


def test_full_size_resampler_has_the_public_keys_and_shapes():
    with torch.device('meta'):
        resampler = Resampler()
    assert (
        shapes_of(to_ldm_resampler(resampler.state_dict(), {})) == reference.full_size()['image_proj_model']
    )
    assert sum(parameter.numel() for parameter in resampler.parameters()) == 48_787_456


def test_conversion_is_bijective():
    unet, resampler = reference.ldm_weights('unet'), reference.ldm_weights('resampler')
    unet_config, resampler_config = reference.unet_config(), reference.resampler_config()
    unet_back = to_ldm_unet(convert_ldm_unet(unet, unet_config), unet_config)
    resampler_back = to_ldm_resampler(convert_ldm_resampler(resampler, resampler_config), resampler_config)
    for there, back in ((unet, unet_back), (resampler, resampler_back)):
        assert there.keys() == back.keys()
        assert all(torch.equal(value, back[key]) for key, value in there.items())


def test_config_is_inferred_from_shapes():
    expected = reference.unet_config()
    not_in_shapes = {'dropout', 'default_fps'}
    assert infer_unet_config(reference.ldm_weights('unet')) == {
        key: value for key, value in expected.items() if key not in not_in_shapes
    }
    full = reference.unet_config_from_ldm(reference.full_size()['unet_config'])
    inferred = infer_unet_config(meta_weights('model.diffusion_model'))
    assert inferred == {key: value for key, value in full.items() if key not in not_in_shapes}
    with torch.device('meta'):
        default = Resampler().config
    assert infer_resampler_config(meta_weights('image_proj_model')).items() <= default.items()


@pytest.mark.parametrize(
    'config',
    [
        {'temporal_conv': False},
        {'temporal_attention': False},
        {'temporal_transformer_in': False, 'attention_head_dim': 64, 'block_out_channels': [64, 128]},
        {'image_cross_attention': False, 'fps_condition': False},
        {'attention_resolutions': [2], 'layers_per_block': 2, 'transformer_layers_per_block': 2},
        {'block_out_channels': [32]},
    ],
)
def test_every_architecture_converts_there_and_back(config):
    config = reference.unet_config() | config
    with torch.device('meta'):
        weights = DynamiCrafterUNet(**config).state_dict()
    ldm = to_ldm_unet(weights, config)
    assert len(ldm) == len(weights)
    inferred = infer_unet_config(ldm)
    if config['block_out_channels'] == [32]:
        inferred['attention_resolutions'] = config['attention_resolutions']  # [1] is the same
    assert inferred.items() <= config.items()
    assert shapes_of(convert_ldm_unet(ldm, inferred)) == shapes_of(weights)


def test_resampler_keys_have_the_public_names():
    keys = ldm_resampler_keys({'num_layers': 1})
    assert keys['queries'] == 'latents'
    assert keys['layers.0.attn.to_kv.weight'] == 'layers.0.0.to_kv.weight'
    assert keys['layers.0.ff.3.weight'] == 'layers.0.1.3.weight'
