"""Training: losses look where they should, runs resume exactly, and what comes out is a working model."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mask2iv_ros import labels as lb
from mask2iv_ros.cli import main
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.pipelines.loading import ModelError, load_pipeline
from mask2iv_ros.training.arrays import build_arrays, damage_labels
from mask2iv_ros.training.losses import contact_weight, foreground_weight
from mask2iv_ros.training.recipe import Recipe
from mask2iv_ros.training.trainer import Schedule, Trainer

CONFIG = Path(__file__).parents[1] / 'config' / 'train' / 'mask2iv-sim.yaml'


def moving_clip(seed: int) -> InteractionClip:
    rng = np.random.default_rng(seed)
    labels = np.zeros((8, 32, 32), np.uint8)
    for t in range(8):
        labels[t, 10:16, 4 + 2 * t : 12 + 2 * t] = lb.OBJECT
        labels[t, 2:11, 2 + 2 * t : 6 + 2 * t] = lb.ACTOR
    frames = lb.labels_to_rgb(labels) // 2 + rng.integers(0, 60, (8, 32, 32, 3), dtype=np.uint8)
    return InteractionClip(frames, labels, task=('push it', 'pull it')[seed % 2], source={'seed': seed})


class TestLossWeights:
    def test_foreground_is_where_a_mask_is_or_was(self):
        labels = np.zeros((2, 16, 16), np.uint8)
        labels[0, 0:4, 0:4] = lb.OBJECT
        labels[1, 12, 12] = lb.ACTOR
        weights = foreground_weight(labels, 4, 5.0)
        assert weights.shape == (2, 4, 4)
        assert weights[0].tolist() == [[5, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
        assert weights[1, 0, 0] == 5
        assert weights[1, 3, 3] == 5
        assert weights[1].sum() == 16 + 8

    def test_contact_band_has_the_papers_weight_and_nothing_else(self):
        labels = np.zeros((1, 16, 16), np.uint8)
        labels[0, 4:12, 0:8] = lb.OBJECT
        labels[0, 4:12, 8:16] = lb.ACTOR
        weights = contact_weight(labels, 4, 5.0, size=3)
        assert (weights[0, 1:3, 1:3] == 5).all()
        assert (weights[0][:, [0, 3]] == 1).all()


def test_damage_keeps_labels_and_changes_outlines():
    labels = moving_clip(0).labels
    for seed in range(6):
        damaged = damage_labels(labels, np.random.default_rng(seed))
        assert damaged.shape == labels.shape
        assert set(np.unique(damaged)) <= {0, 1, 2}
        assert (damaged != labels).any()


def test_goal_is_the_last_object_without_the_actor():
    labels = moving_clip(0).labels
    goal = lb.goal_labels(labels)
    assert set(np.unique(goal)) == {lb.BACKGROUND, lb.OBJECT}
    np.testing.assert_array_equal(goal == lb.OBJECT, labels[-1] == lb.OBJECT)


def test_arrays_refuse_clips_of_another_length(tmp_path):
    with pytest.raises(ValueError, match='expected 16 frames, got 8'):
        build_arrays([moving_clip(0)], 1, tmp_path, (32, 40))


class TestTrainer:
    def train(self, folder: Path, steps_a_run: list[int]) -> torch.Tensor:
        """Fit a line in several runs that each end after some steps; returns the weights."""
        for steps in steps_a_run:
            torch.manual_seed(0)
            trainer = Trainer(
                torch.nn.Linear(4, 2), folder, Schedule(steps=12, learning_rate=0.05, warmup_steps=2)
            )

            def loss_at(generator, trainer=trainer):
                x = torch.randn(8, 4, generator=generator)
                return {'loss': (trainer.model(x) - x[:, :2]).float().square().mean()}

            start = trainer.step

            def loss_until(generator, trainer=trainer, start=start, steps=steps):
                if trainer.step >= start + steps:
                    raise InterruptedError
                return loss_at(generator)

            try:
                trainer.run(loss_until)
            except InterruptedError:
                trainer.save()
        return torch.cat([p.detach().flatten() for p in trainer.averaged_model().parameters()])

    def test_a_stopped_run_continues_exactly(self, tmp_path):
        whole = self.train(tmp_path / 'whole', [12])
        parts = self.train(tmp_path / 'parts', [5, 3, 12])
        assert torch.equal(whole, parts)

    @pytest.mark.parametrize('killed_at', ['save_state', 'rename', 'rmtree'])
    def test_a_kill_while_saving_leaves_a_checkpoint(self, tmp_path, monkeypatch, killed_at):
        """The second save of a run dies at each of its calls in turn; what is on disk then is continued."""
        self.train(tmp_path, [5])

        def resumed() -> Trainer:
            torch.manual_seed(0)
            return Trainer(torch.nn.Linear(4, 2), tmp_path, Schedule(steps=12, learning_rate=0.05))

        for calls in range(4):
            trainer = resumed()
            assert trainer.step == 5 + calls
            trainer.step += 1
            left = [calls]

            def dying(original, left=left):
                def call(*arguments, **options):
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                    return original(*arguments, **options)

                return call

            with monkeypatch.context() as patch:
                owner = {'save_state': trainer.accelerator, 'rename': Path, 'rmtree': shutil}[killed_at]
                patch.setattr(owner, killed_at, dying(getattr(owner, killed_at)))
                with contextlib.suppress(KeyboardInterrupt):
                    trainer.save()
            assert resumed().step in (5 + calls, 6 + calls)
            trainer.save()

    def test_the_time_budget_ends_a_run(self, tmp_path):
        trainer = Trainer(torch.nn.Linear(1, 1), tmp_path, Schedule(steps=10**6, learning_rate=0.1))
        done = trainer.run(lambda g: {'loss': trainer.model(torch.ones(1, 1)).sum()}, max_minutes=0.02)
        assert not done
        assert 0 < trainer.step < 10**6


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A whole training run of a tiny configuration on six clips, from a real LeRobot dataset."""
    folder = tmp_path_factory.mktemp('run')
    for split, seeds in (('train', range(6)), ('test', range(6, 8))):
        with LeRobotClipWriter(folder / 'data' / split) as writer:
            for seed in seeds:
                writer.add(moving_clip(seed))
    config = yaml.safe_load(CONFIG.read_text())
    config.update(sample_size=[32, 48], num_frames=8, name='test-model')
    config['sampling']['num_inference_steps'] = 2
    config['autoencoder']['model'] = {
        'patch_size': 4,
        'block_out_channels': [8, 16],
        'latent_channels': 8,
        'norm_num_groups': 4,
    }
    config['unet'].update(
        block_out_channels=[8, 16], attention_resolutions=[2], attention_head_dim=8, norm_num_groups=4
    )
    config['image_projector'].update(hidden_dim=16, num_attention_heads=2, attention_head_dim=8, num_frames=8)
    for part in ('autoencoder', 'trajectory', 'video'):
        config[part]['schedule'].update(steps=3, warmup_steps=1)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    recipe = Recipe(folder / 'config.yaml', folder / 'data', folder / 'out')
    for part in ('autoencoder', 'trajectory', 'video'):
        assert recipe.train(part)
    recipe.assemble()
    return folder


