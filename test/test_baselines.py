"""Baselines in the same code: each trains, saves, loads, and sees what it may see and nothing else."""

import json
import shutil

import numpy as np
import pytest
import recipes
import torch
import yaml
from test_evaluate import SIZE, moving_clip
from test_training_stages import PROJECTOR, UNET
from test_unet import small_inputs, small_unet

from mask2iv_ros import labels as lb
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.evaluation.evaluate import Evaluation, Settings, open_splits
from mask2iv_ros.evaluation.extractors import Extractors
from mask2iv_ros.models.controlnet import DynamiCrafterControlNet, predict
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.loading import load_pipeline
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.request import GenerationRequest
from mask2iv_ros.training.recipe import Recipe
from mask2iv_ros.training.trainer import Schedule
from tiny_model import build_tiny_model

VARIANTS = {
    'masklatent_actor': {'masks': 'actor'},
    'controlnet_actor': {'masks': 'actor', 'controlnet': True},
    'one_stage': {'masks': 'none'},
}


class TestControlNet:
    @torch.no_grad()
    def test_a_new_one_changes_nothing(self):
        unet, inputs = small_unet(), tuple(small_inputs().values())
        controlnet = DynamiCrafterControlNet.from_unet(unet).eval()
        without_masks = inputs[0].clone()
        without_masks[:, 16:] = 0
        expected = unet(without_masks, *inputs[1:]).sample
        torch.testing.assert_close(predict(unet, controlnet, *inputs), expected, atol=0, rtol=0)

    @torch.no_grad()
    def test_its_features_reach_every_skip_connection_and_the_middle(self):
        unet, inputs = small_unet(), tuple(small_inputs().values())
        controlnet = DynamiCrafterControlNet.from_unet(unet).eval()
        before = predict(unet, controlnet, *inputs)
        for conv in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            torch.nn.init.ones_(conv.bias)
            after = predict(unet, controlnet, *inputs)
            assert (after - before).abs().max() > 1e-4
            before = after

    @torch.no_grad()
    def test_it_starts_from_the_unets_encoder_and_has_no_decoder(self):
        unet, inputs = small_unet(), small_inputs()
        controlnet = DynamiCrafterControlNet.from_unet(unet).eval()
        for mine, its in zip(controlnet.encode(**inputs)[0], unet.encode(**inputs)[0], strict=True):
            torch.testing.assert_close(mine, its)
        assert 0.2 < controlnet.num_parameters() / unet.num_parameters() < 0.6

    @torch.no_grad()
    def test_it_survives_saving(self, tmp_path):
        controlnet = DynamiCrafterControlNet.from_unet(small_unet()).eval()
        torch.nn.init.normal_(controlnet.controlnet_mid_block.weight)
        controlnet.save_pretrained(tmp_path)
        loaded = DynamiCrafterControlNet.from_pretrained(tmp_path)
        expected = controlnet(**small_inputs())[1]
        torch.testing.assert_close(loaded(**small_inputs())[1], expected)

    def test_gradients_reach_it(self):
        unet, inputs = small_unet(), tuple(small_inputs().values())
        controlnet = DynamiCrafterControlNet.from_unet(unet).eval()
        predict(unet, controlnet, *inputs).square().mean().backward()
        assert all(conv.weight.grad.any() for conv in controlnet.controlnet_down_blocks)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    for split, seeds in (('train', range(3)), ('test', range(10, 11))):
        with LeRobotClipWriter(folder / split) as writer:
            for seed in seeds:
                writer.add(moving_clip(seed))
    return folder


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """Folders of models, each trained for two steps."""
    folder = tmp_path_factory.mktemp('baselines')
    init, models = build_tiny_model(folder / 'init'), {}
    for name, options in VARIANTS.items():
        config = {
            'name': name,
            'unet': {**UNET, 'temporal_transformer_in': False},
            'image_projector': PROJECTOR,
            'video': {
                'options': {'batch_size': 2, 'residual': False, **options},
                'schedule': {'steps': 2, 'learning_rate': 0.02, 'warmup_steps': 0, 'ema_decay': None},
            },
            'validation': {'clips': 1, 'num_inference_steps': 1},
        }
        path = folder / f'{name}.yaml'
        path.write_text(yaml.safe_dump(config))
        recipe = Recipe(path, data, folder / name, init)
        assert recipe.train('video')
        models[name] = recipe.assemble()
    return models


def latents(pipeline, labels: np.ndarray | None, task: str = '') -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    image = moving_clip(0).frames[:1]
    labels = None if labels is None else labels[None]
    return pipeline.video(image, labels, task, generator=generator, output_type='latent').frames


