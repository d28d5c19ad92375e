"""Training: losses look where they should, runs resume exactly, and what comes out is a working model."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mask2iv_ros import labels as lb
from mask2iv_ros.cli import main
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import open_dataset, split_episodes
from mask2iv_ros.data.lerobot import LeRobotClipWriter
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.pipelines.loading import ModelError, load_pipeline
from mask2iv_ros.training.arrays import build_arrays, stored_clips
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


def test_arrays_refuse_clips_of_another_length(tmp_path):
    with pytest.raises(ValueError, match='expected 16 frames, got 8'):
        build_arrays([moving_clip(0)], 1, tmp_path, (32, 40))


def test_arrays_are_cropped_to_where_the_object_is(tmp_path):
    whole = build_arrays([moving_clip(0)], 1, tmp_path / 'whole', (32, 32), 8)
    cropped = build_arrays([moving_clip(0)], 1, tmp_path / 'cropped', (16, 16), 8, short_side=32)
    np.testing.assert_array_equal(cropped.labels[0], whole.labels[0, :, 8:24, 4:20])


def test_goals_are_the_clips_own_or_what_is_seen_of_the_object_at_the_end(tmp_path):
    told, untold = moving_clip(0), moving_clip(1)
    told.goal = lb.combine_masks(told.labels[-1] == lb.OBJECT)
    told.goal[6:16, 18:26] = lb.OBJECT
    arrays = build_arrays([told, untold], 2, tmp_path, (32, 32), 8)
    np.testing.assert_array_equal(arrays.goals, [told.goal, lb.goal_labels(untold.labels)])
    assert (arrays.goals[0] != lb.goal_labels(told.labels)).any()


def test_arrays_that_were_killed_go_on_where_they_were(tmp_path):
    def clips(*seeds):
        for seed in seeds:
            if seed is None:
                raise KeyboardInterrupt
            yield moving_clip(seed)

    whole = build_arrays(clips(0, 1, 2, 3), 4, tmp_path / 'whole', (32, 40), 8)
    with pytest.raises(KeyboardInterrupt):
        build_arrays(clips(0, 1, None), 4, tmp_path / 'parts', (32, 40), 8)
    assert not (tmp_path / 'parts/index.json').exists()
    start = stored_clips(tmp_path / 'parts')
    assert start == 2
    parts = build_arrays(clips(2, 3), 4, tmp_path / 'parts', (32, 40), 8, start)
    assert (parts.digest, parts.tasks, parts.sources) == (whole.digest, whole.tasks, whole.sources)
    np.testing.assert_array_equal(parts.labels, whole.labels)


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
        return torch.cat([weights.flatten() for weights in trainer.final_state().values()])

    def test_a_stopped_run_continues_exactly(self, tmp_path):
        whole = self.train(tmp_path / 'whole', [12])
        parts = self.train(tmp_path / 'parts', [5, 3, 12])
        assert torch.equal(whole, parts)

    def test_a_changed_schedule_counts_from_the_resume_on(self, tmp_path):
        self.train(tmp_path, [4])  # which is stopped after one batch of the next step
        schedule = Schedule(
            steps=6,
            learning_rate=0.05,
            weight_decay=0.2,
            betas=(0.5, 0.6),
            ema_decay=0.7,
            gradient_accumulation_steps=2,
        )
        trainer = Trainer(torch.nn.Linear(4, 2), tmp_path, schedule)
        assert trainer.step == 4
        (group,) = trainer.optimizer.param_groups
        assert (group['weight_decay'], tuple(group['betas']), trainer.ema.decay) == (0.2, (0.5, 0.6), 0.7)
        is_last = []

        def loss_at(generator):
            is_last.append(trainer.accelerator.sync_gradients)
            return {'loss': trainer.model(torch.randn(8, 4, generator=generator)).float().square().mean()}

        assert trainer.run(loss_at)
        assert is_last == [False, True] * 2

    def test_facts_that_checkpoints_did_not_have_are_compared_from_then_on(self, tmp_path):
        def resumed(**objective) -> Trainer:
            return Trainer(torch.nn.Linear(4, 2), tmp_path, Schedule(3, 0.1), objective=objective)

        resumed(weight=1).save()
        resumed(weight=1, scheduler={'steps': 4}).save()
        with pytest.raises(
            ValueError, match=r"'scheduler': {'steps': 4}}, now it is {'scheduler': {'steps': 5}}"
        ):
            resumed(weight=1, scheduler={'steps': 5})

    def test_a_run_that_never_saved_leaves_no_losses(self, tmp_path):
        (tmp_path / 'losses.jsonl').write_text('{"step": 25}\n')
        trainer = Trainer(torch.nn.Linear(4, 2), tmp_path, Schedule(3, 0.1))
        assert not trainer.log_path.exists()

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

    def test_each_part_has_its_own_precision(self, tmp_path):
        for precision in ('bf16', 'no'):
            schedule = Schedule(steps=1, learning_rate='1e-3', mixed_precision=precision)
            trainer = Trainer(torch.nn.Linear(4, 2), tmp_path / precision, schedule)
            seen = []

            def loss_at(generator, trainer=trainer, seen=seen):
                with torch.no_grad():
                    seen.append(torch.nn.functional.linear(torch.ones(1, 4), torch.ones(2, 4)).dtype)
                return {'loss': trainer.model(torch.ones(1, 4)).float().sum()}

            assert trainer.run(loss_at)
            assert seen == [torch.bfloat16 if precision == 'bf16' else torch.float32]

    def test_the_time_budget_ends_a_run(self, tmp_path):
        trainer = Trainer(torch.nn.Linear(1, 1), tmp_path, Schedule(steps=10**6, learning_rate=0.1))
        done = trainer.run(lambda g: {'loss': trainer.model(torch.ones(1, 1)).sum()}, max_minutes=0.02)
        assert not done
        assert 0 < trainer.step < 10**6


class TestBestWeights:
    SCORES = (1.0, 3.0, float('nan'), 2.0, 3.0)

    def train(self, folder: Path, scores, seen: list | None = None, ema_decay: float | None = 0.9) -> Trainer:
        torch.manual_seed(0)
        schedule = Schedule(steps=10, learning_rate=0.05, warmup_steps=0, ema_decay=ema_decay)
        trainer = Trainer(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)), folder, schedule)

        def loss_at(generator):
            x = torch.randn(8, 4, generator=generator)
            return {'loss': (trainer.model(x) - x).float().square().mean()}

        def evaluate(step: int) -> dict[str, float]:
            torch.rand(100)  # whatever it draws
            if seen is not None:
                seen.append(trainer.model[0].weight.clone())
            return {'score': scores[step // 2 - 1]}

        assert trainer.run(loss_at, evaluate=evaluate if scores else None, evaluate_steps=2)
        return trainer

    @pytest.mark.parametrize('ema_decay', [0.9, None])
    def test_the_first_of_the_highest_scores_is_kept_and_exported(self, tmp_path, ema_decay):
        seen = []
        trainer = self.train(tmp_path, self.SCORES, seen, ema_decay)
        assert trainer.best == {'step': 4, 'score': 3.0}
        assert torch.equal(trainer.final_state(best=True)['0.weight'], seen[1])
        assert torch.equal(trainer.final_state()['0.weight'], seen[4])
        assert not torch.equal(seen[1], seen[4])

    def test_scores_do_not_change_the_training(self, tmp_path):
        states = [
            self.train(tmp_path / name, scores).final_state()
            for name, scores in (('with', self.SCORES), ('without', None))
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_without_scores_the_last_weights_are_the_best(self, tmp_path):
        trainer = self.train(tmp_path, None)
        assert trainer.best == {}
        assert torch.equal(trainer.final_state(best=True)['0.weight'], trainer.final_state()['0.weight'])

    def test_a_fresh_start_knows_nothing_of_the_best_before(self, tmp_path):
        self.train(tmp_path, self.SCORES)
        shutil.rmtree(tmp_path / 'checkpoint')
        trainer = self.train(tmp_path, [-1.0] * 5)
        assert trainer.best == {'step': 2, 'score': -1.0}

    @pytest.mark.parametrize('other', [{'seed': 1}, {'data': 'others'}, {'objective': {'weight': 2}}])
    def test_the_best_of_another_run_is_not_exported(self, tmp_path, other):
        trainer = self.train(tmp_path, self.SCORES)
        again = Trainer(torch.nn.Sequential(torch.nn.Linear(4, 4)), tmp_path, trainer.schedule)
        assert again.best == {'step': 4, 'score': 3.0}
        path = tmp_path / 'best/step.json'
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, 'run': {**record['run'], **other}}))
        again = Trainer(torch.nn.Sequential(torch.nn.Linear(4, 4)), tmp_path, trainer.schedule)
        assert again.best == {}
        assert torch.equal(again.final_state(best=True)['0.weight'], again.final_state()['0.weight'])

    def test_scores_of_other_settings_are_not_compared(self, tmp_path):
        def train(steps: int, score: float, clips: int) -> Trainer:
            torch.manual_seed(0)
            trainer = Trainer(torch.nn.Linear(4, 4), tmp_path, Schedule(steps=steps, learning_rate=0.05))

            def loss_at(generator):
                x = torch.randn(8, 4, generator=generator)
                return {'loss': trainer.model(x).float().square().mean()}

            assert trainer.run(
                loss_at, evaluate=lambda _: {'score': score}, evaluate_steps=2, scored={'clips': clips}
            )
            return trainer

        assert train(2, 3.0, clips=4).best == {'step': 2, 'score': 3.0}
        assert train(4, 2.0, clips=4).best == {'step': 2, 'score': 3.0}
        assert train(6, 1.0, clips=8).best == {'step': 6, 'score': 1.0}

    def test_scores_are_logged(self, tmp_path):
        self.train(tmp_path, self.SCORES)
        lines = [json.loads(line) for line in (tmp_path / 'losses.jsonl').read_text().splitlines()]
        assert [line['score'] for line in lines if line['step'] == 4] == [3.0]
        assert list((tmp_path / 'tensorboard').glob('events*'))


class TestSchedule:
    def test_a_cosine_falls_to_two_percent(self):
        schedule = Schedule(steps=100, learning_rate=1.0, warmup_steps=10)
        rates = [schedule.learning_rate_at(step) for step in range(101)]
        assert rates[0] == 0.1
        assert rates[10] == max(rates) == 1
        assert rates[100] == pytest.approx(0.02)

    def test_a_constant_rate_stays(self):
        schedule = Schedule(steps=100, learning_rate=0.5, warmup_steps=0, decay='constant')
        assert {schedule.learning_rate_at(step) for step in range(100)} == {0.5}

    @pytest.mark.parametrize(
        'wrong',
        [
            {'decay': 'linear'},
            {'mixed_precision': 'fp8'},
            {'steps': '100'},
            {'steps': 0},
            {'learning_rate': 'fast'},
            {'warmup_steps': -1},
        ],
    )
    def test_what_it_does_not_know_is_refused(self, wrong):
        with pytest.raises(ValueError, match='expected'):
            Schedule(**{'steps': 1, 'learning_rate': 1.0, **wrong})


TWO_PROCESSES = """
import json, os, signal, sys, torch
from pathlib import Path
from accelerate import PartialState
from mask2iv_ros.training.trainer import Schedule, Trainer

