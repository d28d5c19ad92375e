"""Requests in image pixels to plans in the same pixels, and their lift to 3-D."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import Camera
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines.interaction_video import anchored_windows
from mask2iv_ros.planning import generate
from mask2iv_ros.planning.generate import (
    AGREEMENT,
    PERMANENCE,
    Cancelled,
    generate_plans,
    object_permanence,
    sample_agreement,
    warm_up,
)
from mask2iv_ros.planning.motion import mask_motion, restore_motion
from mask2iv_ros.planning.request import (
    GenerationRequest,
    InvalidRequest,
    Plan,
    move_mask,
    plan_facts,
    plan_to_clip,
)
from tiny_model import build_tiny_pipeline


@pytest.fixture(scope='module')
def pipeline():
    pipeline = build_tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def request(height: int = 90, width: int = 160, **change) -> GenerationRequest:
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 2, width // 3 : width // 2] = True
    actor = np.zeros((height, width), bool)
    actor[: height // 4, width // 2 :] = True
    frame = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return GenerationRequest(
        **{'frame': frame, 'object_mask': mask, 'actor_mask': actor, 'task': 'open', **change}
    )


@pytest.mark.parametrize('size', [(90, 160), (480, 640), (64, 32), (101, 203)])
def test_plan_has_the_pixel_frame_of_the_image(pipeline, size):
    asked = request(*size)
    (plan,) = generate_plans(pipeline, asked)
    assert plan.labels.shape == (8, *size)
    assert plan.frames.shape == (8, *size, 3)
    np.testing.assert_array_equal(plan.frames[0], asked.frame)
    np.testing.assert_array_equal(plan.labels[0], lb.combine_masks(asked.object_mask, asked.actor_mask))
    assert set(plan.timings) == {'preprocess', 'trajectory', 'video', 'postprocess'}
    assert 0 <= plan.score <= 1
    assert plan.score_meaning == PERMANENCE


def test_a_long_plan_takes_the_same_time_with_more_frames(pipeline):
    steps = []
    long = request(num_frames=22)
    (plan,) = generate_plans(pipeline, long, lambda stage, step, total, _: steps.append((stage, step, total)))
    (short,) = generate_plans(pipeline, request())
    assert len(plan.labels) == len(plan.frames) == 22
    assert plan.fps == round(short.fps * 21 / 7)
    np.testing.assert_array_equal(plan.labels[::3], short.labels)
    total = 2 * len(anchored_windows(22, 8))
    assert [(step, total) for stage, step, total in steps if stage == 'video'][-1] == (total, total)
    with pytest.raises(InvalidRequest, match='num_frames 5, expected at least the 8'):
        generate_plans(pipeline, request(num_frames=5))


def test_trajectory_only_has_no_video(pipeline):
    asked = request(trajectory_only=True)
    (plan,) = generate_plans(pipeline, asked)
    assert plan.frames is None
    with pytest.raises(ValueError, match='no video'):
        plan_to_clip(plan, asked)


@pytest.mark.parametrize('size', [(90, 160), (480, 640), (101, 203)])
def test_motion_is_in_the_pixels_of_the_image(pipeline, size):
    asked = request(*size)
    (plan,) = generate_plans(pipeline, asked)
    pixel = max(1, size[0] / 32, size[1] / 48)  # of the model, in source pixels
    assert len(plan.motion) == 8
    np.testing.assert_allclose(plan.motion.position[0], lb.centroid(asked.object_mask), atol=pixel / 2)
    np.testing.assert_allclose(plan.motion.actor_centroid[0], lb.centroid(asked.actor_mask), atol=pixel / 2)
    assert plan.motion.area[0] == pytest.approx(asked.object_mask.sum(), rel=0.3)
    assert plan.position_spread is None


def test_samples_tell_how_far_they_stray_from_each_other(pipeline):
    plans = generate_plans(pipeline, request(num_samples=3, trajectory_only=True))
    positions = np.stack([plan.motion.position for plan in plans])
    for plan in plans:
        np.testing.assert_allclose(
            plan.position_spread, np.sqrt(positions.var(axis=0, ddof=1).sum(axis=1)), atol=1e-9
        )
    assert plans[0].position_spread[0] == 0  # the observation is the same
    assert plans[0].position_spread.max() > 0


def test_the_facts_of_a_plan_are_json_with_none_for_the_unknown(pipeline):
    (plan,) = generate_plans(pipeline, request(actor_mask=None, trajectory_only=True))
    plan.motion.rotation[3] = np.nan
    facts = json.loads(json.dumps(plan_facts(plan), allow_nan=False))
    assert [facts[key] for key in ('seed', 'task', 'contact_frame')] == [0, 'open', plan.motion.contact_frame]
    assert len(facts['motion']) == 8
    first = facts['motion'][0]
    assert first['phase'] == 'approach'
    np.testing.assert_allclose(first['position'], plan.motion.position[0])
    assert first['position_spread'] is None
    assert first['actor_position'] == [None, None]
    assert facts['motion'][3]['rotation'] is None


def test_samples_have_their_own_seeds_and_come_best_first(pipeline, monkeypatch):
    monkeypatch.setattr(generate, 'sample_agreement', lambda labels: np.array([0.2, 0.9, 0.5]))
    plans = generate_plans(pipeline, request(num_samples=3, seed=7, trajectory_only=True))
    assert [(plan.seed, plan.score) for plan in plans] == [(8, 0.9), (9, 0.5), (7, 0.2)]


def test_a_plan_becomes_a_clip_with_its_goal_and_provenance(pipeline):
    asked = request(goal_pixel=(100.0, 50.0))
    (plan,) = generate_plans(pipeline, asked)
    camera = Camera(np.eye(3))
    clip = plan_to_clip(plan, asked, camera, {'plan_id': 'a'})
    assert clip.actions is None
    assert clip.states is None
    assert (clip.task, clip.fps, clip.camera) == ('open', pipeline.config.fps, camera)
    np.testing.assert_array_equal(clip.goal == lb.OBJECT, move_mask(asked.object_mask, (100.0, 50.0)))
    assert set(clip.source) == {'generated_by', 'model', 'seed', 'score', 'score_meaning', 'plan_id'}
    assert (clip.source['model'], clip.source['plan_id']) == ('tiny', 'a')
    assert json.loads(json.dumps(clip.source)) == clip.source


@pytest.mark.parametrize('fps', [15, 30, 49])  # 1 / (1 / 49) is not 49, and LeRobot stores whole rates
def test_a_clip_has_the_frame_rate_of_its_plan(fps):
    asked = request()
    motion = mask_motion(asked.labels[None])
    plan = Plan(asked.labels[None], asked.frame[None], '', 0, 'tiny', 1.0, '', motion, fps)
    assert plan_to_clip(plan, asked).fps == fps


def test_progress_sees_every_step_with_previews_of_stage_1(pipeline, monkeypatch):
    monkeypatch.setattr(generate, 'PREVIEW_SHARE', np.inf)
    seen = []
    generate_plans(pipeline, request(), lambda *call: seen.append(call))
    assert [call[:3] for call in seen] == [
        ('trajectory', 1, 2),
        ('trajectory', 2, 2),
        ('video', 1, 2),
        ('video', 2, 2),
    ]
    assert seen[0][3].shape == seen[1][3].shape == (8, 32, 48)
    assert seen[2][3] is None


def test_previews_take_no_more_than_their_share_of_the_time(pipeline, monkeypatch):
    monkeypatch.setattr(generate, 'PREVIEW_SHARE', 0)
    seen = []
    generate_plans(pipeline, request(), lambda *call: seen.append(call))
    assert [call[3] is None for call in seen] == [False, True, True, True]


def test_previews_can_be_left_out(pipeline):
    seen = []
    generate_plans(pipeline, request(), lambda *call: seen.append(call), previews=False)
    assert [call[3] for call in seen] == [None] * 4


def test_cancelled_from_progress_stops(pipeline):
    def cancel(stage, step, num_steps, preview):
        if stage == 'video':
            raise Cancelled

    with pytest.raises(Cancelled):
        generate_plans(pipeline, request(), cancel)


@pytest.mark.parametrize(
    ('change', 'code'),
    [
        ({'object_mask': np.zeros((90, 160), bool)}, 'EMPTY_MASK'),
        ({'object_mask': np.ones((80, 160), bool)}, 'SIZE_MISMATCH'),
        ({'actor_mask': np.ones((90, 10), bool)}, 'SIZE_MISMATCH'),
        ({'goal_mask': np.ones((9, 16), bool)}, 'SIZE_MISMATCH'),
        ({'goal_mask': np.zeros((90, 160), bool)}, 'EMPTY_MASK'),
        ({'task': '  '}, 'NO_TASK_OR_GOAL'),
        ({'goal_pixel': (500.0, 3.0)}, 'INVALID_PARAMETER'),
        ({'num_inference_steps': 1001}, 'INVALID_PARAMETER'),
        ({'num_samples': 0}, 'INVALID_PARAMETER'),
        ({'num_inference_steps': -1}, 'INVALID_PARAMETER'),
        ({'frame': np.zeros((90, 160), np.uint8)}, 'INVALID_PARAMETER'),
    ],
)
def test_bad_requests_have_named_codes(pipeline, change, code):
    with pytest.raises(InvalidRequest) as caught:
        generate_plans(pipeline, request(**change))
    assert caught.value.code == code
    assert len(str(caught.value)) > 20


def test_an_object_lost_at_the_models_resolution_is_named(pipeline):
    mask = np.zeros((480, 640), bool)
    mask[100, 100] = True
    with pytest.raises(InvalidRequest, match='too few') as caught:
        generate_plans(pipeline, request(480, 640, object_mask=mask))
    assert caught.value.code == 'EMPTY_MASK'


def test_a_goal_lost_at_the_models_resolution_is_named(pipeline):
    one_pixel = np.zeros((480, 640), bool)
    one_pixel[300, 300] = True
    two_parts = np.zeros((480, 640), bool)
    two_parts[:99, -99:] = two_parts[-99:, :99] = True
    for goal in (
        {'goal_mask': one_pixel},
        {'object_mask': two_parts, 'goal_pixel': (639, 479)},  # one lands right of the image, one below it
    ):
        with pytest.raises(InvalidRequest, match=r'goal.* pixels, too few') as caught:
            generate_plans(pipeline, request(480, 640, actor_mask=None, **goal))
        assert caught.value.code == 'EMPTY_MASK'


def test_a_goal_mask_takes_precedence_over_a_goal_pixel(pipeline):
    mask = np.zeros((90, 160), bool)
    mask[50:80, 20:60] = True
    asked = request(goal_mask=mask, goal_pixel=(500.0, 3.0))  # which is not even in the image
    np.testing.assert_array_equal(asked.goal_labels, mask)
    assert generate_plans(pipeline, asked)


@pytest.mark.parametrize('size', [(10, 16), (90, 160), (480, 640)])
def test_every_contact_frame_has_a_contact_pixel(size):
    framing = Framing(size, (128, 160))
    labels = np.zeros((3, *size), np.uint8)
    height, width = size
    labels[1:, height // 2 :, : width // 2] = lb.OBJECT
    labels[2, : height // 2, : width // 2] = lb.ACTOR
    motion = restore_motion(mask_motion(framing.fit_labels(labels[1:])), framing)
    assert motion.contact_frame == 1
    x, y = motion.contact_pixel
    pixel = max(1, height / 128)  # of the model, in source pixels
    assert (x, y) == (
        pytest.approx(width / 4 - 0.5, abs=pixel),
        pytest.approx(height / 2 - 0.5, abs=pixel),
    )
    motion = restore_motion(mask_motion(framing.fit_labels(labels[1:2])), framing)
    assert (motion.contact_frame, motion.contact_pixel) == (-1, None)


def test_small_images_have_contacts_too(pipeline):
    below, above = np.zeros((2, 10, 16), bool)
    below[5:, 4:12] = above[:5, 4:12] = True
    (plan,) = generate_plans(pipeline, request(10, 16, object_mask=below, actor_mask=above))
    assert plan.motion.contact_frame >= 0
    x, y = plan.motion.contact_pixel
    assert 0 <= x <= 15
    assert 0 <= y <= 9


def test_offloaded_models_are_freed_after_a_request(pipeline):
    offloaded = build_tiny_pipeline()
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device='cpu')
    used = offloaded._all_hooks
    generate_plans(offloaded, request(trajectory_only=True))
    assert offloaded._all_hooks is not used


def test_a_warm_up_sees_all_that_a_request_uses_and_leaves_no_trace(pipeline):
    (before,) = generate_plans(pipeline, request())
    used = set()
    networks = ('trajectory_unet', 'video_unet', 'text_encoder')
    hooks = [
        getattr(pipeline, name).register_forward_hook(lambda *_, name=name: used.add(name))
        for name in networks
    ]
    warm_up(pipeline)
    assert used == set(networks)
    for hook in hooks:
        hook.remove()
    (after,) = generate_plans(pipeline, request())
    np.testing.assert_array_equal(before.frames, after.frames)


def test_a_request_is_read_and_checked_without_torch():
    code = 'import sys, mask2iv_ros.planning.request; print("torch" in sys.modules)'
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout == 'False\n'


def test_goal_pixel_moves_the_mask_there():
    mask = np.zeros((40, 60), bool)
    mask[10:14, 20:24] = True
    moved = move_mask(mask, (45.5, 30.5))
    assert lb.centroid(moved) == (45.5, 30.5)
    assert moved.sum() == mask.sum()


def test_samples_that_agree_score_higher(pipeline):
    samples = np.zeros((3, 4, 20, 20), np.uint8)
    samples[:2, :, 5:15, 5:15] = lb.OBJECT
    samples[2, :, 5:15, 10:20] = lb.OBJECT  # half of it elsewhere: IoU 1/3
    np.testing.assert_allclose(sample_agreement(samples), [2 / 3, 2 / 3, 1 / 3])
    samples[:, 2:] = 0  # lost by all: they agree on something wrong
    assert sample_agreement(samples)[0] == pytest.approx(2 / 9)
    plans = generate_plans(pipeline, request(num_samples=2))
    assert {plan.score_meaning for plan in plans} == {AGREEMENT}


def test_score_drops_when_the_object_vanishes():
    labels = np.zeros((5, 10, 10), np.uint8)
    labels[:, 2:6, 2:6] = lb.OBJECT
    assert object_permanence(labels) == 1
    labels[3:] = 0
    assert object_permanence(labels) == 0.5
