"""Training one stage of an existing model: what is trained, what stays, what it is trained on."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file, save_file
from test_training import moving_clip

from mask2iv_ros import labels as lb
from mask2iv_ros.cli import main
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines.components import encode_text, image_features
from mask2iv_ros.pipelines.conversion import convert_checkpoint
from mask2iv_ros.pipelines.loading import load_pipeline
from mask2iv_ros.resources import config_path
from mask2iv_ros.training import trainer as trainer_module
from mask2iv_ros.training.diffusion import shifted_timesteps
from mask2iv_ros.training.latents import LatentCache, encode_images, weights_id
from mask2iv_ros.training.losses import contact_cells
from mask2iv_ros.training.predictions import predicted_labels
from mask2iv_ros.training.recipe import Recipe
from mask2iv_ros.training.trained_parts import StageModel, count_trained, merge_adapter, select_trained
from tiny_checkpoint import tiny_checkpoint
from tiny_model import build_tiny_pipeline

CONFIGS = Path(__file__).parents[1] / 'config' / 'train'
BASELINES = {f'metaworld_{n}_video' for n in ('one_stage', 'masklatent_actor', 'controlnet_actor')}
STAGE_CONFIGS = sorted(path.stem for path in CONFIGS.glob('*_*.yaml'))
UNET = {
    'in_channels': 12,
    'out_channels': 4,
    'block_out_channels': [8, 16],
    'layers_per_block': 1,
    'attention_resolutions': [2],
    'attention_head_dim': 8,
    'cross_attention_dim': 384,
    'norm_num_groups': 4,
}
STEP = {'steps': 1, 'learning_rate': 1}
PROJECTOR = {
    'embedding_dim': 4,
    'output_dim': 384,
    'hidden_dim': 16,
    'num_layers': 1,
    'num_attention_heads': 2,
    'attention_head_dim': 8,
    'num_queries': 1,
    'num_frames': 8,
}


@pytest.fixture(scope='module')
def init(tmp_path_factory) -> Path:
    """A model that has been trained: no layer is zero, as some are in a new one."""
    folder = tmp_path_factory.mktemp('init') / 'model'
    pipeline = build_tiny_pipeline()
    for unet in (pipeline.trajectory_unet, pipeline.video_unet):
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('data')
    with LeRobotClipWriter(folder / 'train') as writer:
        for seed in range(5):
            writer.add(moving_clip(seed))
    return folder


def make_recipe(
    folder: Path, data: Path, init: Path | str | None, stage: str = 'trajectory', **more
) -> Recipe:
    """A recipe for `stage` in `folder`; `more` are options of the stage, or whole sections."""
    sections = {key: more.pop(key) for key in ('unet', 'image_projector') if key in more}
    schedule = {'steps': 3, 'learning_rate': 0.01, 'warmup_steps': 0, 'decay': 'constant'}
    schedule |= more.pop('schedule', {})
    config = {
        'name': 'tuned',
        'validation': {'clips': 1, 'num_inference_steps': 1, 'export': 'last'},
        stage: {'options': {'batch_size': 2, **more}, 'schedule': schedule},
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    return Recipe(folder / 'config.yaml', data, folder / 'run', init)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob('*')) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope='module')
def spatial(tmp_path_factory, data, init) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp('spatial'), data, init, trained='spatial')
    assert recipe.train('trajectory')
    recipe.assemble()
    return recipe


class TestSpatial:
    """The paper's choice: the temporal layers stay."""

    def test_every_other_part_of_the_model_is_taken_over_as_it_is(self, spatial, init):
        before, after = digests(init), digests(spatial.folder / 'model')
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert {Path(name).parts[0] for name in changed} == {'trajectory_unet', 'model_index.json'}

    def test_temporal_layers_stay_and_all_others_are_trained(self, spatial, init):
        before = DynamiCrafterUNet.from_pretrained(init / 'trajectory_unet')
        after = DynamiCrafterUNet.from_pretrained(spatial.folder / 'model/trajectory_unet')
        moved = {
            name
            for (name, new), old in zip(after.named_parameters(), before.parameters(), strict=True)
            if not torch.allclose(new, old.half().float(), atol=1e-4)
        }
        temporal = {
            n for n, _ in before.named_parameters() if 'temporal_conv.' in n or 'transformer_in.' in n
        }
        assert temporal
        assert not moved & temporal
        assert len(moved) > 0.9 * (len(list(before.parameters())) - len(temporal))

    def test_the_result_is_a_model_that_opens_and_generates(self, spatial):
        pipeline = load_pipeline(spatial.folder / 'model', 'cpu', torch.float32)
        assert pipeline.config.name == 'tuned'
        assert pipeline.config.num_inference_steps == 2  # the model's own
        assert pipeline.trajectory_image_projector is None
        clip = moving_clip(9)
        framed = np.pad(clip.frames[:1], ((0, 0), (0, 0), (8, 8), (0, 0)))
        labels = np.pad(clip.labels[:1], ((0, 0), (0, 0), (8, 8)))
        assert pipeline(framed, labels, 'push it').frames.shape == (1, 8, 32, 48, 3)

    def test_a_unet_without_temporal_layers_has_nothing_to_freeze(self):
        unet = DynamiCrafterUNet(**UNET, temporal_conv=False, temporal_transformer_in=False)
        with pytest.raises(ValueError, match='freezes temporal layers'):
            select_trained(StageModel(unet, None), 'spatial')

    def test_at_full_size_it_trains_what_the_released_code_reports(self):
        with torch.device('meta'):
            model = StageModel(DynamiCrafterUNet(), Resampler())
        select_trained(model, 'spatial')
        assert count_trained(model.unet)['tensors'] == 1516
        assert count_trained(model.unet)['trained_tensors'] == 1138
        assert count_trained(model.image_projector)['trained_tensors'] == 51
        assert round(count_trained(model)['trained_parameters'] / 1e9, 1) == 1.2


