"""The pipelines: save and load, seeds, inputs, callbacks, and one frame's rules."""

import copy

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.pipelines import pipeline_utils
from transformers.utils import logging

from mask2iv_ros import labels as lb
from mask2iv_ros.models.text_encoder import PackagedTextEncoder
from mask2iv_ros.pipelines import (
    InteractionVideoPipeline,
    Mask2IVPipeline,
    MaskTrajectoryPipeline,
    ModelError,
    components,
    load_pipeline,
)
from mask2iv_ros.pipelines.components import encode_images, images_to_tensor, keep_observed, tensor_to_images
from mask2iv_ros.pipelines.interaction_video import anchored_windows, stretch_noise
from mask2iv_ros.pipelines.mask_trajectory import trajectory_condition
from tiny_model import build_tiny_model, build_tiny_pipeline


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


def test_the_vae_sees_a_bounded_number_of_pixels_at_once(pipeline, monkeypatch):
    images = np.random.default_rng(1).integers(0, 255, (1, 5, 32, 48, 3), dtype=np.uint8)
    latents = encode_images(pipeline.vae, images, torch.device('cpu'))
    decoded = components.decode_latents(pipeline.vae, latents)
    sizes = []
    hooks = [
        getattr(pipeline.vae, part).register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        for part in ('encoder', 'decoder')
    ]
    monkeypatch.setattr(components, 'VAE_PIXELS', 2 * 32 * 48)
    torch.testing.assert_close(encode_images(pipeline.vae, images, torch.device('cpu')), latents)
    np.testing.assert_allclose(components.decode_latents(pipeline.vae, latents), decoded, atol=1)
    for hook in hooks:
        hook.remove()
    assert sizes == [2, 2, 1] * 2


def test_samples_of_one_request_share_what_is_encoded(scene):
    """A text once for all calls; stage 1 a frame and a mask, stage 2 a frame and all masks."""
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    texts, images = [], []
    pipeline.text_encoder.register_forward_pre_hook(lambda _, args: texts.append(args[0]))
    pipeline.vae.encoder.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    samples = {name: np.repeat(value, 3, axis=0) for name, value in scene.items()}
    for _ in range(2):
        pipeline(**samples, task='open the drawer', generator=[seeded(i) for i in range(3)])
    assert texts == [['open the drawer'], ['']]
    assert images == [2, 1, 3 * 8] * 2


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


def test_guidance_goes_on_from_the_prediction_without_text_and_goal(pipeline, scene):
    noise = torch.randn(1, 4, 8, 4, 6, generator=seeded())
    goal = np.roll(scene['labels'], 8, axis=-1)

    stage = pipeline.trajectory
    stage.register_to_config(goal_guidance=3.0)

    def latents(task: str, goal: np.ndarray | None, scale: float | None) -> torch.Tensor:
        options = {'num_inference_steps': 1, 'eta': 0.0, 'output_type': 'latent', 'latents': noise}
        return stage(**scene, task=task, goal=goal, guidance_scale=scale, **options).labels

    plain, without = latents('open', goal, 1.0), latents('', None, 1.0)
    torch.testing.assert_close(latents('open', goal, 0.0), without, rtol=1e-3, atol=1e-3)
    guided = without + 3 * (plain - without)
    torch.testing.assert_close(latents('open', goal, 3.0), guided, rtol=1e-3, atol=1e-3)
    assert torch.equal(latents('open', goal, None), latents('open', goal, 3.0))
    assert torch.equal(latents('open', None, None), latents('open', None, 1.0))
    assert not torch.allclose(plain, without)


def test_save_and_load_gives_the_same_answers(pipeline, scene, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(pipeline_utils.logger, 'warning', warnings.append)
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob('*.bin'))
    assert list(tmp_path.rglob('*.safetensors'))
    loaded = Mask2IVPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert not warnings
    expected, got = (
        {key: value for key, value in p.config.items() if not key.startswith('_')} for p in (pipeline, loaded)
    )
    assert got == expected
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


def test_loading_the_text_encoder_leaves_progress_bars_as_they_were():
    for switch, enabled in ((logging.disable_progress_bar, False), (logging.enable_progress_bar, True)):
        switch()
        PackagedTextEncoder()
        assert logging.is_progress_bar_enabled() == enabled


def test_progress_bars_carry_the_stage_unless_they_are_told_otherwise():
    pipeline = build_tiny_pipeline()
    assert pipeline.video.progress_bar(total=1).desc.startswith('video')
    pipeline.set_progress_bar_config(desc='mine')
    assert pipeline.video.progress_bar(total=1).desc.startswith('mine')


def test_latents_are_given_on_request(pipeline, scene):
    out = pipeline(**scene, task='x', generator=seeded(), output_type='latent')
    assert out.frames.shape == (1, 4, 8, 4, 6)
    assert out.frames.is_floating_point()
    assert out.labels.shape == (1, 8, 32, 48)


