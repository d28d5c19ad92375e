"""The pipelines: save and load, seeds, inputs, callbacks, and one frame's rules."""

import numpy as np
import pytest
import torch

from mask2iv_ros import labels as lb
from mask2iv_ros.pipelines.components import keep_observed
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline, trajectory_condition
from tiny_model import build_tiny_pipeline


@pytest.fixture(scope='module')
def pipeline() -> Mask2IVPipeline:
    pipeline = build_tiny_pipeline()
    # Layers that start at zero would hide text and image from the output, and make tests trivially true.
    torch.manual_seed(1)
    for unet in (pipeline.trajectory_unet, pipeline.video_unet):
        for parameter in unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def scene() -> dict:
    labels = np.zeros((1, 32, 48), np.uint8)
    labels[0, 8:20, 8:24] = lb.OBJECT
    labels[0, 2:10, 30:40] = lb.ACTOR
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3), dtype=np.uint8)
    return {'image': image, 'labels': labels}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_answer_has_all_frames_and_keeps_the_observation(pipeline, scene):
    out = pipeline(**scene, task='open the drawer', generator=seeded())
    assert out.labels.shape == (1, 8, 32, 48)
    assert out.frames.shape == (1, 8, 32, 48, 3)
    np.testing.assert_array_equal(out.labels[:, 0], scene['labels'])
    np.testing.assert_array_equal(out.frames[:, 0], scene['image'])


def test_same_seed_gives_the_same_answer_and_another_seed_another(pipeline, scene):
    first, again, other = (pipeline(**scene, task='x', generator=seeded(s)).frames for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_text_and_goal_both_change_the_answer(pipeline, scene):
    goal = np.roll(np.where(scene['labels'] == lb.OBJECT, lb.OBJECT, 0).astype(np.uint8), 12, axis=2)
    latents = [
        pipeline.trajectory(**scene, **given, generator=seeded(), output_type='latent').labels
        for given in (
            {'task': 'open'},
            {'task': 'push it left'},
            {'goal': goal},
            {'task': 'open', 'goal': goal},
        )
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.equal(latents[i], latents[j])


def test_save_and_load_gives_the_same_answers(pipeline, scene, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob('*.bin'))
    assert list(tmp_path.rglob('*.safetensors'))
    loaded = Mask2IVPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert dict(loaded.config) == {**pipeline.config, '_name_or_path': str(tmp_path)} or (
        loaded.config.name == pipeline.config.name
    )
    expected, got = (p(**scene, task='open', generator=seeded()) for p in (pipeline, loaded))
    np.testing.assert_array_equal(expected.labels, got.labels)
    np.testing.assert_array_equal(expected.frames, got.frames)


def test_each_stage_saves_and_loads_alone(pipeline, tmp_path):
    for stage, stage_class in (
        (pipeline.trajectory, MaskTrajectoryPipeline),
        (pipeline.video, InteractionVideoPipeline),
    ):
        stage.save_pretrained(tmp_path / stage.stage)
        loaded = stage_class.from_pretrained(tmp_path / stage.stage)
        assert loaded.config.num_frames == stage.config.num_frames


def test_callback_sees_every_step_of_both_stages(pipeline, scene):
    calls = []
    pipeline(
        **scene, task='x', callback_on_step_end=lambda pipe, i, t, tensors: calls.append((pipe.stage, i))
    )
    assert calls == [('trajectory', 0), ('trajectory', 1), ('video', 0), ('video', 1)]


def test_exception_in_the_callback_stops_between_two_steps(pipeline, scene):
    class StopError(Exception):
        pass

    steps = []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        raise StopError

    with pytest.raises(StopError):
        pipeline(**scene, task='x', callback_on_step_end=stop)
    assert steps == [0]


def test_samples_of_a_batch_equal_single_calls(pipeline, scene):
    two = {key: np.repeat(value, 2, axis=0) for key, value in scene.items()}
    batch = pipeline.trajectory(
        **two, task='x', generator=[seeded(3), seeded(4)], output_type='latent'
    ).labels
    single = pipeline.trajectory(**scene, task='x', generator=[seeded(4)], output_type='latent').labels
    torch.testing.assert_close(batch[1:], single, rtol=1e-3, atol=1e-3)


def test_bfloat16_runs_and_stays_close(pipeline, scene):
    kwargs = {**scene, 'task': 'x', 'output_type': 'latent'}
    expected = pipeline.trajectory(**kwargs, generator=seeded()).labels
    half = build_tiny_pipeline().trajectory
    half.unet.load_state_dict(pipeline.trajectory_unet.state_dict())
    half.unet.to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    got = half(**kwargs, generator=seeded()).labels
    assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': np.zeros((1, 32, 48, 4), np.uint8)}, 'image: expected uint8'),
        ({'image': np.zeros((1, 32, 48, 3), np.float32)}, 'got float32'),
        ({'labels': np.zeros((1, 16, 48), np.uint8)}, r'labels: expected uint8 \(1, 32, 48\)'),
        ({'labels': np.full((1, 32, 48), 9, np.uint8)}, 'label ids'),
        ({'goal': np.zeros((2, 32, 48), np.uint8)}, 'goal: expected uint8'),
        ({'task': ['a', 'b']}, 'task: expected one text or 1, got 2'),
    ],
)
def test_wrong_inputs_are_named(pipeline, scene, change, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{**scene, **change})


def test_goal_condition_has_first_mask_zeros_and_goal():
    first, goal = torch.ones(2, 4, 3, 5), torch.full((2, 4, 3, 5), 2.0)
    condition = trajectory_condition(first, goal, 6)
    assert condition.shape == (2, 4, 6, 3, 5)
    assert (condition[:, :, 0] == 1).all()
    assert (condition[:, :, 1:-1] == 0).all()
    assert (condition[:, :, -1] == 2).all()
    assert (trajectory_condition(first, None, 6) == 1).all()


def test_residual_target_of_zero_repeats_the_first_mask(pipeline, scene):
    config = {**pipeline.config, 'trajectory_residual_scale': 2.0}
    stage = Mask2IVPipeline(
        **pipeline.components, **{key: config[key] for key in ('num_frames', 'trajectory_residual_scale')}
    ).trajectory
    first = torch.randn(1, 4, 4, 6)
    labels = stage.latents_to_labels(torch.zeros(1, 4, 8, 4, 6), first, scene['labels'])
    assert (labels == scene['labels'][:, None]).all()


def test_observed_pixels_are_kept_where_nothing_changed():
    rng = np.random.default_rng(0)
    observed = rng.integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    first = rng.integers(0, 150, (1, 6, 8, 3), dtype=np.uint8)
    decoded = np.repeat(first[:, None], 3, axis=1)
    decoded[:, 1, :, :4] += 100
    kept = keep_observed(decoded, first, observed)
    np.testing.assert_array_equal(kept[:, [0, 2]], np.repeat(observed[:, None], 2, axis=1))
    np.testing.assert_array_equal(kept[:, 1, :, 4:], observed[:, :, 4:])
    np.testing.assert_array_equal(kept[:, 1, :, :4], decoded[:, 1, :, :4])