@pytest.fixture(scope='module')
def lora(tmp_path_factory, data, init) -> Recipe:
    folder = tmp_path_factory.mktemp('lora')
    recipe = make_recipe(
        folder, data, init, 'video', trained='lora', lora_rank=2, gradient_checkpointing=True
    )
    assert recipe.train('video')
    recipe.assemble()
    return recipe


class TestLora:
    def test_a_checkpoint_holds_the_adapter_alone(self, lora, init):
        saved = load_file(lora.folder / 'video/checkpoint/trained.safetensors')
        base = DynamiCrafterUNet.from_pretrained(init / 'video_unet')
        assert all('lora_' in name for name in saved)
        assert sum(t.numel() for t in saved.values()) < 0.1 * base.num_parameters()
        assert any(t.any() for name, t in saved.items() if 'lora_B' in name)  # it has learned

    def test_only_attention_changes_in_the_model(self, lora, init):
        before = load_file(init / 'video_unet/diffusion_pytorch_model.safetensors')
        after = load_file(lora.folder / 'model/video_unet/diffusion_pytorch_model.safetensors')
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
        assert changed
        assert all('.attn' in name and '.to_' in name for name in changed)

    def test_the_merged_weights_do_what_base_and_adapter_do(self, lora, init):
        base = DynamiCrafterUNet.from_pretrained(init / 'video_unet').eval()
        adapter = lora.folder / 'video/adapter'
        merged = merge_adapter(base, adapter)
        inputs = torch.randn(1, 12, 8, 4, 6), torch.tensor([500]), torch.randn(1, 24, 384)
        with torch.no_grad():
            plain = base(*inputs).sample
            base.load_lora_adapter(adapter, weight_name=LORA_WEIGHT_NAME_SAFE, prefix=None)
            adapted = base(*inputs).sample
            torch.testing.assert_close(merged(*inputs).sample, adapted, atol=1e-5, rtol=1e-4)
        assert (adapted - plain).abs().max() > 1e-4


def test_a_lora_leaves_the_image_projector_as_it_was(tmp_path, data, dynamicrafter):
    """Although it runs in bfloat16 where there is a GPU."""
    stage = make_recipe(tmp_path, data, dynamicrafter, trained='lora').stage_trainer('trajectory')
    stage._stage_model().bfloat16()
    stage.export(best=False)
    name = 'diffusion_pytorch_model.safetensors'
    before = load_file(dynamicrafter / 'trajectory_image_projector' / name)
    after = load_file(tmp_path / 'run/trajectory/image_projector' / name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].half(), after[key]) for key in before)


class TestResume:
    def test_a_killed_run_repeats_the_losses_it_lost(self, tmp_path, data, init, monkeypatch):
        """With dropout, accumulated gradients and scores on the way."""
        monkeypatch.setattr(trainer_module, 'LOG_STEPS', 1)

        def run(folder: Path, killed_at: int | None) -> list[dict]:
            recipe = make_recipe(
                folder,
                data,
                init,
                unet={**UNET, 'dropout': 0.2},
                image_projector=PROJECTOR,
                schedule={'steps': 5, 'gradient_accumulation_steps': 2},
            )
            recipe.validation.every_steps = 2
            stage = recipe.stage_trainer('trajectory')
            if killed_at is not None:
                original = stage.loss_at

                def dying(generator):
                    if stage.trainer.step == 2:
                        stage.trainer.save()
                    if stage.trainer.step == killed_at:
                        raise KeyboardInterrupt
                    return original(generator)

                stage.loss_at = dying
                with pytest.raises(KeyboardInterrupt):
                    stage.run(recipe.arrays('val'), validation=recipe.validation)
                return run(folder, None)
            assert stage.run(recipe.arrays('val'), validation=recipe.validation)
            lines = map(json.loads, (folder / 'run/trajectory/losses.jsonl').read_text().splitlines())
            return [{key: value for key, value in line.items() if key != 'seconds'} for line in lines]

        whole, parts = run(tmp_path / 'whole', None), run(tmp_path / 'parts', 4)
        assert [line['step'] for line in whole if 'loss' in line] == [1, 2, 3, 4, 5]
        assert whole == parts
        exported = [tmp_path / name / 'run/trajectory/unet' for name in ('whole', 'parts')]
        assert digests(exported[0]) == digests(exported[1])


