"""`mask2iv convert`: official checkpoints become models that load and plan, or are refused with a reason."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import reference
from mask2iv_ros import labels as lb
from mask2iv_ros.cli import main
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines import (
    InteractionVideoPipeline,
    Mask2IVPipeline,
    MaskTrajectoryPipeline,
    ModelError,
    load_pipeline,
)
from mask2iv_ros.pipelines.components import encode_text
from mask2iv_ros.pipelines.conversion import convert_checkpoint
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.request import GenerationRequest
from tiny_checkpoint import tiny_checkpoint

FROZEN = ('first_stage_model.', 'cond_stage_model.', 'embedder.')


def save(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, path)
    return path


def request(**options) -> GenerationRequest:
    object_mask = np.zeros((48, 64), bool)
    object_mask[10:30, 10:40] = True
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return GenerationRequest(frame=frame, object_mask=object_mask, num_inference_steps=1, **options)


@pytest.fixture(scope='module')
def converted(tmp_path_factory) -> tuple[Path, dict]:
    """Two Mask2IV checkpoints of different weights as one model, and its report."""
    folder = tmp_path_factory.mktemp('converted')
    stage1 = save(folder / 'first.safetensors', tiny_checkpoint(seed=0))
    stage2 = save(folder / 'second.safetensors', tiny_checkpoint(seed=1))
    out = folder / 'mask2iv-tiny'
    return out, convert_checkpoint(stage1, out, video=stage2, sample_size=(32, 48))


@pytest.fixture(scope='module')
def pipeline(converted) -> Mask2IVPipeline:
    pipeline = load_pipeline(converted[0], 'cpu', torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_two_checkpoints_become_one_model_that_plans(pipeline):
    (plan,) = generate_plans(pipeline, request(task='open the drawer!', goal_pixel=(40.0, 20.0)))
    assert plan.model_name == 'mask2iv-tiny'
    assert plan.labels.shape == (16, 48, 64)
    assert plan.frames.shape == (16, 48, 64, 3)


def test_each_stage_has_its_own_weights_and_the_frozen_parts_lie_there_once(converted, pipeline):
    first, second = (tiny_checkpoint(seed=seed) for seed in (0, 1))
    key = 'model.diffusion_model.input_blocks.0.0.weight'
    assert torch.equal(pipeline.trajectory_unet.conv_in.weight, first[key])
    assert torch.equal(pipeline.video_unet.conv_in.weight, second[key])
    assert torch.equal(pipeline.trajectory_image_projector.queries, first['image_proj_model.latents'])
    assert torch.equal(pipeline.video_image_projector.queries, second['image_proj_model.latents'])
    out, _ = converted
    assert {path.parent.name for path in out.rglob('*.safetensors')} == {
        'trajectory_unet', 'video_unet', 'trajectory_image_projector', 'video_image_projector',
        'vae', 'text_encoder', 'image_encoder',
    }  # fmt: skip
    assert not [path for path in out.rglob('*') if path.suffix in ('.bin', '.ckpt', '.pt', '.pkl')]


def test_the_model_is_sampled_as_in_the_paper(tmp_path):
    half = {key: value.half() for key, value in tiny_checkpoint().items()}
    path = save(tmp_path / 'model.safetensors', half)
    convert_checkpoint(path, tmp_path / 'out', video=path)
    index = json.loads((tmp_path / 'out' / 'model_index.json').read_text())
    expected = {
        'sample_size': [320, 512],
        'num_frames': 16,
        'num_inference_steps': 50,
        'eta': 1.0,
        'fps': 15.0,
        'trajectory_residual_scale': None,
        'video_residual_scale': None,
    }
    assert index.items() >= expected.items()
    scheduler = json.loads((tmp_path / 'out' / 'scheduler' / 'scheduler_config.json').read_text())
    assert scheduler['_class_name'] == 'RescaledDDIMScheduler'
    assert scheduler['rescale_base'] == 0.7
    vae = json.loads((tmp_path / 'out' / 'vae' / 'config.json').read_text())
    assert vae['scaling_factor'] == 0.18215


def test_text_and_image_tokens_of_the_loaded_model_are_the_public_ones(pipeline):
    expected = reference.encoder_tensors()
    with torch.no_grad():
        text = encode_text(pipeline, reference.encoder_texts('texts'))
        pixels = pipeline.feature_extractor(images=[reference.frame()], return_tensors='pt').pixel_values
        image = pipeline.image_encoder(pixels).last_hidden_state
    torch.testing.assert_close(text, expected['text_tokens'], atol=1e-4, rtol=0)
    torch.testing.assert_close(image, expected['image_tokens'], atol=1e-4, rtol=0)


@pytest.mark.parametrize(('stage', 'order'), [('trajectory', 'mask image'), ('video', 'image mask')])
def test_channel_order_is_that_of_the_stage(pipeline, stage, order):
    seen = []
    unet = getattr(pipeline, f'{stage}_unet')
    hook = unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = np.full((1, 32, 48, 3), 200, np.uint8)
    labels = np.full((1, 32, 48), lb.OBJECT, np.uint8)
    stages = {'trajectory': pipeline.trajectory, 'video': pipeline.video}
    stages[stage](
        image, labels if stage == 'trajectory' else labels[:, None].repeat(16, 1), num_inference_steps=1
    )
    hook.remove()
    pixels = {'image': image, 'mask': lb.labels_to_rgb(labels)}
    for name, channels in zip(order.split(), seen[0].split(4, dim=1)[1:], strict=True):
        picture = torch.from_numpy(pixels[name]).movedim(-1, 1).float() / 127.5 - 1
        with torch.no_grad():
            latent = pipeline.vae.encode(picture).latent_dist.mode() * 0.18215
        torch.testing.assert_close(channels[:, :, 5], latent, atol=1e-3, rtol=0)  # of another batch size


def test_every_key_is_accounted_for(converted):
    out, report = converted
    assert report == json.loads((out / 'report.json').read_text())
    for account in report['checkpoints']:
        named = [*account['used'], *account['not_needed'], *account['unused']]
        assert sorted(named) == sorted(tiny_checkpoint())
        assert account['unused'] == account['missing'] == []
    used, video = (account['used'] for account in report['checkpoints'])
    assert used['image_proj_model.latents'] == 'trajectory_image_projector/queries'
    assert video['image_proj_model.latents'] == 'video_image_projector/queries'
    layer = 'text_model.encoder.layers.0.self_attn'
    fused = 'cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias'
    assert used[fused] == ', '.join(f'text_encoder/{layer}.{name}_proj.bias' for name in 'kvq')
    not_needed = report['checkpoints'][0]['not_needed']
    assert 'penultimate' in not_needed['cond_stage_model.model.transformer.resblocks.2.ln_1.weight']
    assert not [key for key in not_needed if key.startswith(('model.', 'image_proj_model.', 'first_stage'))]


def test_extra_modules_are_reported(tmp_path, caplog):
    extra = 'model.diffusion_model.input_blocks.1.1.mask_attn.to_q.weight'
    path = save(tmp_path / 'model.safetensors', tiny_checkpoint() | {extra: torch.zeros(2)})
    report = convert_checkpoint(path, tmp_path / 'out')
    assert report['checkpoints'][0]['unused'] == [extra]
    assert f'1 keys are not used, first {extra}' in caplog.text


def save_lightning(path: Path):
    torch.save({'state_dict': tiny_checkpoint(), 'epoch': 3}, path)


def save_deepspeed(path: Path):
    weights = {f'_forward_module.{key}': value for key, value in tiny_checkpoint().items()}
    torch.save({'module': weights}, path)


def save_old_format(path: Path):
    torch.save(tiny_checkpoint(), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ('stage', 'write', 'pipeline_class'),
    [
        (None, save_lightning, MaskTrajectoryPipeline),
        ('trajectory', save_old_format, MaskTrajectoryPipeline),
        ('video', save_deepspeed, InteractionVideoPipeline),
    ],
)
def test_one_mask2iv_checkpoint_becomes_its_stage(tmp_path, stage, write, pipeline_class):
    write(tmp_path / 'model.ckpt')
    report = convert_checkpoint(tmp_path / 'model.ckpt', tmp_path / 'out', stage=stage)
    assert report['pipeline'] == pipeline_class.__name__
    assert report['channel_order'] == {
        pipeline_class.stage: ['noise', 'image', 'mask'] if stage == 'video' else ['noise', 'mask', 'image']
    }
    assert [note for note in report['notes'] if '--stage video' in note] == report['notes']
    assert bool(report['notes']) == (stage is None)
    loaded = pipeline_class.from_pretrained(tmp_path / 'out')
    with pytest.raises(ModelError, match=f'got a {pipeline_class.__name__}; .* with --video'):
        load_pipeline(tmp_path / 'out', 'cpu')
    weight = tiny_checkpoint()['model.diffusion_model.out.2.weight']
    assert torch.equal(loaded.unet.conv_out.weight, weight)


def test_a_dynamicrafter_checkpoint_becomes_where_training_of_both_stages_starts(tmp_path):
    path = save(tmp_path / 'dc.safetensors', tiny_checkpoint(in_channels=8))
    report = convert_checkpoint(path, tmp_path / 'out')
    assert 'until it is fine-tuned' in report['notes'][0]
    for name in ('trajectory_unet', 'video_unet'):
        unet = DynamiCrafterUNet.from_pretrained(tmp_path / 'out' / name)
        assert unet.config.in_channels == 12
        old = tiny_checkpoint(in_channels=8)['model.diffusion_model.input_blocks.0.0.weight']
        assert torch.equal(unet.conv_in.weight[:, :8], old)
        assert not unet.conv_in.weight[:, 8:].any()
    assert load_pipeline(tmp_path / 'out', 'cpu').config.name == 'out'


def test_rescale_comes_from_the_checkpoint(tmp_path):
    weights = tiny_checkpoint()
    weights['scale_arr'] = torch.cat([torch.linspace(1, 0.3, 400), torch.full((1000,), 0.3)])
    convert_checkpoint(save(tmp_path / 'a.safetensors', weights), tmp_path / 'a')
    pipeline = MaskTrajectoryPipeline.from_pretrained(tmp_path / 'a')
    assert pipeline.scheduler.config.rescale_base == pytest.approx(0.3)
    other = save(tmp_path / 'b.safetensors', tiny_checkpoint())
    with pytest.raises(ValueError, match='dynamic rescale differs'):
        convert_checkpoint(tmp_path / 'a.safetensors', tmp_path / 'b', video=other)


def test_frozen_parts_may_be_in_one_file_only_but_not_differ(tmp_path):
    weights = tiny_checkpoint()
    whole = save(tmp_path / 'whole.safetensors', weights)
    stripped = {key: value for key, value in weights.items() if not key.startswith(FROZEN)}
    convert_checkpoint(whole, tmp_path / 'out', video=save(tmp_path / 'unet.safetensors', stripped))
    key = 'first_stage_model.decoder.conv_in.bias'
    other = save(tmp_path / 'other.safetensors', weights | {key: weights[key] + 1})
    with pytest.raises(ValueError, match=rf'other\.safetensors: {key} differs from that of .*whole'):
        convert_checkpoint(whole, tmp_path / 'refused', video=other)
    assert not (tmp_path / 'refused').exists()


def refusal(tmp_path: Path, weights: dict[str, torch.Tensor]) -> str:
    """The error for a checkpoint of these weights, after which there is at most a report."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers look at the message
        convert_checkpoint(save(tmp_path / 'model.safetensors', weights), tmp_path / 'out')
    assert {path.name for path in tmp_path.glob('out/*')} <= {'report.json'}
    assert 'model.safetensors' in str(error.value)
    return str(error.value)