state = PartialState(cpu=True)
folder = Path(sys.argv[1])
torch.manual_seed(0)
schedule = Schedule(9, 0.05, ema_decay=None, gradient_accumulation_steps=2)
trainer = Trainer(torch.nn.Linear(4, 2), folder, schedule)
drawn = []

def loss_at(generator):
    x = torch.randn(8, 4, generator=generator)
    drawn.append(x.sum().item())
    if trainer.step == 3 and state.process_index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return {'loss': (trainer.model(x) - x[:, :2]).float().square().mean()}

done = trainer.run(loss_at, evaluate=lambda step: {'score': 1.0}, evaluate_steps=2)
weights = trainer.final_state()['weight'].tolist()
result = {'step': trainer.step, 'done': done, 'drawn': drawn, 'weights': weights}
(folder / f'result_{state.process_index}.json').write_text(json.dumps(result))
"""


def test_two_processes_see_different_batches_and_stay_one_model(tmp_path):
    """A signal to the second stops both at the same step; the first alone scores and writes."""
    (tmp_path / 'script.py').write_text(TWO_PROCESSES)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    run = subprocess.run(
        [*command, str(tmp_path / 'script.py'), str(tmp_path / 'out')],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    first, second = (json.loads((tmp_path / f'out/result_{rank}.json').read_text()) for rank in range(2))
    assert (first['step'], first['done']) == (second['step'], second['done']) == (4, False)
    assert json.loads((tmp_path / 'out/checkpoint/step.json').read_text())['step'] == 4
    assert len(first['drawn']) == len(second['drawn']) == 8
    assert not set(first['drawn']) & set(second['drawn'])
    assert first['weights'] == second['weights']
    lines = [json.loads(line) for line in (tmp_path / 'out/losses.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [2, 4]


TWO_AUTOENCODERS = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.training import autoencoder
from mask2iv_ros.training.arrays import ClipArrays
from mask2iv_ros.training.latents import weights_id
from mask2iv_ros.training.trainer import Schedule, Trainer

state = PartialState(cpu=True)
folder = Path(sys.argv[1])

class KeptTrainer(Trainer):
    def final_state(self, best=False):
        (folder / f'weights_{state.process_index}').write_text(weights_id(self.model.module))
        return super().final_state(best)

autoencoder.Trainer = KeptTrainer
sizes = {'block_out_channels': [4, 4], 'latent_channels': 4, 'norm_num_groups': 2}
schedule = Schedule(2, 0.01, warmup_steps=0, ema_decay=None, mixed_precision='no')
arrays = ClipArrays.load(folder / 'arrays')
options = autoencoder.AutoencoderOptions(batch_size=12)
torch.manual_seed(0)
vae = PatchAutoencoderKL(**sizes)
autoencoder.train_autoencoder(arrays, folder / 'vae', vae, schedule, options)
"""