class TestPredictedMasks:
    def test_stage_two_sees_what_stage_one_predicts(self, tmp_path, data, init):
        damage = {'dilate_erode': 0, 'predicted': 1.0}
        recipe = make_recipe(tmp_path, data, init, 'video', damage=damage, foreground_weight=1)
        stage = recipe.stage_trainer('video')
        pipeline = load_pipeline(init, 'cpu', torch.float32).trajectory
        arrays = recipe.arrays('train')
        expected = pipeline(
            arrays.frames[:1, 0],
            arrays.labels[:1, 0],
            arrays.tasks[:1],
            arrays.goals[:1],
            generator=[torch.Generator().manual_seed(0)],
        ).labels[0]
        assert (stage.predicted[0] != expected).mean() < 0.01
        assert (stage.predicted[0] != arrays.labels[0]).any()
        condition = stage._inputs(np.array([0, 2]), torch.Generator().manual_seed(0)).condition
        torch.testing.assert_close(condition[:, 4:], stage._load('predicted', np.array([0, 2])))

    def test_a_clip_without_goal_takes_none_from_others(self, tmp_path, data, init):
        damage = {'dilate_erode': 0, 'predicted': 1.0}
        stage = make_recipe(tmp_path, data, init, 'video', damage=damage).stage_trainer('video')
        goals = np.array(stage.arrays.goals)
        goals[0] = 0
        arrays = replace(stage.arrays, goals=goals)
        pipeline = load_pipeline(init, 'cpu', torch.float32).trajectory
        cache = LatentCache(arrays, stage.cache.vae, tmp_path / 'other')
        found, _ = predicted_labels(cache, pipeline, stage.predicted_clips)
        none = replace(arrays, goals=np.zeros_like(goals))
        cache = LatentCache(none, stage.cache.vae, tmp_path / 'none')
        without, _ = predicted_labels(cache, pipeline, stage.predicted_clips)
        row = stage.predicted_clips.tolist().index(1)
        differ = [(labels[row] != found[row]).mean() for labels in (stage.predicted, without)]
        assert differ[0] < 0.01 < differ[1]

    def test_few_clips_with_predictions_see_them_more_often(self, tmp_path, data, init):
        damage = {'dilate_erode': 0.25, 'predicted': 0.25}
        stage = make_recipe(
            tmp_path, data, init, 'video', damage=damage, predicted_clips=1, damage_variants=1
        ).stage_trainer('video')
        (pick,) = stage.predicted_clips
        assert stage.predicted.shape == stage.arrays.labels[:1].shape
        others = [i for i in range(len(stage.arrays)) if i != pick]
        clips = np.array([pick] * 60 + others * 60)
        masks = stage._inputs(clips, torch.Generator().manual_seed(0)).condition[:, 4:]
        seen = (masks == stage._load('predicted', np.zeros(len(clips), int))).flatten(1).all(1).numpy()
        share = min(0.25 * len(stage.arrays), 0.75)
        assert seen[:60].mean() == pytest.approx(share, abs=0.2)
        assert not seen[60:].any()

    def test_another_stage_one_predicts_anew(self, tmp_path, data, init):
        made = []
        for seed in range(2):
            torch.manual_seed(seed)
            recipe = make_recipe(tmp_path, data, init, 'video', damage={'predicted': 0.5})
            whole = load_pipeline(init, 'cpu', torch.float32)
            torch.nn.init.normal_(whole.trajectory_unet.conv_out.weight, std=0.2)
            whole.save_pretrained(tmp_path / f'init{seed}')
            recipe.init = tmp_path / f'init{seed}'
            recipe.stage_trainer('video')
            made.append((tmp_path / 'run/latents/predicted_labels.json').stat().st_mtime_ns)
            recipe.stage_trainer('video')
            made.append((tmp_path / 'run/latents/predicted_labels.json').stat().st_mtime_ns)
        assert made[0] == made[1] < made[2] == made[3]


