"""A ControlNet (arXiv 2302.05543) for the UNet: the other way to give stage 2 its masks.

Mask2IV compares it with masks that are concatenated to the latents (its ablation "ControlNet, hand mask");
InterDyn conditions on hand masks in this way.
"""

from __future__ import annotations

import functools

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - diffusers looks for it in the module
from torch import nn

from mask2iv_ros.models.unet import DynamiCrafterUNet, zero_init


class DynamiCrafterControlNet(DynamiCrafterUNet):
    """A copy of the UNet's encoder half whose features, through 1x1 convolutions, are added to the UNet's.

    The convolutions start at zero: a new ControlNet changes nothing. Config and names of the encoder's
    weights are those of `DynamiCrafterUNet`; its decoder half is not there.
    """

    @functools.wraps(DynamiCrafterUNet.__init__)  # diffusers reads the names of the config from the signature
    def __init__(self, **config):
        super().__init__(**config)
        del self.up_blocks, self.conv_norm_out, self.conv_out
        channels = [self.conv_in.out_channels]
        for block in self.down_blocks:
            channels += [layer.conv2.out_channels for layer in block.resnets]
            channels += [layer.conv.out_channels for layer in block.downsamplers]
        self.controlnet_down_blocks = nn.ModuleList(zero_init(nn.Conv2d(c, c, 1)) for c in channels)
        self.controlnet_mid_block = zero_init(nn.Conv2d(channels[-1], channels[-1], 1))

    @classmethod
    def from_unet(cls, unet: DynamiCrafterUNet) -> DynamiCrafterControlNet:
        """A new ControlNet that starts with the UNet's config and weights."""
        controlnet = cls.from_config(unet.config)
        own = controlnet.state_dict()
        own |= {name: weight for name, weight in unet.state_dict().items() if name in own}
        controlnet.load_state_dict(own)
        return controlnet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        image_hidden_states: torch.Tensor | None = None,
        fps: torch.Tensor | int | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What to add to the UNet's skip connections and to its middle; arguments as of the UNet."""
        skips, hidden_states, _ = self.encode(
            sample, timestep, encoder_hidden_states, image_hidden_states, fps
        )
        down = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return down, self.controlnet_mid_block(hidden_states)


def predict(
    unet: DynamiCrafterUNet, controlnet: DynamiCrafterControlNet | None, sample: torch.Tensor, *conditions
) -> torch.Tensor:
    """The UNet's prediction (B, C, T, H, W) from `sample` (B, 3 * C, T, H, W): noise, image, masks.

    With a ControlNet, that one alone sees the masks; the UNet has zeros in their place. `conditions` are
    those of `DynamiCrafterUNet.forward`.
    """
    if controlnet is None:
        return unet(sample, *conditions).sample
    down, middle = controlnet(sample, *conditions)
    masks = unet.config.out_channels
    sample = torch.cat([sample[:, :-masks], torch.zeros_like(sample[:, -masks:])], dim=1)
    return unet(
        sample, *conditions, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