class TestVariants:
    @pytest.mark.parametrize('name', ['masklatent_actor', 'controlnet_actor'])
    def test_a_model_of_the_actors_mask_does_not_see_the_object(self, trained, name):
        pipeline = load_pipeline(trained[name], 'cpu')
        assert (pipeline.video_controlnet is not None) == (name == 'controlnet_actor')
        labels = moving_clip(0).labels
        without_object = np.where(labels == lb.OBJECT, 0, labels).astype(np.uint8)
        expected = latents(pipeline, labels)
        torch.testing.assert_close(latents(pipeline, without_object), expected, atol=0, rtol=0)
        without_actor = np.where(labels == lb.ACTOR, 0, labels).astype(np.uint8)
        assert (latents(pipeline, without_actor) - expected).abs().max() > 1e-5
        torch.testing.assert_close(latents(pipeline, labels, 'another text'), expected, atol=0, rtol=0)

    def test_a_model_of_one_stage_sees_the_text_and_no_masks(self, trained):
        pipeline = load_pipeline(trained['one_stage'], 'cpu')
        expected = latents(pipeline, None, 'open the drawer')
        labels = moving_clip(0).labels
        torch.testing.assert_close(latents(pipeline, labels, 'open the drawer'), expected, atol=0, rtol=0)
        assert (latents(pipeline, None, 'close the tap') - expected).abs().max() > 1e-5

    def test_a_model_of_one_stage_makes_videos_alone(self, trained):
        pipeline = load_pipeline(trained['one_stage'], 'cpu')
        assert not (trained['one_stage'] / 'trajectory_unet').exists()
        clip = moving_clip(0)
        request = GenerationRequest(clip.frames[0], clip.labels[0] == lb.OBJECT, task='open it')
        output = pipeline(clip.frames[:1], clip.labels[:1], 'open the drawer')
        assert output.labels is None
        assert output.frames.shape == (1, 8, *SIZE, 3)
        with pytest.raises(ValueError, match='one_stage makes videos in one stage'):
            generate_plans(pipeline, request)

    @pytest.mark.parametrize('name', ['controlnet_actor', 'one_stage'])
    def test_what_it_sees_is_kept_when_it_is_trained_further(self, trained, name, data, tmp_path):
        schedule = {'steps': 1, 'learning_rate': 0.01}
        config = {'name': 'more', 'video': {'options': {'batch_size': 1}, 'schedule': schedule}}
        config['validation'] = {'clips': 1, 'num_inference_steps': 1}
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
        recipe = Recipe(tmp_path / 'config.yaml', data, tmp_path / 'run', trained[name])
        assert recipe.train('video')
        pipeline = load_pipeline(recipe.assemble(), 'cpu', torch.float32)
        assert pipeline.config.video_masks == VARIANTS[name]['masks']
        assert (pipeline.video_controlnet is None) == ('controlnet' not in VARIANTS[name])
        config['video']['options']['masks'] = 'both'
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
        recipe = Recipe(tmp_path / 'config.yaml', data, tmp_path / 'other', trained[name])
        with pytest.raises(ValueError, match='masks: both, but the model to start from has'):
            recipe.train('video')

    def test_names_of_masks_are_checked(self, trained):
        parts = load_pipeline(trained['one_stage'], 'cpu').video.components
        with pytest.raises(ValueError, match=r"masks: expected one of .* got 'hand'"):
            InteractionVideoPipeline(**parts, masks='hand')


def test_an_evaluation_has_their_rows(trained, data, tmp_path):
    models = {name: load_pipeline(folder, 'cpu') for name, folder in trained.items()}
    extractors = Extractors(None, '/no/such/model', torch.device('cpu'))
    settings = Settings(SIZE, text_clips=1, controls=('text',))
    report = Evaluation(models, tmp_path, settings, extractors).run(open_splits(data)['test'], 'test')
    rows = report['summary']['all clips']
    assert {row for row in rows if 'object_iou' in rows[row]} == {
        'static',
        'masklatent_actor text',
        'controlnet_actor text',
    }
    assert {row for row in rows if 'psnr' in rows[row]} == {
        'first frame repeated',
        'one_stage text',
        *(
            f'{name} {masks} masks'
            for name in ('masklatent_actor', 'controlnet_actor')
            for masks in ('text', 'oracle')
        ),
    }
    assert 'one_stage' not in report['texts']
    with pytest.raises(ValueError, match=r"controls: expected some of .* got \['pose'\]"):
        Settings(SIZE, controls=('pose',))


def test_what_is_told_apart_is_of_one_size(trained):
    sizes = {
        name: sum(p.numel() for p in DynamiCrafterUNet.from_pretrained(folder / 'video_unet').parameters())
        for name, folder in trained.items()
    }
    assert len(set(sizes.values())) == 1