class TestTrajectoryInputs:
    """What a batch of stage 1 holds."""

    def stage(self, tmp_path, data, init, **conditions):
        defaults = {'text_only': 0, 'goal_only': 0, 'goal_box': 0, 'goal_point': 0, 'no_actor': 0}
        return make_recipe(tmp_path, data, init, conditions=defaults | conditions).stage_trainer('trajectory')

    def test_text_mode_repeats_the_first_masks(self, tmp_path, data, init):
        stage = self.stage(tmp_path, data, init, text_only=1)
        clips = np.array([1, 2])
        batch = stage._inputs(clips, torch.Generator().manual_seed(0))
        masks = stage._load('masks', clips)
        torch.testing.assert_close(batch.target, masks)
        torch.testing.assert_close(batch.condition[:, :4], masks[:, :, :1].expand_as(masks))
        torch.testing.assert_close(batch.first, masks[:, :, 0])
        assert sorted(batch.text) == sorted(stage.text_index[clips])
        assert 'goals' not in stage.latents

    def test_position_mode_has_the_goal_last_and_no_text(self, tmp_path, data, init):
        stage = self.stage(tmp_path, data, init, goal_only=1)
        batch = stage._inputs(np.array([1, 2]), torch.Generator().manual_seed(0))
        masks = batch.condition[:, :4]
        torch.testing.assert_close(masks[:, :, -1], stage._load('goals', np.array([1, 2]), [0, 0]))
        assert not masks[:, :, 1:-1].any()
        assert not batch.text.any()

    def test_a_clip_that_stops_stays_where_its_goal_is(self, tmp_path, data, init):
        conditions = {'text_only': 0, 'goal_only': 1, 'goal_box': 0, 'goal_point': 0, 'no_actor': 0}
        recipe = make_recipe(tmp_path, data, init, conditions=conditions | {'stopped': 1}, object_weight=9)
        stage = recipe.stage_trainer('trajectory')
        clips = np.arange(len(stage.arrays))
        batch = stage._inputs(clips, torch.Generator().manual_seed(0))
        assert {tuple(row[row < row[-1]]) for row in batch.frames} == {
            tuple(range(row[-1])) for row in batch.frames
        }
        assert batch.frames.max() < stage.arrays.labels.shape[1] - 1
        for clip, frames, target, condition in zip(
            clips, batch.frames, batch.target, batch.condition, strict=True
        ):
            masks = stage._load('masks', clips[clip : clip + 1])[0]
            torch.testing.assert_close(target, masks[:, frames])
            goal = lb.labels_to_rgb(lb.without_actor(stage.arrays.labels[clip, frames[-1]]))
            expected = torch.from_numpy(encode_images(stage.cache.vae, goal[None])[0].astype(np.float32))
            torch.testing.assert_close(condition[:4, -1], expected, atol=1e-2, rtol=1e-2)
        assert np.isfinite(stage.loss_at(torch.Generator().manual_seed(0))['loss'].item())
        assert stage._objective['conditions']['stopped'] == 1

    def test_a_goal_with_channels_of_its_own_is_seen_by_those_who_have_one(self, tmp_path, data, init):
        mask_alone = {'text_only': 0, 'goal_only': 0.5, 'goal_box': 0, 'goal_point': 0, 'no_actor': 0}
        recipe = make_recipe(tmp_path, data, init, goal_channels=True, conditions=mask_alone)
        stage = recipe.stage_trainer('trajectory')
        goals = torch.from_numpy(stage.latents['goals'][np.arange(4), 0].astype(np.float32))
        condition = stage._inputs(np.arange(4), torch.Generator().manual_seed(0)).condition
        nearness = torch.linspace(0, 1, condition.shape[2])[:, None, None]
        torch.testing.assert_close(condition[:, -4:], goals.unsqueeze(2) * nearness)

    def test_an_unseen_actor_is_missing_from_the_condition_and_kept_in_the_target(self, tmp_path, data, init):
        stage = self.stage(tmp_path, data, init, text_only=1, no_actor=1)
        batch = stage._inputs(np.array([1]), torch.Generator().manual_seed(0))
        torch.testing.assert_close(batch.condition[:, :4, 0], stage._load('no_actor', np.array([1])))
        torch.testing.assert_close(batch.first, batch.condition[:, :4, 0])
        assert (batch.first - batch.target[:, :, 0]).abs().max() > 0.01


def test_arrays_follow_a_dataset_that_is_made_anew_in_its_place(tmp_path, init):
    def make(*seeds):
        with LeRobotClipWriter(tmp_path / 'data' / 'train') as writer:
            for seed in seeds:
                writer.add(moving_clip(seed))

    make(0, 2)
    out = tmp_path / 'data/train/out'  # whose files are none of the dataset's
    recipe = make_recipe(tmp_path, tmp_path / 'data/train', init)
    recipe.folder = recipe.cache = out
    before = recipe.arrays('test')
    index = out / 'arrays/test/index.json'
    made = index.stat().st_mtime_ns
    recipe.arrays('test')
    assert index.stat().st_mtime_ns == made
    out.rename(tmp_path / 'kept')
    shutil.rmtree(tmp_path / 'data/train')
    make(4, 6)
    (tmp_path / 'kept').rename(out)
    assert recipe.arrays('test').digest != before.digest


@pytest.fixture(scope='module')
def dynamicrafter(tmp_path_factory) -> Path:
    """A tiny DynamiCrafter checkpoint, converted: where the paper's training starts."""
    folder = tmp_path_factory.mktemp('dynamicrafter')
    save_file(tiny_checkpoint(in_channels=8), folder / 'model.safetensors')
    convert_checkpoint(folder / 'model.safetensors', folder / 'model', sample_size=(32, 48))
    return folder / 'model'


@pytest.mark.parametrize('name', ['bridge_trajectory', 'hoi4d_video'])
def test_the_papers_recipe_trains_a_converted_dynamicrafter(name, tmp_path, data, dynamicrafter):
    config = yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())
    stage = name.split('_')[1]
    config['validation'] |= {'clips': 1, 'num_inference_steps': 1}
    config['sample_size'] = [32, 48]
    config[stage]['schedule'] |= {'steps': 1, 'gradient_accumulation_steps': 2, 'learning_rate': 1e-3}
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    recipe = Recipe(tmp_path / 'config.yaml', data, tmp_path / 'run', dynamicrafter)
    assert recipe.train(stage)
    model = recipe.assemble()
    before, after = digests(dynamicrafter), digests(model)
    changed = {Path(path).parts[0] for path in before | after if before.get(path) != after.get(path)}
    assert changed == {f'{stage}_unet', f'{stage}_image_projector', 'model_index.json'}
    pipeline = load_pipeline(model, 'cpu', torch.float32)
    unet = getattr(pipeline, f'{stage}_unet')
    assert unet.conv_in.weight[:, 8:].any()  # what the checkpoint did not have
    assert list(pipeline.config.sample_size) == [32, 48]


