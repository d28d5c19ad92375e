"""What mask2iv_ros/models/resampler.py promises."""

import torch

import reference
from mask2iv_ros.models.resampler import Resampler


@torch.no_grad()
def test_forward_equals_the_public_implementation():
    tokens = reference.resampler()(reference.tensors()['image_features'])
    torch.testing.assert_close(tokens, reference.tensors()['image_tokens'], atol=1e-4, rtol=0)


@torch.no_grad()
def test_number_of_tokens_follows_queries_and_frames():
    resampler = Resampler(
        embedding_dim=8, output_dim=12, hidden_dim=16, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_queries=4, num_frames=6,
    )  # fmt: skip
    assert resampler(torch.randn(3, 5, 8)).shape == (3, 24, 12)
    assert resampler(torch.randn(1, 9, 8)).shape == (1, 24, 12)


def test_saved_model_loads_with_the_same_output(tmp_path):
    resampler = reference.resampler()
    resampler.save_pretrained(tmp_path)
    loaded = Resampler.from_pretrained(tmp_path)
    features = reference.tensors()['image_features']
    with torch.no_grad():
        assert torch.equal(loaded(features), resampler(features))


def test_gradient_checkpointing_does_not_change_gradients():
    def gradient(checkpointing):
        resampler = reference.resampler().train()
        if checkpointing:
            resampler.enable_gradient_checkpointing()
        resampler(reference.tensors()['image_features']).square().mean().backward()
        return resampler.queries.grad

    torch.testing.assert_close(gradient(True), gradient(False))
