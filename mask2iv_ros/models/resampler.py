"""The image projector: turns the image encoder's tokens into 16 tokens for every frame of the clip.

It computes what DynamiCrafter's Resampler computes (a Perceiver with learned queries, after IP-Adapter, arXiv
2308.06721). Queries are learned for each frame, so the clip length is part of the weights.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class PerceiverAttnProcessor:
    """Queries attend to image tokens and to each other in one softmax."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: PerceiverAttention, hidden_states: torch.Tensor, image_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        image_hidden_states = attn.norm1(image_hidden_states)
        hidden_states = attn.norm2(hidden_states)
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1))
        context = torch.cat([image_hidden_states, hidden_states], dim=1)
        key, value = attn.to_kv(context).unflatten(2, (2 * attn.heads, -1)).chunk(2, dim=2)
        output = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        return attn.to_out(output.flatten(2, 3))


class PerceiverAttention(nn.Module, AttentionModuleMixin):
    _default_processor_cls = PerceiverAttnProcessor
    _available_processors = [PerceiverAttnProcessor]  # noqa: RUF012 (the form that diffusers expects)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.to_out = nn.Linear(inner_dim, dim, bias=False)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        return self.processor(self, hidden_states, image_hidden_states)


class ResamplerLayer(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, ff_mult: int):
        super().__init__()
        self.attn = PerceiverAttention(dim, heads, dim_head)
        self.ff = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, ff_mult * dim, bias=False),
            nn.GELU(),
            nn.Linear(ff_mult * dim, dim, bias=False),
        )

    def forward(self, hidden_states: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(hidden_states, image_hidden_states)
        return hidden_states + self.ff(hidden_states)


class Resampler(ModelMixin, AttentionMixin, ConfigMixin):
    """Image tokens of the first frame -> `num_queries` tokens for each of `num_frames` frames.

    The names in brackets are those of the public DynamiCrafter configuration.

    Args:
        embedding_dim: width of the image encoder's tokens.
        output_dim: width of the tokens made, the UNet's `cross_attention_dim`.
        hidden_dim: width inside [dim].
        num_layers: number of layers [depth].
        num_attention_heads: attention heads [heads].
        attention_head_dim: channels of a head [dim_head].
        num_queries: tokens a frame.
        num_frames: frames of the clip [video_length].
        ff_mult: width of the MLP relative to `hidden_dim`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ['ResamplerLayer']  # noqa: RUF012
    _repeated_blocks = ['ResamplerLayer']  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 1280,
        output_dim: int = 1024,
        hidden_dim: int = 1024,
        num_layers: int = 4,
        num_attention_heads: int = 12,
        attention_head_dim: int = 64,
        num_queries: int = 16,
        num_frames: int = 16,
        ff_mult: int = 4,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, num_frames * num_queries, hidden_dim) / hidden_dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, hidden_dim)
        self.layers = nn.ModuleList(
            ResamplerLayer(hidden_dim, num_attention_heads, attention_head_dim, ff_mult)
            for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(hidden_dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.gradient_checkpointing = False

    def forward(self, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, L, embedding_dim) -> (B, num_frames * num_queries, output_dim), frame after frame."""
        image_hidden_states = self.proj_in(image_hidden_states)
        hidden_states = self.queries.expand(image_hidden_states.shape[0], -1, -1)
        for layer in self.layers:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(layer, hidden_states, image_hidden_states)
            else:
                hidden_states = layer(hidden_states, image_hidden_states)
        return self.norm_out(self.proj_out(hidden_states))
