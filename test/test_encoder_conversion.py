"""The frozen parts answer as the public implementation with the same weights (test/data/parity/README.md)."""

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

import reference
from mask2iv_ros.models.encoder_conversion import (
    build_image_encoder,
    build_text_encoder,
    convert_ldm_image_encoder,
    convert_ldm_text_encoder,
    convert_ldm_vae,
    infer_image_encoder_config,
    infer_text_encoder_config,
    infer_vae_config,
    ldm_image_encoder_keys,
    ldm_text_encoder_keys,
    ldm_vae_keys,
)
from mask2iv_ros.models.openclip import OpenCLIPImageProcessor, openclip_tokenizer

PARTS = {
    'vae': (infer_vae_config, AutoencoderKL.from_config, convert_ldm_vae, ldm_vae_keys),
    'text_encoder': (
        infer_text_encoder_config,
        build_text_encoder,
        convert_ldm_text_encoder,
        ldm_text_encoder_keys,
    ),
    'image_encoder': (
        infer_image_encoder_config,
        build_image_encoder,
        convert_ldm_image_encoder,
        ldm_image_encoder_keys,
    ),
}
PREFIXES = {
    'vae': ('first_stage_model', ''),
    'text_encoder': ('cond_stage_model', 'model.'),
    'image_encoder': ('embedder', 'model.visual.'),
}


def without_prefix(part: str, values: dict) -> dict:
    prefix = PREFIXES[part][1]
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


@pytest.fixture(scope='module')
def models() -> dict[str, torch.nn.Module]:
    """Each part with the weights of the reference."""
    models = {}
    for part, (infer_config, build, convert, _) in PARTS.items():
        weights = without_prefix(part, reference.encoder_weights(PREFIXES[part][0]))
        config = infer_config(weights)
        models[part] = build(config).eval()
        models[part].load_state_dict(convert(weights, config))
    return models


def assert_equal(actual: torch.Tensor, name: str):
    torch.testing.assert_close(actual, reference.encoder_tensors()[name], atol=1e-4, rtol=0)


@torch.no_grad()
def test_vae(models):
    pixels = torch.from_numpy(reference.frame()[:32, :64]).movedim(-1, 0)[None].float() / 127.5 - 1
    latents = models['vae'].encode(pixels).latent_dist
    assert_equal(latents.mean, 'vae_mean')
    assert_equal(latents.logvar, 'vae_logvar')
    assert_equal(models['vae'].decode(reference.encoder_tensors()['vae_mean']).sample, 'vae_decoded')
    assert models['vae'].config.scaling_factor == 0.18215


@torch.no_grad()
def test_text_tokens_are_those_of_the_penultimate_layer(models):
    token_ids = reference.encoder_tensors()['text_ids']
    assert_equal(models['text_encoder'](token_ids).last_hidden_state, 'text_tokens')


@torch.no_grad()
def test_image_tokens_are_all_of_the_last_layer(models):
    pixels = OpenCLIPImageProcessor()([reference.frame()]).pixel_values
    assert_equal(pixels[:, :, ::16, ::16], 'image_pixels')
    assert_equal(models['image_encoder'](pixels).last_hidden_state, 'image_tokens')


@pytest.mark.parametrize(('texts', 'ids'), [('texts', 'text_ids'), ('more_texts', 'more_ids')])
def test_token_ids_also_after_saving(tmp_path, texts, ids):
    openclip_tokenizer().save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(reference.encoder_texts(texts), truncation=True, max_length=tokenizer.model_max_length)
    padded = [row + [0] * (77 - len(row)) for row in tokens.input_ids]
    assert padded == reference.encoder_tensors()[ids].tolist()


@pytest.mark.parametrize('part', PARTS)
def test_full_size_weights_fit_and_what_is_left_is_known(part):
    infer_config, build, convert, key_map = PARTS[part]
    shapes = without_prefix(part, reference.full_size()[PREFIXES[part][0]])
    weights = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
    config = infer_config(weights)
    with torch.device('meta'):
        expected = build(config).state_dict()
    converted = convert(weights, config)
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in expected.items()
    }
    left = weights.keys() - set(key_map(config).values())
    assert {key.removeprefix('transformer.resblocks.23.').partition('.')[0] for key in left} == {
        'vae': set(),
        'text_encoder': {'attn', 'ln_1', 'ln_2', 'mlp', 'logit_scale', 'text_projection'},
        'image_encoder': {'proj'},
    }[part]


@pytest.mark.parametrize(('part', 'layers', 'heads'), [('text_encoder', 23, 16), ('image_encoder', 32, 16)])
def test_vit_h_is_known_and_a_lost_layer_is_named(part, layers, heads):
    infer_config = PARTS[part][0]
    shapes = without_prefix(part, reference.full_size()[PREFIXES[part][0]])
    weights = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
    config = infer_config(weights)
    assert (config['num_hidden_layers'], config['num_attention_heads']) == (layers, heads)
    cut = {key: value for key, value in weights.items() if not key.startswith('transformer.resblocks.2')}
    cut = {key: value for key, value in cut.items() if not key.startswith('transformer.resblocks.3')}
    with pytest.raises(ValueError, match='20 layers, expected'):
        infer_config(cut)