class TestLooks:
    def test_target_condition_and_image_tokens_are_of_one_look(self, tmp_path, data, init):
        stage = make_recipe(tmp_path, data, init, 'video', looks=1.0, look_variants=2).stage_trainer('video')
        clips = np.array([0, 1, 2, 3] * 4)
        batch = stage._inputs(clips, torch.Generator().manual_seed(0))
        video, first = batch.target, batch.first
        variants = [stage._load('looks', clips, np.full(len(clips), v)) for v in range(2)]
        same = torch.stack([(video == variant).flatten(1).all(1) for variant in variants])
        assert (same.sum(0) == 1).all()
        assert same.any(1).all()
        torch.testing.assert_close(first, video[:, :, 0])
        torch.testing.assert_close(batch.condition[:, :4], first.unsqueeze(2).expand_as(video))
        torch.testing.assert_close(batch.features, first.flatten(2).transpose(1, 2))
        assert not (video == stage._load('video', clips)).flatten(1).all(1).any()

    def test_without_them_samples_are_as_ever(self, tmp_path, data, init):
        stage = make_recipe(tmp_path, data, init, 'video').stage_trainer('video')
        assert 'looks' not in stage.latents
        assert not {'looks', 'look_variants'} & stage._objective.keys()
        clips = np.arange(3)
        batch = stage._inputs(clips, torch.Generator().manual_seed(0))
        torch.testing.assert_close(batch.target, stage._load('video', clips))
        torch.testing.assert_close(batch.features, batch.target[:, :, 0].flatten(2).transpose(1, 2))

    def test_an_image_encoder_sees_the_look(self, tmp_path, data, dynamicrafter):
        stage = make_recipe(tmp_path, data, dynamicrafter, 'video', looks=1.0, look_variants=1)
        stage = stage.stage_trainer('video')
        features = stage._inputs(np.array([2]), torch.Generator().manual_seed(0)).features
        with torch.no_grad():
            tokens = image_features(stage.pipeline, stage._looks(2)[0, :1], None)
        np.testing.assert_allclose(features, tokens, atol=1e-2)

    def test_a_model_is_trained_with_them(self, tmp_path, data, init):
        recipe = make_recipe(tmp_path, data, init, 'video', looks=0.5)
        assert recipe.train('video')
        assert np.isfinite(
            json.loads((tmp_path / 'run/video/losses.jsonl').read_text().splitlines()[0])['loss']
        )

    def test_a_share_above_one_is_refused(self, tmp_path, data, init):
        with pytest.raises(ValueError, match='looks: expected a share'):
            make_recipe(tmp_path, data, init, 'video', looks=1.5)


class TestFrozenNetworks:
    def test_an_image_encoder_runs_once_a_clip(self, tmp_path, data, dynamicrafter):
        stage = make_recipe(tmp_path, data, dynamicrafter).stage_trainer('trajectory')
        frames = np.array(stage.arrays.frames[2, :1])
        with torch.no_grad():
            tokens = image_features(stage.pipeline, frames, None)
        np.testing.assert_allclose(stage.features[2], tokens[0], atol=1e-2)
        assert stage.features.shape == (4, *tokens.shape[1:])

    def test_texts_are_encoded_once_each(self, tmp_path, data, dynamicrafter):
        stage = make_recipe(tmp_path, data, dynamicrafter).stage_trainer('trajectory')
        assert len(stage.texts) == 3  # '' and two tasks
        with torch.no_grad():
            expected = encode_text(stage.pipeline, [stage.arrays.tasks[1]])[0]
        np.testing.assert_allclose(stage.texts[stage.text_index[1]], expected, atol=1e-5)

    def test_a_checkpoint_does_not_go_on_over_other_frozen_weights(self, tmp_path, data, init):
        recipe = make_recipe(tmp_path, data, init, trained='spatial')
        recipe.stage_trainer('trajectory').trainer.save()
        assert recipe.stage_trainer('trajectory').trainer.step == 0
        other = load_pipeline(init, 'cpu', torch.float32)
        torch.nn.init.ones_(other.trajectory_unet.transformer_in.proj_in.bias)
        other.save_pretrained(tmp_path / 'other')
        recipe.init = tmp_path / 'other'
        with pytest.raises(ValueError, match='to start anew'):
            recipe.stage_trainer('trajectory')