def test_training_logs_losses_and_draws_samples(run):
    for part in ('autoencoder', 'trajectory', 'video'):
        assert list((run / 'out' / part).glob('sample_*.png'))
        assert (run / 'out' / part / 'checkpoint' / 'step.json').is_file()
        (last,) = map(json.loads, (run / 'out' / part / 'losses.jsonl').read_text().splitlines())
        assert last['step'] == 3
        assert 0 < last['loss'] < 100


def test_a_stage_does_not_continue_on_another_autoencoders_latents(run, tmp_path):
    shutil.copytree(run / 'out', tmp_path / 'out')
    recipe = Recipe(run / 'config.yaml', run / 'data', tmp_path / 'out')
    vae = PatchAutoencoderKL.from_pretrained(tmp_path / 'out/autoencoder/vae')
    torch.nn.init.zeros_(vae.quant_conv.bias)
    vae.save_pretrained(tmp_path / 'out/autoencoder/vae')
    with pytest.raises(ValueError, match=r'was trained with seed 0 on latents .* remove .*trajectory'):
        recipe.train('trajectory')


def test_arrays_follow_the_dataset(run, tmp_path):
    shutil.copytree(run / 'data', tmp_path / 'data')
    recipe = Recipe(run / 'config.yaml', tmp_path / 'data', tmp_path / 'out')
    assert len(recipe.arrays('test')) == 2
    with LeRobotClipWriter(tmp_path / 'data' / 'test') as writer:
        writer.add(moving_clip(8))
    assert len(recipe.arrays('test')) == 3


