"""The spatio-temporal UNet of both Mask2IV stages: DynamiCrafter's denoiser as a diffusers model.

Both stages (mask trajectory, interaction video) and both sizes (`mask2iv-sim`, `mask2iv-512`) are this one
class with other numbers. It computes what the public DynamiCrafter UNet computes (arXiv 2310.12190;
test/data/parity holds its numbers); `conversion.py` maps the weights' names. Every frame runs through 2D
convolutions and spatial attention; frames exchange information through temporal convolutions and temporal
self-attention. The text is one sequence for the whole clip; image tokens belong to frames.

Inside, activations are (batch * frames, channels, height, width) in channels-last memory, so that the token
view of every attention layer and the (frames, positions) view of every temporal convolution cost no copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_1d_sincos_pos_embed_from_grid
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn


@dataclass
class DynamiCrafterUNetOutput(BaseOutput):
    """`sample`: (B, out_channels, T, H, W), the prediction for the noisy channels (v, in Mask2IV)."""

    sample: torch.Tensor


def frames_to_tokens(hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
    """(B * T, C, H, W) -> (B, T, H * W, C); a view if the memory is channels-last."""
    return hidden_states.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames)).flatten(2, 3)


def tokens_to_frames(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, T, H * W, C) -> (B * T, C, H, W) in channels-last memory; the inverse of `frames_to_tokens`."""
    return tokens.flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group norm of (B, C, H, W) whose result has channels-last memory, as the frames here have.

    On a CPU it is computed on a contiguous copy: torch's own kernel for channels-last memory takes up to
    eight times as long as that and both copies.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type != 'cpu':
            return super().forward(hidden_states)
        return super().forward(hidden_states.contiguous()).contiguous(memory_format=torch.channels_last)


class DynamiCrafterAttnProcessor:
    """Attention of frames to themselves, or to text and (with separate keys and values) to image tokens."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: DynamiCrafterAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.to_q(hidden_states)
        key = attn.to_k(context).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))

        # All frames of a clip read the same text: one long query a clip instead of the text repeated a frame.
        clip_query = query.reshape(context.shape[0], -1, query.shape[2]).unflatten(2, (attn.heads, -1))
        output = dispatch_attention_fn(
            clip_query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        output = output.flatten(2, 3).reshape(query.shape)

        if image_hidden_states is not None:
            image_key = attn.to_k_ip(image_hidden_states).unflatten(2, (attn.heads, -1))
            image_value = attn.to_v_ip(image_hidden_states).unflatten(2, (attn.heads, -1))
            image_output = dispatch_attention_fn(
                query.unflatten(2, (attn.heads, -1)),
                image_key,
                image_value,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
            output = output + image_output.flatten(2, 3)

        return attn.to_out[0](output.to(query.dtype))


class DynamiCrafterAttention(nn.Module, AttentionModuleMixin):
    _default_processor_cls = DynamiCrafterAttnProcessor
    _available_processors = [DynamiCrafterAttnProcessor]  # noqa: RUF012 (the form that diffusers expects)
    _supports_qkv_fusion = False

    def __init__(
        self,
        query_dim: int,
        heads: int,
        dim_head: int,
        cross_attention_dim: int | None = None,
        image_cross_attention: bool = False,
    ):
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = cross_attention_dim or query_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        if image_cross_attention:
            self.to_k_ip = nn.Linear(context_dim, inner_dim, bias=False)
            self.to_v_ip = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim)])
        self.set_processor(self._default_processor_cls())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        image_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.processor(self, hidden_states, encoder_hidden_states, image_hidden_states)


# Spatial and temporal blocks are two classes because torch.compile limits the recompilations of one forward
# function, and the channel widths of both kinds together would exceed the limit.
class SpatialTransformerBlock(nn.Module):
    """Self-attention, then attention to text and image tokens, then a gated MLP."""

    def __init__(
        self, dim: int, heads: int, dim_head: int, cross_attention_dim: int, image_cross_attention: bool
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = DynamiCrafterAttention(dim, heads, dim_head)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = DynamiCrafterAttention(dim, heads, dim_head, cross_attention_dim, image_cross_attention)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn='geglu')

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        hidden_states = hidden_states + self.attn2(
            self.norm2(hidden_states), encoder_hidden_states, image_hidden_states
        )
        return hidden_states + self.ff(self.norm3(hidden_states))


class TemporalTransformerBlock(nn.Module):
    """Self-attention twice, then a gated MLP."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = DynamiCrafterAttention(dim, heads, dim_head)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = DynamiCrafterAttention(dim, heads, dim_head)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn='geglu')

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states))
        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states))
        return hidden_states + self.ff(self.norm3(hidden_states))