class TestObjective:
    """A checkpoint goes on with what it was trained for."""

    NEW = {'unet': UNET, 'image_projector': PROJECTOR}  # noqa: RUF012

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            ({'residual': False}, r"residual_scale': \d.*now it is .*residual_scale': None"),
            ({'foreground_weight': 3}, r"foreground_weight': 5.0}, now it is {'foreground_weight': 3}"),
            ({'conditions': {'neither': 0.1}}, r"'neither': 0.1"),
        ],
    )
    def test_another_one_is_refused(self, tmp_path, data, init, change, message):
        make_recipe(tmp_path, data, init, **self.NEW).stage_trainer('trajectory').trainer.save()
        other = make_recipe(tmp_path, data, init, **self.NEW, **change)
        with pytest.raises(ValueError, match=message + '.* to start anew'):
            other.stage_trainer('trajectory')

    def test_networks_that_only_work_otherwise_are_refused(self, tmp_path, data, init):
        make_recipe(tmp_path, data, init, **self.NEW).stage_trainer('trajectory').trainer.save()
        other = {**self.NEW, 'unet': {**UNET, 'dropout': 0.3}}
        with pytest.raises(ValueError, match=r"'dropout': 0.3.* to start anew"):
            make_recipe(tmp_path, data, init, **other).stage_trainer('trajectory')

    def test_a_start_from_other_weights_is_refused(self, tmp_path, data, init):
        recipe = make_recipe(tmp_path, data, init)
        recipe.stage_trainer('trajectory').trainer.save()
        assert recipe.stage_trainer('trajectory').trainer.step == 0
        other = load_pipeline(init, 'cpu', torch.float32)
        torch.nn.init.normal_(other.trajectory_unet.conv_out.weight)
        other.save_pretrained(tmp_path / 'other')
        recipe.init = tmp_path / 'other'
        with pytest.raises(ValueError, match=r'started_from.* to start anew'):
            recipe.stage_trainer('trajectory')

    def test_other_damage_is_refused(self, tmp_path, data, init):
        make_recipe(tmp_path, data, init, 'video').stage_trainer('video').trainer.save()
        with pytest.raises(ValueError, match=r"'jitter': 0.1"):
            make_recipe(tmp_path, data, init, 'video', damage={'jitter': 0.1}).stage_trainer('video')

    def test_what_only_saves_memory_may_change(self, tmp_path, data, init):
        stage = make_recipe(tmp_path, data, init, **self.NEW).stage_trainer('trajectory')
        stage.trainer.step = 2
        stage.trainer.save()
        less = {'batch_size': 1, 'gradient_checkpointing': True}
        recipe = make_recipe(tmp_path, data, init, **self.NEW, **less)
        assert recipe.stage_trainer('trajectory').trainer.step == 2


def test_a_timestep_shift_moves_samples_towards_noise():
    moved = shifted_timesteps(torch.arange(1000), 1000, 3.0)
    assert (moved.diff() >= 0).all()
    assert (moved[0], moved[-1]) == (1, 999)
    assert moved[500] == pytest.approx(750, abs=1)
    assert (shifted_timesteps(torch.arange(1000), 1000, 1.0) == torch.arange(1000)).all()


def test_the_contact_band_is_in_proportion_to_the_picture(tmp_path, data, init):
    """The paper's 7 pixels of 320 rows are the smallest kernel, 3, at 32 rows."""
    stage = make_recipe(tmp_path, data, init, 'video', contact_size=7).stage_trainer('video')
    cell = stage.arrays.labels.shape[-1] // stage.maps['contact'].shape[-1]
    np.testing.assert_array_equal(stage.maps['contact'][0], contact_cells(stage.arrays.labels[0], cell, 3))
    assert (stage.maps['contact'][0] != contact_cells(stage.arrays.labels[0], cell, 7)).any()


class TestFrameRates:
    """The UNet is told of the same rates in training, in validation and in the model."""

    def told(self, tmp_path, data, init, rates, **sampling) -> tuple[list[int], list[int], float]:
        recipe = make_recipe(tmp_path, data, init)
        recipe.config['sampling'] |= sampling
        arrays = recipe.arrays('train')
        index = tmp_path / 'run/arrays/train/index.json'
        index.write_text(json.dumps({**json.loads(index.read_text()), 'fps': rates}))
        stage = recipe.stage_trainer('trajectory')
        told = []
        stage.pipeline.unet.register_forward_pre_hook(lambda _, args: told.append(args[4].tolist()))
        stage.loss_at(torch.Generator().manual_seed(0))
        clips = torch.randint(len(arrays), (2,), generator=torch.Generator().manual_seed(0))
        assert told == [[stage.rates(stage.arrays)[i] for i in clips]]
        told.clear()
        stage.pipeline.set_progress_bar_config(disable=True)
        assert len(list(stage.predict(stage.arrays, np.arange(4), 1))) == 4
        return stage.rates(stage.arrays).tolist(), np.concatenate(told).tolist(), recipe._description['fps']

    def test_each_clip_has_its_own_and_the_model_their_median(self, tmp_path, data, init):
        told = self.told(tmp_path, data, init, [0.3, 3.6, 3.8, 30.0])
        assert told == ([1, 4, 4, 30], [1, 4, 4, 30], 4.0)

    def test_a_configuration_may_say_one_for_all(self, tmp_path, data, init):
        told = self.told(tmp_path, data, init, [0.3, 3.6, 3.8, 30.0], fps=15.0)
        assert told == ([15] * 4, [15] * 4, 15.0)