@pytest.mark.parametrize('device', ['cpu', *(['cuda'] if torch.cuda.is_available() else [])])
def test_offloaded_models_go_back_to_the_cpu(scene, device):
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(**scene, task='x', generator=seeded()).frames
    pipeline.enable_model_cpu_offload(device=device)
    used = pipeline._all_hooks
    got = pipeline(**scene, task='x', generator=seeded()).frames
    assert np.abs(got - expected.astype(int)).mean() < 1
    assert pipeline._all_hooks is not used  # diffusers offloads everything when it sets new hooks
    assert {parameter.device.type for parameter in pipeline.vae.parameters()} == {'cpu'}


def test_pixels_go_where_an_offloaded_vae_runs(scene):
    vae, meta = build_tiny_pipeline().vae, torch.device('meta')
    cpu_offload_with_hook(vae, meta)
    assert encode_images(vae, scene['image'][:, None], meta).device == meta


def test_pixels_and_images_are_the_same_numbers():
    images = np.arange(256 * 3, dtype=np.uint8).reshape(2, 8, 16, 3)
    pixels = images_to_tensor(images)
    assert pixels.shape == (2, 3, 8, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    np.testing.assert_array_equal(tensor_to_images(pixels), images)
    np.testing.assert_array_equal(tensor_to_images(pixels * 9) == 255, images > 141)


def test_callback_sees_every_step_of_both_stages(pipeline, scene):
    calls = []
    pipeline(
        **scene, task='x', callback_on_step_end=lambda pipe, i, t, tensors: calls.append((pipe.stage, i))
    )
    assert calls == [('trajectory', 0), ('trajectory', 1), ('video', 0), ('video', 1)]


@pytest.mark.parametrize(('length', 'size'), [(16, 16), (17, 16), (48, 16), (96, 16), (40, 4), (3, 3)])
def test_windows_make_every_frame_once_between_frames_that_are_there(length, size):
    windows = anchored_windows(length, size)
    made = np.concatenate([frames[~known] for frames, known in windows])
    assert sorted(made) == list(range(length))
    first, known = windows[0]
    assert (first[0], first[-1]) == (0, length - 1)
    assert not known.any()
    done = set(first)
    for frames, known in windows[1:]:
        assert len(frames) == size
        assert (np.diff(frames) > 0).all()
        assert frames[0] == 0
        assert known[0]
        assert known[-1]
        assert known[1] or frames[1] == 1
        inside = done & set(range(frames[1], frames[-2] + 1))
        assert inside <= set(frames[known])  # none is passed over
        done |= set(frames)


def test_noise_between_key_frames_keeps_its_variance_and_turns_slowly():
    keys = torch.randn(1, 4, 16, 32, 32, generator=seeded())
    noise = stretch_noise(keys, 46)
    torch.testing.assert_close(noise[:, :, ::3], keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise.var(dim=(0, 1, 3, 4)), torch.ones(46), rtol=0.1, atol=0)
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean(dim=(0, 1, 3, 4))
    assert neighbours.min() > 0.6


@pytest.mark.parametrize(('length', 'size'), [(15, 16), (4, 3)])
def test_windows_that_cannot_be_are_refused(length, size):
    with pytest.raises(ValueError, match=f'expected {size} frames.*, got {length}'):
        anchored_windows(length, size)


@pytest.mark.parametrize('residual_scale', [None, 2.0])
def test_a_long_clip_begins_as_its_key_frames_and_counts_all_steps(pipeline, scene, residual_scale):
    stage = pipeline.video
    stage.register_to_config(residual_scale=residual_scale)
    labels = np.repeat(scene['labels'][:, None], 20, axis=1)
    labels[:, 10:] = np.roll(labels[:, 10:], 5, axis=-1)
    calls = []
    noise = stage(scene['image'], labels, generator=seeded(), output_type='latent').frames
    frames = stage(
        scene['image'],
        labels,
        latents=noise,
        eta=0.0,
        callback_on_step_end=lambda pipe, step, *_: calls.append((step, pipe.num_timesteps)),
    ).frames
    assert frames.shape == (1, 20, *scene['image'].shape[1:])
    windows = anchored_windows(20, 8)
    total = 2 * len(windows)
    assert calls == [(step, total) for step in range(total)]
    keys, _ = windows[0]
    short = stage(scene['image'], labels[:, keys], latents=noise[:, :, keys], eta=0.0).frames
    assert np.abs(frames[:, keys].astype(int) - short).max() <= 1


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
        ({'image': np.zeros((1, 30, 44, 3), np.uint8)}, 'image: .*multiples of 16, got 30 x 44'),
        ({'output_type': 'pil'}, "output_type: expected 'np' or 'latent', got 'pil'"),
        # Known to stage 1 alone: refused before stage 1 has run for nothing.
        ({'callback_on_step_end_tensor_inputs': ('latents', 'first')}, r"expected some of .*got \['first'\]"),
    ],
)
def test_wrong_inputs_are_named(pipeline, scene, change, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{'callback_on_step_end': None, **scene, **change})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'image': np.zeros((1, 30, 44, 3), np.uint8)}, 'image: .*multiples of 16'),
        ({'labels': np.zeros((1, 7, 32, 48), np.uint8)}, 'labels: expected at least 8 frames, got 7'),
        ({'output_type': 'pil'}, 'output_type'),
        ({'callback_on_step_end_tensor_inputs': ('first',)}, "got \\['first'\\]"),
    ],
)
def test_wrong_inputs_of_stage_2_are_named(pipeline, scene, change, message):
    labels = np.repeat(scene['labels'][:, None], 8, axis=1)
    with pytest.raises(ValueError, match=message):
        pipeline.video(**{'image': scene['image'], 'labels': labels, **change})