def test_two_processes_train_one_autoencoder(tmp_path):
    build_arrays([moving_clip(seed) for seed in range(2)], 2, tmp_path / 'arrays', (32, 32), 8)
    (tmp_path / 'script.py').write_text(TWO_AUTOENCODERS)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    run = subprocess.run(
        [*command, str(tmp_path / 'script.py'), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    first, second = ((tmp_path / f'weights_{rank}').read_text() for rank in range(2))
    assert first == second


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A whole training run of a tiny configuration on six clips, from a real LeRobot dataset."""
    folder = tmp_path_factory.mktemp('run')
    for split, seeds in (('train', range(6)), ('test', range(6, 8))):
        with LeRobotClipWriter(folder / 'data' / split) as writer:
            for seed in seeds:
                writer.add(moving_clip(seed))
    config = yaml.safe_load(CONFIG.read_text())
    config.update(sample_size=[32, 48], num_frames=8, name='test-model', validation={'clips': 2})
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
        lines = [json.loads(line) for line in (run / 'out' / part / 'losses.jsonl').read_text().splitlines()]
        assert {line['step'] for line in lines} == {3}
        assert 0 < lines[0]['loss'] < 100
        assert list((run / 'out' / part / 'tensorboard').iterdir())


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
    splits = [recipe.arrays(split) for split in ('train', 'val', 'test')]
    assert [len(arrays) for arrays in splits] == [18, 2, 4]  # two cameras each
    views = {hashlib.sha256(frames).digest() for arrays in splits for frames in arrays.frames}
    assert len(views) == 24


def test_what_was_made_of_one_demonstration_is_on_one_side_of_each_split(run, tmp_path):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        for i in range(12):
            clip = moving_clip(i)
            clip.source['augmentation'] = {'split_group': f'demos/{i // 3}'}
            writer.add(clip)
    recipe = Recipe(run / 'config.yaml', tmp_path / 'data', tmp_path / 'out')
    sides = {split: recipe._episodes(split)[1] for split in ('train', 'val', 'test')}
    assert {split: len(side) for split, side in sides.items()} == {'train': 6, 'val': 3, 'test': 3}
    demonstrations = [{i // 3 for i in side} for side in sides.values()]
    assert sorted(number for side in demonstrations for number in side) == [0, 1, 2, 3]
    assert split_episodes(open_dataset(tmp_path / 'data')) == (list(range(3, 12)), sides['test'])


def test_one_episode_is_trained_and_tested_on(run, tmp_path):
    with LeRobotClipWriter(tmp_path / 'data') as writer:
        writer.add(moving_clip(1))
    recipe = Recipe(run / 'config.yaml', tmp_path / 'data', tmp_path / 'out')
    assert [recipe._episodes(split)[1] for split in ('train', 'val', 'test')] == [[0]] * 3


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
    pipeline = load_pipeline(model, 'cpu', torch.float32)
    assert pipeline.config.name == 'test-model'
    assert pipeline.trajectory_unet.dtype == torch.float32
    clip = moving_clip(9)
    framed = np.pad(clip.frames[:1], ((0, 0), (0, 0), (8, 8), (0, 0)))
    labels = np.pad(clip.labels[:1], ((0, 0), (0, 0), (8, 8)))
    out = pipeline(framed, labels, 'push it')
    assert out.frames.shape == (1, 8, 32, 48, 3)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'batchsize': 3}, r"autoencoder: .* unexpected keyword argument 'batchsize'"),
        ({'keep_latents': 0.5}, 'keep_latents: there is no model'),
        ({'batch_size': 1}, 'batch_size: expected a whole number of at least 3, got 1'),
        ({'model': {'patchsize': 4}}, r"autoencoder: model: .* unexpected keyword argument 'patchsize'"),
        ({'schedule': {'steps': '100', 'learning_rate': 1}}, "steps: expected a whole .* got '100'"),
    ],
)
def test_an_autoencoders_options_are_checked_before_anything_runs(tmp_path, change, message):
    config = yaml.safe_load(CONFIG.read_text())
    config['autoencoder'] |= change
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=message):
        Recipe(tmp_path / 'config.yaml', tmp_path, tmp_path / 'out')


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
