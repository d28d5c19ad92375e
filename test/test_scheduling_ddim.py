"""What mask2iv_ros/models/scheduling_ddim.py promises."""

import pytest
import torch

import reference
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler


@torch.no_grad()
def denoise(scheduler: RescaledDDIMScheduler, num_steps: int) -> list[torch.Tensor]:
    """Return the sample after every step of the reference run."""
    unet, tensors = reference.unet(), reference.tensors()
    condition = {**reference.unet_inputs()}
    sample, samples = tensors['x_T'], []
    scheduler.set_timesteps(num_steps)
    for timestep in scheduler.timesteps:
        condition['sample'] = torch.cat([sample, tensors['x'][:, 4:]], dim=1)
        condition['timestep'] = timestep
        sample = scheduler.step(unet(**condition).sample, timestep, sample).prev_sample
        samples.append(sample)
    return samples


def test_schedule_equals_the_public_implementation():
    alphas_cumprod = RescaledDDIMScheduler().alphas_cumprod
    torch.testing.assert_close(alphas_cumprod, reference.tensors()['alphas_cumprod'], atol=1e-12, rtol=0)
    assert alphas_cumprod[-1] == 0


@pytest.mark.parametrize('num_steps', [5, 50])
def test_timesteps_equal_the_public_implementation(num_steps):
    scheduler = RescaledDDIMScheduler()
    scheduler.set_timesteps(num_steps)
    assert torch.equal(scheduler.timesteps, reference.tensors()[f'ddim{num_steps}_timesteps'])


def test_every_number_of_steps_starts_at_pure_noise_and_falls():
    scheduler = RescaledDDIMScheduler()
    for num_steps in range(1, 1001):
        scheduler.set_timesteps(num_steps)
        assert len(scheduler.timesteps) == num_steps
        assert scheduler.timesteps[0] == 999
        assert scheduler.timesteps[-1] >= 0
        assert (scheduler.timesteps.diff() < 0).all()


def test_five_steps_equal_the_public_implementation_step_by_step():
    for i, sample in enumerate(denoise(RescaledDDIMScheduler(), 5)):
        torch.testing.assert_close(sample, reference.tensors()[f'ddim5_step{i}'], atol=1e-4, rtol=0)


def test_fifty_steps_equal_the_public_implementation():
    sample = denoise(RescaledDDIMScheduler(), 50)[-1]
    torch.testing.assert_close(sample, reference.tensors()['ddim50_result'], atol=1e-4, rtol=0)


def exact_velocity(scheduler, clean, noisy, timestep):
    """Return the v that a perfect model predicts for `noisy`, whose scaled clean sample is known."""
    alpha = scheduler.alphas_cumprod[timestep]
    scaled = scheduler.scales[timestep] * clean
    noise = (noisy - alpha.sqrt() * scaled) / (1 - alpha).sqrt()
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * scaled


@pytest.mark.parametrize(('rescale_last_step', 'scale'), [(False, 0.85), (True, 1.0)])
def test_perfect_model_gives_the_clean_sample_back(rescale_last_step, scale):
    scheduler = RescaledDDIMScheduler(rescale_last_step=rescale_last_step)
    clean = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    sample = torch.randn_like(clean)
    scheduler.set_timesteps(5)
    for timestep in scheduler.timesteps:
        velocity = exact_velocity(scheduler, clean, sample, timestep)
        step = scheduler.step(velocity, timestep, sample)
        sample = step.prev_sample
    torch.testing.assert_close(step.pred_original_sample, scale * clean, atol=2e-3, rtol=0)


def test_training_and_sampling_agree_on_the_scale():
    """`step` turns the noisy sample and target of training into that sample at the next timestep."""
    scheduler = RescaledDDIMScheduler()
    scheduler.set_timesteps(30)  # does not divide 1000
    clean, noise = torch.randn(2, 2, 4, 3, 5, 6)
    for t, t_next in zip(scheduler.timesteps, scheduler.timesteps[1:], strict=False):
        noisy = scheduler.add_noise(clean, noise, t.expand(2))
        velocity = scheduler.get_velocity(clean, noise, t.expand(2))
        expected = scheduler.add_noise(clean, noise, t_next.expand(2))
        torch.testing.assert_close(
            scheduler.step(velocity, t, noisy).prev_sample, expected, atol=1e-5, rtol=1e-5
        )


def test_noise_at_the_ends():
    scheduler = RescaledDDIMScheduler()
    clean, noise = torch.randn(2, 2, 4, 3, 5, 6)
    assert torch.equal(scheduler.add_noise(clean, noise, torch.tensor([999, 999])), noise)
    first = scheduler.add_noise(clean, noise, torch.tensor([0, 0]))
    torch.testing.assert_close(first, 0.99915**0.5 * clean + 0.00085**0.5 * noise)


def test_bfloat16_keeps_the_noise_of_early_timesteps():
    scheduler = RescaledDDIMScheduler()
    clean, noise = torch.zeros(1, 64, dtype=torch.bfloat16), torch.ones(1, 64, dtype=torch.bfloat16)
    noisy = scheduler.add_noise(clean, noise, torch.tensor([0]))
    assert noisy.dtype == torch.bfloat16
    torch.testing.assert_close(noisy.float(), torch.full((1, 64), 0.00085**0.5), rtol=0.01, atol=0)


def test_dynamic_rescale_can_be_off():
    assert (RescaledDDIMScheduler(rescale_base=1.0).scales == 1).all()


def test_eta_draws_from_the_generator():
    scheduler = RescaledDDIMScheduler()
    scheduler.set_timesteps(10)
    sample, velocity = torch.randn(2, 1, 4, 8, 16, 16)
    timestep = scheduler.timesteps[4]

    def step(seed, eta=1.0):
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(velocity, timestep, sample, eta=eta, generator=generator, return_dict=False)[0]

    assert torch.equal(step(0), step(0))
    assert not torch.equal(step(0), step(1))
    # Fresh noise has the variance of DDIM's eq. 16.
    alpha, alpha_next = scheduler.alphas_cumprod[scheduler.timesteps[4:6]]
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    difference = (step(0) - step(1)).var() / 2
    torch.testing.assert_close(difference.double(), variance, rtol=0.05, atol=0)


@pytest.mark.parametrize('num_steps', [0, 1001])
def test_impossible_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match=f'expected 1..1000, got {num_steps}'):
        RescaledDDIMScheduler().set_timesteps(num_steps)


def test_timestep_out_of_the_run_is_refused():
    scheduler = RescaledDDIMScheduler()
    sample = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match='set_timesteps'):
        scheduler.step(sample, 999, sample)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match='timestep 998'):
        scheduler.step(sample, 998, sample)


def test_saved_schedule_loads_the_same(tmp_path):
    RescaledDDIMScheduler(rescale_base=0.8, rescale_last_step=True).save_pretrained(tmp_path)
    loaded = RescaledDDIMScheduler.from_pretrained(tmp_path)
    assert loaded.config.rescale_last_step
    assert torch.equal(loaded.scales, RescaledDDIMScheduler(rescale_base=0.8).scales)