class TestTable:
    @pytest.fixture(scope='class')
    def made(self, data, tmp_path_factory):
        """Arguments that made two rows, and their folder."""
        folder = tmp_path_factory.mktemp('table')
        networks = {
            'unet': {**UNET, 'temporal_transformer_in': False, 'temporal_conv': False},
            'image_projector': PROJECTOR,
        }
        (folder / 'networks.yaml').write_text(yaml.safe_dump(networks))
        arguments = [data, folder / 'out', '--init', build_tiny_model(folder / 'init'), '--minutes', 0.003]
        arguments += ['--networks', folder / 'networks.yaml', '--device', 'cpu', '--row', 'one_stage', 'ours']
        arguments = [str(argument) for argument in arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipes, 'TIMED_STEPS', 3)
            patch.setattr(recipes, 'WARM_STEPS', 1)
            recipes.main(arguments)
        return arguments, folder / 'out'

    def test_every_row_has_the_same_time(self):
        for row in recipes.ROWS:
            parts = recipes.trainings_of(row)
            assert sum(recipes.TRAININGS[name].share for name in parts.values()) == 1
            assert set(parts) == ({'video'} if row == 'one_stage' else {'trajectory', 'video'})

    def test_steps_fit_the_time_and_the_learning_rate_falls_to_its_end(self, made):
        facts = json.loads((made[1] / 'ours_trajectory' / 'training.json').read_text())
        config = yaml.safe_load((made[1] / 'ours_trajectory' / 'config.yaml').read_text())
        schedule = Schedule(**config['trajectory']['schedule'])
        assert schedule.steps == max(1, round(60 * 0.003 / 2 / facts['timed_seconds_per_step']))
        assert schedule.learning_rate_at(schedule.steps) == pytest.approx(0.02 * schedule.learning_rate)

    def test_the_table_has_rows_times_and_differences(self, made, tmp_path):
        report = recipes.write_table(made[1], tmp_path / 'recipes')
        assert set(report['trainings']) == {'one_stage', 'ours'}
        assert set(report['trainings']['ours']) == {'trajectory', 'video'}
        assert report['trainings']['ours']['video']['seconds_per_step'] > 0
        assert report['trainings']['ours']['video']['prediction_seconds'] > 0
        (split,) = report['splits'].values()
        controls = ('text', 'goal', 'text+goal', 'text without actor', 'oracle masks')
        assert set(split['rows']) == {'static', 'one_stage, text', *(f'ours, {c}' for c in controls)}
        assert 'object_iou' not in split['rows']['one_stage, text']
        psnr = {row: scores['psnr']['mean'] for row, scores in split['rows'].items()}
        difference = split['differences']['ours - one_stage, text']
        assert set(difference) == {'psnr', 'psnr_moving_pixels', 'ssim'}
        assert difference['psnr']['mean'] == pytest.approx(psnr['ours, text'] - psnr['one_stage, text'])
        gap = split['differences']['ours, oracle masks - text']['psnr']
        assert gap['mean'] == pytest.approx(psnr['ours, oracle masks'] - psnr['ours, text'])
        text = (tmp_path / 'recipes.md').read_text()
        assert '| ours, text without actor |' in text
        assert (tmp_path / 'recipes.png').stat().st_size > 1000

    def test_an_episode_counts_once_and_what_was_not_evaluated_not_at_all(self, tmp_path):
        rows = {'ours': 3.0, 'paper': 1.0}

        def write(row: str, split: str, values: list[float | None]):
            folder = tmp_path / row / 'evaluation'
            folder.mkdir(parents=True, exist_ok=True)
            lines = [{'header': True}]
            for value in values:
                lines.append({'skipped': 'torn'} if value is None else {'rows': {'text': {'psnr': value}}})
            (folder / f'{split}.clips.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
            torn = values.count(None)
            facts = {'clips': len(values) - torn, 'skipped': ['torn'] * torn}
            (folder / f'{split}.json').write_text(json.dumps(facts))

        for row, value in rows.items():
            write(row, 'test', [value, value, None])
            write(row, 'test_camera', [value * 2, value])
        write('ours', 'test_tasks', [9.0])
        found = recipes.differences(tmp_path, ['test', 'test_camera', 'test_tasks'], list(rows))
        score = found['ours - paper, text']['psnr']
        assert (score['mean'], score['clips']) == ((3.0 + 2.0) / 2, 2)

    def test_a_row_that_is_there_is_not_made_again(self, made):
        def stamps():
            files = [*made[1].rglob('*.safetensors'), *made[1].rglob('*.jsonl')]
            return {path: path.stat().st_mtime_ns for path in files if path.name != 'test.clips.jsonl'}

        before = stamps()
        recipes.main(made[0])
        assert stamps() == before
        arguments = [{'0.003': '1'}.get(argument, argument) for argument in made[0]]
        with pytest.raises(ValueError, match='choose another folder'):
            recipes.main(arguments)

    def test_rows_of_other_clips_are_not_compared(self, made, tmp_path):
        shutil.copytree(made[1], tmp_path / 'out', ignore=shutil.ignore_patterns('cache', 'model'))
        path = tmp_path / 'out/ours/evaluation/test.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), 'test_digest': 'other'}))
        with pytest.raises(ValueError, match='rows were evaluated on different clips'):
            recipes.write_table(tmp_path / 'out', tmp_path / 'recipes')
