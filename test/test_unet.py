"""What mask2iv_ros/models/unet.py promises."""

import pytest
import torch

import reference
from mask2iv_ros.models.unet import DynamiCrafterAttention, DynamiCrafterUNet, TemporalConvBlock

#: A model of the shape of `mask2iv-sim`'s, smaller.
SMALL = {
    'in_channels': 24,
    'out_channels': 8,
    'block_out_channels': (16, 32, 32),
    'layers_per_block': 1,
    'attention_resolutions': (2, 4),
    'attention_head_dim': 8,
    'cross_attention_dim': 384,
    'temporal_transformer_in': False,
    'image_cross_attention': False,
    'norm_num_groups': 8,
}


def small_unet(**config) -> DynamiCrafterUNet:
    """Return a model without the zeros that new layers start with, so that every path counts."""
    torch.manual_seed(0)
    unet = DynamiCrafterUNet(**(SMALL | config)).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return unet


def small_inputs(batch_size=1, num_frames=4) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        'sample': torch.randn(batch_size, 24, num_frames, 8, 12, generator=generator),
        'timestep': torch.arange(100, 100 + batch_size),
        'encoder_hidden_states': torch.randn(batch_size, 3, 384, generator=generator),
    }


@torch.no_grad()
def test_forward_equals_the_public_implementation():
    output = reference.unet()(**reference.unet_inputs()).sample
    torch.testing.assert_close(output, reference.tensors()['unet_output'], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_clip_does_not_depend_on_the_rest_of_the_batch():
    unet = reference.unet()
    alone = unet(**{name: value[1:] for name, value in reference.unet_inputs().items()}).sample
    torch.testing.assert_close(alone, reference.tensors()['unet_output'][1:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_numbers_stand_for_one_timestep_and_frame_rate_of_the_whole_batch():
    unet = small_unet()
    inputs = small_inputs(batch_size=2) | {'timestep': torch.tensor([40, 40])}
    (expected,) = unet(**inputs, fps=torch.tensor([10, 10]), return_dict=False)
    torch.testing.assert_close(unet(**(inputs | {'timestep': 40})).sample, expected)
    assert not torch.allclose(unet(**inputs, fps=3).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize('num_frames', [1, 8, 16])
def test_number_of_frames_is_free(num_frames):
    output = small_unet()(**small_inputs(num_frames=num_frames)).sample
    assert output.shape == (1, 8, num_frames, 8, 12)
    assert output.isfinite().all()


@torch.no_grad()
def test_image_tokens_reach_their_own_frame():
    unet = small_unet(image_cross_attention=True, temporal_conv=False, temporal_attention=False)
    inputs = small_inputs()
    tokens = torch.randn(1, 4 * 2, 384)
    before = unet(**inputs, image_hidden_states=tokens).sample
    tokens[:, 4:6] += 1
    changed = (unet(**inputs, image_hidden_states=tokens).sample - before).abs().amax(dim=(0, 1, 3, 4))
    assert changed[2] > 1e-3
    assert (changed[[0, 1, 3]] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ('config', 'connected'),
    [
        ({'temporal_conv': False, 'temporal_attention': False}, False),
        ({'temporal_conv': True, 'temporal_attention': False}, True),
        ({'temporal_conv': False, 'temporal_attention': True}, True),
        ({'temporal_conv': False, 'temporal_attention': False, 'temporal_transformer_in': True}, True),
    ],
)
def test_frames_are_connected_by_each_temporal_layer_alone(config, connected):
    unet = small_unet(**config)
    inputs = small_inputs()
    before = unet(**inputs).sample
    inputs['sample'][:, :, 3] += 1
    assert torch.equal(unet(**inputs).sample[:, :, 2], before[:, :, 2]) != connected


@torch.no_grad()
def test_order_of_frames_is_known_through_positions_or_temporal_convolutions_only():
    def reversal_error(**config):
        unet = small_unet(**config)
        inputs = small_inputs()
        forward = unet(**inputs).sample
        backward = unet(**(inputs | {'sample': inputs['sample'].flip(2)})).sample.flip(2)
        return (forward - backward).abs().max()

    assert reversal_error(temporal_conv=False) < 1e-4
    assert reversal_error(temporal_conv=False, temporal_positional_embedding=True) > 1e-2
    assert reversal_error(temporal_conv=True) > 1e-2


def test_switches_remove_weights():
    def names(**config):
        with torch.device('meta'):
            return ' '.join(DynamiCrafterUNet(**config).state_dict())

    parts = {
        'temporal_conv': '.temporal_conv.',
        'temporal_attention': '.temp_attentions.',
        'temporal_transformer_in': 'transformer_in.',
        'image_cross_attention': '.to_k_ip.',
        'fps_condition': 'fps_embedding.',
    }
    for switch, part in parts.items():
        assert part in names()
        assert part not in names(**{switch: False})


def test_new_model_predicts_zero():
    output = DynamiCrafterUNet(**SMALL)(**small_inputs()).sample
    assert not output.any()


def test_saved_model_loads_with_the_same_output(tmp_path):
    unet = small_unet()
    unet.save_pretrained(tmp_path)
    assert (tmp_path / 'diffusion_pytorch_model.safetensors').is_file()
    loaded = DynamiCrafterUNet.from_pretrained(tmp_path)
    assert loaded.config.block_out_channels == [16, 32, 32]
    with torch.no_grad():
        assert torch.equal(loaded(**small_inputs()).sample, unet(**small_inputs()).sample)


@torch.no_grad()
def test_bfloat16_is_close_to_float32():
    inputs = small_inputs()
    expected = small_unet()(**inputs).sample
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    output = small_unet().to(torch.bfloat16)(**half).sample
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_gradient_checkpointing_changes_memory_not_gradients():
    def gradients(checkpointing):
        unet = small_unet(dropout=0.0).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        recomputed = []
        unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_: recomputed.append(1))
        unet(**small_inputs()).sample.square().mean().backward()
        assert len(recomputed) == 1 + checkpointing
        return {name: parameter.grad for name, parameter in unet.named_parameters()}

    expected = gradients(False)
    for name, gradient in gradients(True).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f'{name}: {text}')


@pytest.fixture
def restored_attention_backend():
    """Undo `set_attention_backend`, which also sets diffusers' default backend of the whole process."""
    yield
    small_unet().set_attention_backend('native')


@torch.no_grad()
@pytest.mark.usefixtures('restored_attention_backend')
def test_attention_backend_is_obeyed():
    unet = small_unet()
    expected = unet(**small_inputs()).sample
    unet.set_attention_backend('_native_math')
    torch.testing.assert_close(unet(**small_inputs()).sample, expected, atol=1e-4, rtol=1e-4)
    attentions = [module for module in unet.modules() if isinstance(module, DynamiCrafterAttention)]
    assert attentions
    assert all(module.processor._attention_backend == '_native_math' for module in attentions)
    # Needs a GPU: the model must try it, not fall back to another backend in silence.
    unet.set_attention_backend('_native_cudnn')
    with pytest.raises(RuntimeError):
        unet(**small_inputs())


@torch.no_grad()
def test_repeated_blocks_compile_within_the_recompile_limit():
    """As many different widths as the full size has, at two batch sizes, with no graph break."""
    unet = small_unet(
        block_out_channels=(8, 16, 24), attention_resolutions=(1, 2, 4), temporal_transformer_in=True
    )
    inputs = [small_inputs(batch_size) for batch_size in (1, 2)]
    expected = [unet(**batch).sample for batch in inputs]
    unet.compile_repeated_blocks(fullgraph=True, backend='eager')
    for batch, sample in zip(inputs, expected, strict=True):
        torch.testing.assert_close(unet(**batch).sample, sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_temporal_convolution_equals_a_three_dimensional_one():
    block = TemporalConvBlock(8, norm_num_groups=4, dropout=0.0)
    torch.nn.init.normal_(block.convs[3].weight)
    clip = torch.randn(2, 8, 5, 3, 4)
    expected = clip
    for norm, conv in zip(block.norms, block.convs, strict=True):
        normed = torch.nn.functional.group_norm(expected, norm.num_groups, norm.weight, norm.bias)
        expected = torch.nn.functional.conv3d(
            torch.nn.functional.silu(normed), conv.weight[..., None], conv.bias, padding=(1, 0, 0)
        )
    output = block(clip.transpose(1, 2).flatten(0, 1), num_frames=5)
    torch.testing.assert_close(output.unflatten(0, (2, 5)).transpose(1, 2), clip + expected)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'sample': torch.zeros(1, 12, 4, 8, 12)}, r'sample: expected \(B, 24, T, H, W\)'),
        ({'sample': torch.zeros(1, 24, 4, 8, 10)}, r'multiples of 4, got \(1, 24, 4, 8, 10\)'),
        ({'image_hidden_states': torch.zeros(1, 7, 384)}, 'image_cross_attention=False'),
    ],
)
def test_wrong_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small_unet()(**(small_inputs() | changes))


def test_image_tokens_that_do_not_split_into_frames_are_refused():
    with pytest.raises(ValueError, match='7 tokens cannot be split into 4 frames'):
        small_unet(image_cross_attention=True)(**small_inputs(), image_hidden_states=torch.zeros(1, 7, 384))