class TestConfigurations:
    @pytest.mark.parametrize('name', STAGE_CONFIGS)
    def test_each_names_one_stage_and_builds_its_options(self, name, init, tmp_path):
        recipe = Recipe(CONFIGS / f'{name}.yaml', tmp_path, tmp_path / 'run', init)
        (stage,) = recipe.parts
        assert name.endswith(stage)

    def test_all_of_them_are_there(self):
        sets = ('bridge', 'hoi4d', 'lora', 'metaworld')
        pairs = {f'{name}_{stage}' for name in sets for stage in ('trajectory', 'video')}
        assert pairs | BASELINES | {'metaworld_goal_trajectory'} == set(STAGE_CONFIGS)

    @pytest.mark.parametrize('name', sorted(BASELINES))
    def test_baselines_differ_from_the_papers_recipe_in_masks_damage_and_loss(self, name):
        baseline, paper = (
            yaml.safe_load((CONFIGS / f'{n}.yaml').read_text()) for n in (name, 'metaworld_video')
        )
        options, its = baseline['video'].pop('options'), paper['video'].pop('options')
        assert baseline | {'name': ''} == paper | {'name': ''}
        different = {key for key in options.keys() | its.keys() if options.get(key) != its.get(key)}
        allowed = {'masks', 'controlnet', 'damage', 'contact_weight', 'contact_size', 'weigh_vacated'}
        assert {'masks', 'contact_weight'} <= different <= allowed
        assert (options['foreground_weight'], options['contact_weight']) == (1, 1)

    @pytest.mark.parametrize(
        'name',
        [name for name in STAGE_CONFIGS if not name.startswith(('lora', 'looks')) and name not in BASELINES],
    )
    def test_the_papers_recipe(self, name, init, tmp_path):
        recipe = Recipe(CONFIGS / f'{name}.yaml', tmp_path, tmp_path / 'run', init)
        ((schedule, options),) = recipe.options.values()
        assert recipe.config['sampling'] == {'num_inference_steps': 50, 'eta': 1.0, 'fps': 15.0}
        assert not options.residual
        assert not options.weigh_vacated
        if name.endswith('trajectory'):
            mode = dict.fromkeys(asdict(options.conditions), 0.0)
            mode |= (
                {'goal_only': 1.0} if name.startswith(('bridge', 'metaworld_goal')) else {'text_only': 1.0}
            )
            assert asdict(options.conditions) == mode
            assert options.foreground_weight == 5
        else:
            assert options.damage.drawn.pop('dilate_erode') == 0.2
            assert sum(asdict(options.damage).values()) == 0.2
            assert (options.foreground_weight, options.contact_weight) == (1, 5)
        if not name.startswith('metaworld'):
            assert (schedule.learning_rate, schedule.decay, schedule.ema_decay) == (1e-5, 'constant', None)
            assert schedule.max_grad_norm == 0.5
            assert options.batch_size * schedule.gradient_accumulation_steps == 8
            assert options.trained == 'spatial'
            assert recipe.config['sample_size'] == [320, 512]

    def test_the_default_trains_a_whole_model_on_all_controls(self, tmp_path):
        recipe = Recipe(CONFIGS / 'mask2iv-sim.yaml', tmp_path, tmp_path / 'run')
        assert recipe.parts == ['autoencoder', 'trajectory', 'video']
        assert all(asdict(recipe.options['trajectory'][1].conditions).values())
        assert all(asdict(recipe.options['video'][1].damage).values())

    def test_a_wrong_scheduler_is_told_before_anything_runs(self, tmp_path):
        config = yaml.safe_load(config_path('train/mask2iv-sim.yaml').read_text())
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump({**config, 'scheduler': {'rescale_bse': 1.0}}))
        with pytest.raises(ValueError, match=r'scheduler: .*rescale_bse'):
            Recipe(tmp_path / 'config.yaml', tmp_path, tmp_path / 'out')

    def test_finetuning_goes_on_with_all_of_the_default(self, tmp_path, data):
        recipe = Recipe(CONFIGS / 'finetune.yaml', data, tmp_path / 'run')
        assert recipe.init
        assert recipe.parts == ['autoencoder', 'trajectory', 'video']
        assert recipe.options['autoencoder'][1].keep_latents
        assert recipe.options['video'][1].looks

    def test_new_networks_start_from_the_models_autoencoder(self, tmp_path, data, init):
        recipe = make_recipe(
            tmp_path, data, init, unet=UNET, image_projector=PROJECTOR, residual=False, foreground_weight=2
        )
        assert recipe.train('trajectory')
        pipeline = load_pipeline(recipe.assemble(), 'cpu', torch.float32)
        assert pipeline.trajectory_image_projector.config.num_queries == 1
        assert pipeline.config.trajectory_residual_scale is None

    def test_a_network_gets_goal_channels_and_keeps_them(self, tmp_path, data, init):
        recipe = make_recipe(tmp_path / 'first', data, init, goal_channels=True, goal_guidance=2)
        assert recipe.train('trajectory')
        model = recipe.assemble()
        pipeline = load_pipeline(model, 'cpu').trajectory
        assert pipeline.goal_channels
        assert pipeline.unet.conv_in.weight[:, -4:].any()
        again = make_recipe(tmp_path / 'second', data, model)
        again = again.stage_trainer('trajectory').pipeline
        assert again.goal_channels
        assert pipeline.config.goal_guidance == again.config.goal_guidance == 2
        with pytest.raises(ValueError, match=r'goal_channels: False, but the model .* has them'):
            make_recipe(tmp_path / 'third', data, model, goal_channels=False).stage_trainer('trajectory')
        with pytest.raises(ValueError, match='goal_channels: a LoRA does not'):
            make_recipe(tmp_path / 'fourth', data, init, goal_channels=True, trained='lora').stage_trainer(
                'trajectory'
            )

    def test_a_network_goes_on_with_the_targets_it_was_made_for(self, tmp_path, data, init):
        with pytest.raises(ValueError, match=r'residual: True, but the model .* residual_scale None'):
            make_recipe(tmp_path, data, init, residual=True).stage_trainer('trajectory')

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            ({'trajectroy': {}}, r"unknown key \['trajectroy'\]"),
            ({'name': None}, 'says nothing|expected'),
            ({'unet': UNET}, 'expected unet and image_projector, or neither'),
            ({'scheduler': {}}, 'scheduler is that of the model'),
            ({'autoencoder': {'model': {}, 'schedule': STEP}}, 'leave `model` out'),
            ({'autoencoder': {'looks': 2, 'schedule': STEP}}, 'looks: expected a share'),
            ({'validation': {'clip': 1}}, "validation: .* unexpected keyword argument 'clip'"),
            ({'video': {'schedule': {}}}, "video: .* 'steps' and 'learning_rate'"),
            ({'video': {'option': {}, 'schedule': STEP}}, r"video: unknown key \['option'\]"),
            ({'video': {'options': {'damage_variants': 0}, 'schedule': STEP}}, 'damage_variants: expected'),
            ({'sampling': {'fps': 0.5}}, 'fps: expected at least 1'),
            ({'sampling': {'num_inference_step': 4}}, r"sampling: unknown key \['num_inference_step'\]"),
        ],
    )
    def test_a_configuration_that_makes_no_sense_says_why(self, change, message, tmp_path, data, init):
        config = {'name': 'x', 'trajectory': {'options': {}, 'schedule': {'steps': 1, 'learning_rate': 1}}}
        config = {key: value for key, value in (config | change).items() if value is not None}
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=message):
            Recipe(tmp_path / 'config.yaml', data, tmp_path, init)

    def test_a_stage_needs_a_model_to_start_from(self, tmp_path, data):
        with pytest.raises(ValueError, match='a model to start from'):
            make_recipe(tmp_path, data, None)
        with pytest.raises(ValueError, match=r'nowhere has no model_index\.json'):
            make_recipe(tmp_path, data, tmp_path / 'nowhere')

    def test_an_autoencoder_goes_on_and_keeps_its_latents_where_told(self, tmp_path, data, init):
        def moved(keep_latents: float) -> float:
            folder = tmp_path / str(keep_latents)
            folder.mkdir()
            schedule = {'steps': 12, 'learning_rate': 0.003, 'warmup_steps': 0, 'ema_decay': None}
            part = {'looks': 0.5, 'keep_latents': keep_latents, 'batch_size': 6, 'schedule': schedule}
            (folder / 'config.yaml').write_text(yaml.safe_dump({'name': 'tuned', 'autoencoder': part}))
            recipe = Recipe(folder / 'config.yaml', data, folder / 'run', init)
            assert recipe.train('autoencoder')
            before, after = (load_pipeline(path, 'cpu', torch.float32) for path in (init, recipe.assemble()))
            assert weights_id(before.vae) != weights_id(after.vae)
            assert weights_id(before.video_unet) == weights_id(after.video_unet)
            assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
            frames = recipe.arrays('train').frames[0]
            pair = [encode_images(model.vae, frames).astype(np.float32) for model in (before, after)]
            return np.square(pair[0] - pair[1]).mean() / pair[0].var()

        assert moved(10.0) < 0.2 * moved(0.0)

    def test_the_embedded_model_is_one(self, tmp_path, data):
        recipe = make_recipe(tmp_path, data, 'mask2iv-sim')
        assert recipe.config['sample_size'] == [128, 160]