def test_goal_condition_has_first_mask_zeros_and_goal():
    first, goal, image = (torch.full((2, 4, 3, 5), float(i)) for i in (1, 2, 3))
    condition = trajectory_condition(first, goal, image, 6, False)
    assert condition.shape == (2, 8, 6, 3, 5)
    assert (condition[:, :4, 0] == 1).all()
    assert (condition[:, :4, 1:-1] == 0).all()
    assert (condition[:, :4, -1] == 2).all()
    assert (condition[:, 4:] == 3).all()
    assert (trajectory_condition(first, None, image, 6, False)[:, :4] == 1).all()


def test_a_goal_with_channels_of_its_own_is_seen_in_all_frames():
    first, goal, image = (torch.full((2, 4, 3, 5), float(i)) for i in (1, 2, 3))
    with_goal = trajectory_condition(first, goal, image, 6, True)
    without = trajectory_condition(first, None, image, 6, True)
    assert with_goal.shape == without.shape == (2, 12, 6, 3, 5)
    for channels, value in ((slice(4), 1), (slice(4, 8), 3)):
        assert (with_goal[:, channels] == value).all()
        assert (without[:, channels] == value).all()
    nearness = torch.linspace(0, 1, 6)[:, None, None]
    torch.testing.assert_close(with_goal[:, 8:], (2 * nearness).expand(2, 4, 6, 3, 5))
    assert (without[:, 8:] == 0).all()


def test_new_goal_channels_change_nothing_until_they_are_trained(pipeline, scene):
    stage = copy.deepcopy(pipeline).trajectory
    goal = np.roll(lb.without_actor(scene['labels']), 8, axis=2)

    def predict(**more) -> torch.Tensor:
        return stage(**scene, task='open', generator=seeded(), output_type='latent', **more).labels

    before = predict()
    stage.unet.widen_input(4)
    assert stage.goal_channels
    torch.testing.assert_close(predict(goal=goal), before)
    torch.nn.init.normal_(stage.unet.conv_in.weight[:, -4:])
    torch.testing.assert_close(predict(), before)  # without a goal they are zero
    assert (predict(goal=goal) - before).abs().max() > 1e-3


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


def test_weights_that_give_nan_are_an_error(tmp_path):
    pipeline = load_pipeline(build_tiny_model(tmp_path), 'cpu')
    next(pipeline.trajectory_unet.parameters()).data.fill_(float('nan'))
    height, width = pipeline.config.sample_size
    image = np.zeros((1, height, width, 3), np.uint8)
    labels = np.zeros((1, height, width), np.uint8)
    labels[:, 4:12, 4:12] = 1
    with pytest.raises(FloatingPointError, match='not finite'):
        pipeline(image, labels, 'open')


def test_with_low_memory_weights_take_a_byte_and_answers_hardly_change(tmp_path, scene):
    made = build_tiny_pipeline()
    for parameter in made.video_unet.parameters():  # some begin as zeros
        torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(tmp_path)
    plain, small = (load_pipeline(tmp_path, 'cpu', torch.float32, low_memory) for low_memory in (False, True))
    sizes = [sum(p.numel() * p.element_size() for p in x.video_unet.parameters()) for x in (plain, small)]
    assert sizes[1] < 0.4 * sizes[0]
    assert small.video_unet.time_embedding.linear_1.weight.dtype == torch.float32
    labels = scene['labels'][:, None].repeat(8, 1)
    expected, got = (
        x.video(scene['image'], labels, generator=seeded(), output_type='latent').frames
        for x in (plain, small)
    )
    assert 0 < (got - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_folder_of_another_pipeline_is_named(tmp_path):
    (tmp_path / 'model_index.json').write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match='expected a Mask2IVPipeline, got a StableDiffusionPipeline'):
        load_pipeline(tmp_path, 'cpu')


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="device 'banana': expected 'auto', 'cpu'"):
        load_pipeline('', 'banana')
