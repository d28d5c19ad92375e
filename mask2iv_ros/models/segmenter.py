"""A small network that reads masks off a video whose first frame and masks are known."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from mask2iv_ros.labels import LABEL_NAMES, check_labels

#: Frames that go through the network at once.
BATCH = 16


class Segmenter(ModelMixin, ConfigMixin):
    """Reads what label each pixel of a frame has, given another frame of the scene and its labels.

    The reference says which thing is the object and how things look in this video, so a repainted scene is
    read like a recorded one. Frames are read one by one: nothing is known of motion, or of the masks that a
    video was asked to follow.

    A U-Net with added skips over `patch_size` x `patch_size` pixel patches, about 0.8 million weights.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int] | list[int] = (128, 160),  # a list comes from JSON
        patch_size: int = 4,
        block_out_channels: tuple[int, ...] | list[int] = (64, 96, 128),
        norm_num_groups: int = 16,
    ):
        super().__init__()
        channels, labels = list(block_out_channels), len(LABEL_NAMES)

        def block(before: int, after: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels=before, out_channels=after, temb_channels=None, groups=norm_num_groups
            )

        self.conv_in = nn.Conv2d((3 + 3 + labels) * patch_size**2, channels[0], 1)
        self.down = nn.ModuleList(
            block(before, after) for before, after in zip([channels[0], *channels], channels, strict=False)
        )
        self.up = nn.ModuleList(
            block(before, after)
            for before, after in zip(channels[::-1], [*channels[-2::-1], channels[0]], strict=True)
        )
        self.conv_out = nn.Conv2d(channels[0], labels * patch_size**2, 1)

    def forward(
        self, frames: torch.Tensor, reference: torch.Tensor, reference_labels: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N, 4, H, W) of the labels.

        Args:
            frames: (N, 3, H, W) pixels in [-1, 1].
            reference: (N, 3, H, W), other frames of the same scenes.
            reference_labels: (N, H, W) int64 label ids of `reference`.
        """
        painted = F.one_hot(reference_labels, len(LABEL_NAMES)).movedim(-1, 1).to(frames.dtype)
        seen = torch.cat([frames, reference, painted], dim=1)
        hidden = self.conv_in(F.pixel_unshuffle(seen, self.config.patch_size))
        skips = []
        for i, block in enumerate(self.down):
            hidden = block(F.avg_pool2d(hidden, 2) if i else hidden, None)
            skips.append(hidden)
        for i, block in enumerate(self.up):
            if i:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode='nearest') + skips[-1 - i]
            hidden = block(hidden, None)
        return F.pixel_shuffle(self.conv_out(hidden), self.config.patch_size)

    @torch.no_grad()
    def read(self, frames: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The masks seen in a video.

        Args:
            frames: (T, H, W, 3) uint8 RGB of the model's `sample_size`.
            labels: (H, W) uint8 label ids of frame 0.

        Returns:
            (T, H, W) uint8 label ids; those of frame 0 as they were given.
        """
        size = tuple(self.config.sample_size)
        if frames.shape[1:] != (*size, 3) or frames.dtype != np.uint8:
            raise ValueError(f'frames: expected (T, {size[0]}, {size[1]}, 3) uint8, got {frames.shape}')
        if check_labels(labels).shape != size:
            raise ValueError(f'labels: expected {size}, got {labels.shape}')
        pixels = torch.from_numpy(frames).to(self.device).movedim(-1, 1).to(self.dtype) / 127.5 - 1
        painted = torch.from_numpy(labels).to(self.device).long()
        seen = [
            self(part, pixels[:1].expand_as(part), painted.expand(len(part), *size)).argmax(dim=1)
            for part in pixels[1:].split(BATCH)
        ]
        return np.concatenate([labels[None], *(part.to('cpu', torch.uint8).numpy() for part in seen)])