class TestCommandLine:
    def train(self, *arguments) -> int:
        return main(['train', *map(str, arguments)])

    def test_a_configuration_of_the_package_goes_by_its_name(self, tmp_path, data, init, capsys):
        arguments = [data, tmp_path, '--config', 'hoi4d_video', '--init', init, '--part', 'trajectory']
        assert self.train(*arguments) == 1
        assert 'hoi4d_video.yaml says nothing of trajectory; it trains video' in capsys.readouterr().err

    def test_a_configuration_that_is_not_there_is_named(self, tmp_path, data, capsys):
        assert self.train(data, tmp_path, '--config', 'nonsense') == 1
        assert 'nonsense.yaml' in capsys.readouterr().err

    def test_a_stage_is_trained_into_a_model(self, tmp_path, data, init, capsys):
        make_recipe(tmp_path, data, init, 'video')
        command = [data, tmp_path / 'run', '--config', tmp_path / 'config.yaml', '--init', init]
        assert self.train(*command, '--max-minutes', 0) == 0
        assert 'video: stopped' in capsys.readouterr().out
        assert not (tmp_path / 'run/model').exists()
        assert self.train(*command) == 0
        assert f'model: {tmp_path}/run/model' in capsys.readouterr().out
        assert load_pipeline(tmp_path / 'run/model', 'cpu').config.name == 'tuned'


def test_held_out_clips_are_not_trained_on(tmp_path, data, init):
    recipe = make_recipe(tmp_path, data, init)
    frames = {split: recipe.arrays(split).frames for split in ('train', 'val')}
    assert (len(frames['train']), len(frames['val'])) == (4, 1)
    assert not (frames['train'] == frames['val']).all(axis=(1, 2, 3, 4)).any()
    assert lb.OBJECT in recipe.arrays('val').labels