class SpatialTransformer(nn.Module):
    """Attention between the positions of one frame, and from them to text and to the frame's image tokens."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        num_layers: int,
        norm_num_groups: int,
        cross_attention_dim: int,
        image_cross_attention: bool,
    ):
        super().__init__()
        inner_dim = heads * dim_head
        self.norm = GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList(
            SpatialTransformerBlock(inner_dim, heads, dim_head, cross_attention_dim, image_cross_attention)
            for _ in range(num_layers)
        )
        self.proj_out = zero_init(nn.Linear(inner_dim, channels))

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
    ) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        tokens = self.proj_in(frames_to_tokens(self.norm(hidden_states), 1).squeeze(1))
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states, image_hidden_states)
        return hidden_states + tokens_to_frames(self.proj_out(tokens).unsqueeze(1), height, width)


class TemporalTransformer(nn.Module):
    """Self-attention between the frames at one position.

    Without `positional_embedding` (as in DynamiCrafter) it does not know the frames' order: only temporal
    convolutions and conditions that differ between frames tell it.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        num_layers: int,
        norm_num_groups: int,
        positional_embedding: bool = False,
    ):
        super().__init__()
        inner_dim = heads * dim_head
        self.positional_embedding = positional_embedding
        self.norm = GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList(
            TemporalTransformerBlock(inner_dim, heads, dim_head) for _ in range(num_layers)
        )
        self.proj_out = zero_init(nn.Linear(inner_dim, channels))

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        # Statistics are over all frames of a clip, hence the norm sees (B, C, T, H * W).
        tokens = frames_to_tokens(hidden_states, num_frames)
        tokens = self.norm(tokens.permute(0, 3, 1, 2)).permute(0, 3, 2, 1)
        tokens = self.proj_in(tokens.flatten(0, 1))
        if self.positional_embedding:
            positions = torch.arange(num_frames, device=tokens.device)
            tokens = tokens + get_1d_sincos_pos_embed_from_grid(
                tokens.shape[2], positions, output_type='pt', dtype=torch.float32
            ).to(tokens.dtype)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        tokens = self.proj_out(tokens).unflatten(0, (-1, height * width)).transpose(1, 2)
        return hidden_states + tokens_to_frames(tokens, height, width)


class TemporalConvBlock(nn.Module):
    """Four convolutions over time, three frames wide, added to the input."""

    def __init__(self, channels: int, norm_num_groups: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(GroupNorm(norm_num_groups, channels) for _ in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0)) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        zero_init(self.convs[3])

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        # (B, C, T, H * W): a 2D convolution over it with a (3, 1) kernel is the one over time.
        residual = frames_to_tokens(hidden_states, num_frames).permute(0, 3, 1, 2)
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            residual = F.silu(norm(residual))
            residual = conv(residual if i == 0 else self.dropout(residual))
        return hidden_states + tokens_to_frames(residual.permute(0, 2, 3, 1), height, width)


class ResnetBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        norm_num_groups: int,
        dropout: float,
        temporal_conv: bool,
    ):
        super().__init__()
        self.norm1 = GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = GroupNorm(norm_num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.temporal_conv = (
            TemporalConvBlock(out_channels, norm_num_groups, dropout) if temporal_conv else None
        )

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, num_frames: int) -> torch.Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_states)))
        temb = self.time_emb_proj(F.silu(temb)).repeat_interleave(num_frames, dim=0)
        residual = residual + temb[:, :, None, None]
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))))
        if self.conv_shortcut is not None:
            hidden_states = self.conv_shortcut(hidden_states)
        hidden_states = hidden_states + residual
        if self.temporal_conv is not None:
            hidden_states = self.temporal_conv(hidden_states, num_frames)
        return hidden_states


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden_states)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode='nearest'))


class UNetBlock(nn.Module):
    """One resolution level: resnets, each followed by the spatial and temporal transformer that it has.

    A down level ends in `downsamplers`, and the outputs of all its layers become skip connections; an up
    level takes one skip connection for every resnet and ends in `upsamplers`; the middle has transformers
    only between its two resnets.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        resnets: list[ResnetBlock],
        attentions: list[SpatialTransformer],
        temp_attentions: list[TemporalTransformer],
        downsampler: Downsample | None = None,
        upsampler: Upsample | None = None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.temp_attentions = nn.ModuleList(temp_attentions)
        self.downsamplers = nn.ModuleList([downsampler] if downsampler else [])
        self.upsamplers = nn.ModuleList([upsampler] if upsampler else [])

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None,
        num_frames: int,
        skips: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the level's output and the outputs of all its layers; `skips` are consumed from its end."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            if skips is not None:
                hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)
            hidden_states = self._run(resnet, hidden_states, temb, num_frames)
            if i < len(self.attentions):
                hidden_states = self._run(
                    self.attentions[i], hidden_states, encoder_hidden_states, image_hidden_states
                )
            if i < len(self.temp_attentions):
                hidden_states = self._run(self.temp_attentions[i], hidden_states, num_frames)
            outputs.append(hidden_states)
        for resampler in (*self.downsamplers, *self.upsamplers):
            hidden_states = resampler(hidden_states)
            outputs.append(hidden_states)
        return hidden_states, outputs

    def _run(self, layer: nn.Module, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)


class DynamiCrafterUNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Predict the noise part (v) of a noisy clip from the clip, text, image tokens and frame rate.

    The names in brackets are those of the public DynamiCrafter `unet_config`.

    Args:
        in_channels: channels of `sample`: noisy latents and, behind them, all latents given as condition.
        out_channels: channels of the prediction.
        block_out_channels: channels of each level, finest first [model_channels * channel_mult]; the first is
            also the width of the sinusoidal timestep embedding.
        layers_per_block: resnets of a down level; an up level has one more [num_res_blocks].
        attention_resolutions: downsampling factors (1, 2, 4, ...) at which levels have transformers. The
            middle always has them.
        attention_head_dim: channels of an attention head [num_head_channels].
        transformer_layers_per_block: blocks of a transformer [transformer_depth].
        cross_attention_dim: width of text and image tokens [context_dim].
        dropout: dropout in resnets and temporal convolutions.
        temporal_conv: whether every resnet is followed by convolutions over time.
        temporal_attention: whether every spatial transformer is followed by a temporal one.
        temporal_transformer_in: whether a temporal transformer, always of 8 heads, follows the first
            convolution [addition_attention].
        temporal_positional_embedding: adds sinusoidal frame positions in the temporal transformers; not in
            DynamiCrafter (`False`).
        image_cross_attention: whether spatial transformers attend to image tokens.
        fps_condition: whether the frame rate is a condition [fs_condition].
        default_fps: frame rate used where `forward` gets none [default_fs].
        norm_num_groups: groups of every group norm; must divide every entry of `block_out_channels`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ['ResnetBlock', 'SpatialTransformer', 'TemporalTransformer']  # noqa: RUF012
    _repeated_blocks = ['SpatialTransformerBlock', 'TemporalTransformerBlock']  # noqa: RUF012
    _skip_layerwise_casting_patterns = ['time_embedding', 'fps_embedding', 'norm']  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 12,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_resolutions: tuple[int, ...] = (1, 2, 4),
        attention_head_dim: int = 64,
        transformer_layers_per_block: int = 1,
        cross_attention_dim: int = 1024,
        dropout: float = 0.1,
        temporal_conv: bool = True,
        temporal_attention: bool = True,
        temporal_transformer_in: bool = True,
        temporal_positional_embedding: bool = False,
        image_cross_attention: bool = True,
        fps_condition: bool = True,
        default_fps: int = 10,
        norm_num_groups: int = 32,
    ):
        super().__init__()
        base_channels = block_out_channels[0]
        temb_channels = 4 * base_channels

        self.time_proj = Timesteps(base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(base_channels, temb_channels)
        self.fps_embedding = None
        if fps_condition:
            self.fps_embedding = TimestepEmbedding(base_channels, temb_channels)
            zero_init(self.fps_embedding.linear_2)

        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.transformer_in = None
        if temporal_transformer_in:
            self.transformer_in = TemporalTransformer(
                base_channels,
                8,
                attention_head_dim,
                transformer_layers_per_block,
                norm_num_groups,
                temporal_positional_embedding,
            )

        def resnet(channels_in, channels_out):
            return ResnetBlock(
                channels_in, channels_out, temb_channels, norm_num_groups, dropout, temporal_conv
            )

        def spatial(channels):
            return SpatialTransformer(
                channels,
                channels // attention_head_dim,
                attention_head_dim,
                transformer_layers_per_block,
                norm_num_groups,
                cross_attention_dim,
                image_cross_attention,
            )

        def temporal(channels):
            return TemporalTransformer(
                channels,
                channels // attention_head_dim,
                attention_head_dim,
                transformer_layers_per_block,
                norm_num_groups,
                temporal_positional_embedding,
            )

        last = len(block_out_channels) - 1
        channels = base_channels
        skip_channels = [channels]
        down_blocks = []
        for level, level_channels in enumerate(block_out_channels):
            has_attention = 2**level in attention_resolutions
            resnets = []
            for _ in range(layers_per_block):
                resnets.append(resnet(channels, level_channels))
                channels = level_channels
                skip_channels.append(channels)
            downsampler = None
            if level != last:
                downsampler = Downsample(channels)
                skip_channels.append(channels)
            down_blocks.append(
                UNetBlock(
                    resnets,
                    [spatial(channels) for _ in resnets if has_attention],
                    [temporal(channels) for _ in resnets if has_attention and temporal_attention],
                    downsampler=downsampler,
                )
            )
        self.down_blocks = nn.ModuleList(down_blocks)

        self.mid_block = UNetBlock(
            [resnet(channels, channels), resnet(channels, channels)],
            [spatial(channels)],
            [temporal(channels)] if temporal_attention else [],
        )

        up_blocks = []
        for level, level_channels in reversed(list(enumerate(block_out_channels))):
            has_attention = 2**level in attention_resolutions
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(resnet(channels + skip_channels.pop(), level_channels))
                channels = level_channels
            up_blocks.append(
                UNetBlock(
                    resnets,
                    [spatial(channels) for _ in resnets if has_attention],
                    [temporal(channels) for _ in resnets if has_attention and temporal_attention],
                    upsampler=Upsample(channels) if level else None,
                )
            )
        self.up_blocks = nn.ModuleList(up_blocks)

        self.conv_norm_out = GroupNorm(norm_num_groups, channels)
        self.conv_out = zero_init(nn.Conv2d(channels, out_channels, 3, padding=1))

    def widen_input(self, channels: int) -> None:
        """See so many channels more, behind the others; their weights are zero, so nothing changes."""
        conv = nn.Conv2d(self.conv_in.in_channels + channels, self.conv_in.out_channels, 3, padding=1)
        with torch.no_grad():
            conv.weight.zero_()[:, :-channels] = self.conv_in.weight
            conv.bias.copy_(self.conv_in.bias)
        self.conv_in = conv.to(self.conv_in.weight)
        self.register_to_config(in_channels=conv.in_channels)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None = None,
        fps: torch.Tensor | int | None = None,
        down_block_additional_residuals: list[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DynamiCrafterUNetOutput | tuple[torch.Tensor]:
        """Predict from `sample` (B, in_channels, T, H, W).

        Args:
            sample: noisy latents with condition latents behind them. H and W are multiples of
                2 ** (levels - 1); T is free.
            timestep: diffusion timestep, a number or (B,).
            encoder_hidden_states: text tokens (B, L, cross_attention_dim), seen by all frames.
            image_hidden_states: image tokens (B, T * N, cross_attention_dim), frame after frame, N a frame
                (16 in DynamiCrafter, from `Resampler`). `None` leaves attention to them out.
            fps: frame rate, a number or (B,). `None` means `default_fps`.
            down_block_additional_residuals, mid_block_additional_residual: what a `DynamiCrafterControlNet`
                adds to the skip connections and to the middle's output, (B * T, C, h, w) each.

        Raises:
            ValueError: a size does not fit.
        """
        # 1. down and middle
        skips, hidden_states, context = self.encode(
            sample, timestep, encoder_hidden_states, image_hidden_states, fps
        )
        if down_block_additional_residuals is not None:
            skips = [skip + r for skip, r in zip(skips, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            hidden_states = hidden_states + mid_block_additional_residual

        # 2. up
        for block in self.up_blocks:
            hidden_states, _ = block(hidden_states, *context, skips)

        # 3. prediction
        hidden_states = self.conv_out(F.silu(self.conv_norm_out(hidden_states)))
        output = hidden_states.unflatten(0, (len(sample), -1)).transpose(1, 2).contiguous()
        if not return_dict:
            return (output,)
        return DynamiCrafterUNetOutput(sample=output)

    def encode(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None = None,
        fps: torch.Tensor | int | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor, tuple]:
        """The first half of `forward`: skip connections, the middle's output, and what each block is told."""
        batch_size, channels, num_frames, height, width = sample.shape
        multiple = 2 ** (len(self.config.block_out_channels) - 1)
        if channels != self.config.in_channels or height % multiple or width % multiple:
            raise ValueError(
                f'sample: expected (B, {self.config.in_channels}, T, H, W) with H and W multiples of '
                f'{multiple}, got {tuple(sample.shape)}'
            )
        if image_hidden_states is not None:
            if not self.config.image_cross_attention:
                raise ValueError('image_hidden_states given, but the model has image_cross_attention=False')
            if image_hidden_states.shape[1] % num_frames:
                raise ValueError(
                    f'image_hidden_states: {image_hidden_states.shape[1]} tokens cannot be split into '
                    f'{num_frames} frames'
                )
            image_hidden_states = image_hidden_states.unflatten(1, (num_frames, -1)).flatten(0, 1)

        # 1. timestep and frame rate
        timestep = torch.as_tensor(timestep, device=sample.device).expand(batch_size)
        temb = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        if self.fps_embedding is not None:
            fps = self.config.default_fps if fps is None else fps
            fps = torch.as_tensor(fps, device=sample.device).expand(batch_size)
            temb = temb + self.fps_embedding(self.time_proj(fps).to(sample.dtype))

        # 2. frames into the batch, channels last
        hidden_states = sample.permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous().permute(0, 3, 1, 2)
        hidden_states = self.conv_in(hidden_states)
        if self.transformer_in is not None:
            hidden_states = self.transformer_in(hidden_states, num_frames)

        # 3. down, middle
        context = (temb, encoder_hidden_states, image_hidden_states, num_frames)
        skips = [hidden_states]
        for block in self.down_blocks:
            hidden_states, outputs = block(hidden_states, *context)
            skips.extend(outputs)
        hidden_states, _ = self.mid_block(hidden_states, *context)
        return skips, hidden_states, context


def zero_init(module: nn.Module) -> nn.Module:
    """Set all parameters to zero: a new layer starts as the identity of its residual branch."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