def test_a_dataset_without_splits_lends_every_tenth_episode_to_the_test(run, tmp_path):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for i in range(12):
            writer.add({'front': moving_clip(i), 'side': moving_clip(100 + i)})
    recipe = Recipe(run / 'config.yaml', tmp_path / 'data', tmp_path / 'out')
    train, test = recipe.arrays('train'), recipe.arrays('test')
    assert (len(train), len(test)) == (20, 4)  # two cameras each
    views = {hashlib.sha256(frames).digest() for frames in (*train.frames, *test.frames)}
    assert len(views) == 24


def test_data_without_masks_is_refused(run, tmp_path):
    clip = moving_clip(0)
    clip.labels = None
    with LeRobotClipWriter(tmp_path / 'data' / 'train') as writer:
        writer.add(clip)
    recipe = Recipe(run / 'config.yaml', tmp_path / 'data', tmp_path / 'out')
    with pytest.raises(ValueError, match='train has no masks to train on; `mask2iv segment`'):
        recipe.arrays('train')


def test_a_time_budget_ends_the_command_and_the_same_command_continues(run, tmp_path, capsys):
    shutil.copytree(run / 'data', tmp_path / 'data')
    command = ['train', str(tmp_path / 'data'), str(tmp_path / 'out'), '--config', str(run / 'config.yaml')]
    assert main([*command, '--max-minutes', '0']) == 0
    assert 'autoencoder: stopped' in capsys.readouterr().out
    assert not (tmp_path / 'out/trajectory').exists()
    assert main(command) == 0
    assert (tmp_path / 'out/model/model_index.json').is_file()


def test_trained_model_is_small_safetensors_and_generates(run):
    model = run / 'out' / 'model'
    files = list(model.rglob('*.safetensors'))
    assert len(files) == 5
    assert not list(model.rglob('*.bin'))
    pipeline = load_pipeline(model, 'cpu')
    assert pipeline.config.name == 'test-model'
    assert pipeline.trajectory_unet.dtype == torch.float32
    clip = moving_clip(9)
    framed = np.pad(clip.frames[:1], ((0, 0), (0, 0), (8, 8), (0, 0)))
    labels = np.pad(clip.labels[:1], ((0, 0), (0, 0), (8, 8)))
    out = pipeline(framed, labels, 'push it')
    assert out.frames.shape == (1, 8, 32, 48, 3)


def test_a_stage_without_its_autoencoder_says_so(run, tmp_path):
    with pytest.raises(FileNotFoundError, match='train the autoencoder first'):
        Recipe(run / 'config.yaml', run / 'data', tmp_path).train('trajectory')


class TestBrokenModels:
    def test_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ModelError, match='no model_index'):
            load_pipeline(tmp_path / 'nowhere', 'cpu')

    def test_corrupt_weights_are_named(self, run, tmp_path):
        model = tmp_path / 'model'
        shutil.copytree(run / 'out' / 'model', model)
        weights = next((model / 'video_unet').glob('*.safetensors'))
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelError, match='cannot load the model'):
            load_pipeline(model, 'cpu')

    def test_missing_weights_are_named(self, run, tmp_path):
        model = tmp_path / 'model'
        shutil.copytree(run / 'out' / 'model', model)
        next((model / 'vae').glob('*.safetensors')).unlink()
        with pytest.raises(ModelError, match=r'diffusion_pytorch_model.safetensors .*/vae'):
            load_pipeline(model, 'cpu')

    def test_a_missing_component_is_named(self, run, tmp_path):
        model = tmp_path / 'model'
        shutil.copytree(run / 'out' / 'model', model)
        shutil.rmtree(model / 'video_unet')
        with pytest.raises(ModelError, match='has no folder video_unet'):
            load_pipeline(model, 'cpu')

    def test_model_index_of_another_pipeline_is_refused(self, run, tmp_path):
        model = tmp_path / 'model'
        shutil.copytree(run / 'out' / 'model', model)
        index = json.loads((model / 'model_index.json').read_text())
        del index['vae']
        (model / 'model_index.json').write_text(json.dumps(index))
        with pytest.raises(ModelError):
            load_pipeline(model, 'cpu')