def test_missing_weight_is_named(tmp_path):
    weights = tiny_checkpoint()
    del weights['model.diffusion_model.out.0.bias'], weights['cond_stage_model.model.ln_final.bias']
    message = refusal(tmp_path, weights)
    assert '2 weights are missing, first model.diffusion_model.out.0.bias' in message
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['checkpoints'][0]['missing'] == [
        'model.diffusion_model.out.0.bias',
        'cond_stage_model.model.ln_final.bias',
    ]


@pytest.mark.parametrize('half', [slice(None, None, 2), slice(1, None, 2)])
def test_half_of_the_keys_is_refused(tmp_path, half):
    weights = tiny_checkpoint()
    message = refusal(tmp_path, {key: weights[key] for key in list(weights)[half]})
    assert 'weights are missing' in message


def test_the_first_half_of_a_checkpoint_is_refused(tmp_path):
    weights = tiny_checkpoint()
    message = refusal(tmp_path, dict(list(weights.items())[: len(weights) // 2]))
    assert 'weights are missing' in message


def test_another_model_is_refused_with_what_was_found(tmp_path):
    message = refusal(tmp_path, {'head.weight': torch.zeros(3), 'head.bias': torch.zeros(3)})
    assert 'first model.diffusion_model.*' in message
    assert 'found 2 keys: 2 head.*' in message


def test_other_channel_counts_are_refused(tmp_path):
    message = refusal(tmp_path, tiny_checkpoint(in_channels=4))
    assert 'the UNet has 4 input channels, expected 8 (DynamiCrafter) or 12 (Mask2IV)' in message
    assert 'model.diffusion_model.*' in message


def test_another_noise_schedule_is_refused(tmp_path):
    alphas = torch.linspace(1, 0.0047, 1000)
    message = refusal(tmp_path, tiny_checkpoint() | {'alphas_cumprod': alphas})
    assert "alphas_cumprod is not Mask2IV's noise schedule" in message
    assert 'ends at 0.0047' in message


def test_parts_of_different_widths_are_refused(tmp_path):
    weights = tiny_checkpoint()
    weights |= {
        'image_proj_model.proj_out.weight': torch.zeros(96, 64),
        'image_proj_model.proj_out.bias': torch.zeros(96),
        'image_proj_model.norm_out.weight': torch.zeros(96),
        'image_proj_model.norm_out.bias': torch.zeros(96),
    }
    assert 'image_projector has output_dim 96, but its other parts need 128' in refusal(tmp_path, weights)


def test_a_weight_of_another_shape_is_named(tmp_path):
    weights = tiny_checkpoint() | {'first_stage_model.decoder.norm_out.bias': torch.zeros(5)}
    message = refusal(tmp_path, weights)
    assert 'the weights do not fit the config' in message
    assert 'decoder.conv_norm_out.bias' in message


@pytest.mark.parametrize('name', ['broken.ckpt', 'broken.safetensors'])
@pytest.mark.parametrize('size', [0, 20, 5000])
def test_truncated_file_is_named(tmp_path, name, size):
    whole = tmp_path / f'whole.{name}'
    if name.endswith('.ckpt'):
        torch.save({'state_dict': {'x': torch.zeros(5000)}}, whole)
    else:
        save_file({'x': torch.zeros(5000)}, whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:size])
    with pytest.raises(ValueError, match=name):
        convert_checkpoint(tmp_path / name, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nothing\.ckpt'):
        convert_checkpoint(tmp_path / 'nothing.ckpt', tmp_path / 'out')


class Dangerous:
    def __reduce__(self):
        return print, ('this code must not run',)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol 4')
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_code_in_a_pickle_does_not_run(tmp_path, capsys, protocol):
    path = tmp_path / 'model.ckpt'
    path.write_bytes(pickle.dumps({'state_dict': Dangerous()}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r'model\.ckpt: expected a checkpoint of tensors only; nothing was run'
    ):
        convert_checkpoint(path, tmp_path / 'out')
    assert 'must not run' not in capsys.readouterr().out


def test_code_in_a_torch_file_does_not_run_and_is_named(tmp_path, capsys):
    path = tmp_path / 'model.ckpt'
    torch.save({'state_dict': tiny_checkpoint(), 'callbacks': Dangerous()}, path)
    with pytest.raises(ValueError, match=r'nothing was run \(it calls print\)') as error:
        convert_checkpoint(path, tmp_path / 'out')
    assert 'weights_only' not in str(error.value)
    assert 'must not run' not in capsys.readouterr().out


def test_a_used_folder_is_left_alone(tmp_path):
    path = save(tmp_path / 'model.safetensors', tiny_checkpoint())
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').touch()
    with pytest.raises(ValueError, match='expected a new or empty folder'):
        convert_checkpoint(path, tmp_path / 'out')
    assert [child.name for child in (tmp_path / 'out').iterdir()] == ['mine.txt']


def test_command_says_what_became_of_the_keys(tmp_path, capsys):
    path = save(tmp_path / 'dc.safetensors', tiny_checkpoint(in_channels=8))
    out = tmp_path / 'out'
    assert main(['convert', str(path), str(out), '--size', '32', '48']) == 0
    printed = capsys.readouterr().out
    assert 'dc.safetensors: a DynamiCrafter checkpoint of 8 input channels' in printed
    assert ' used, ' in printed
    assert 'Mask2IVPipeline' in printed
    assert json.loads((out / 'model_index.json').read_text())['sample_size'] == [32, 48]
    assert main(['convert', str(path), str(out)]) == 1
    assert 'expected a new or empty folder' in capsys.readouterr().err


def test_a_size_that_the_networks_cannot_halve_is_refused(tmp_path):
    path = save(tmp_path / 'model.safetensors', tiny_checkpoint())
    with pytest.raises(ValueError, match=r'sample_size: expected multiples of \d+, .* got \(30, 48\)'):
        convert_checkpoint(path, tmp_path / 'out', sample_size=(30, 48))
    assert not (tmp_path / 'out').exists()
