"""Which weights of a stage are trained: all, all but the motion prior, or a LoRA adapter."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from mask2iv_ros.models.controlnet import DynamiCrafterControlNet, predict
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet

#: What `trained` of a stage may be, see `select_trained`.
TRAINED = ('all', 'spatial', 'lora')
#: Layers that `spatial` freezes: DynamiCrafter's convolutions over time and its first temporal transformer.
TEMPORAL_LAYERS = ('temporal_conv.', 'transformer_in.')
#: The attention projections that get an adapter.
LORA_MODULES = ['to_q', 'to_k', 'to_v', 'to_k_ip', 'to_v_ip', 'to_out.0']


class StageModel(torch.nn.Module):
    """What one stage runs in training: its UNet, and the image projector and ControlNet that it may have."""

    def __init__(
        self,
        unet: DynamiCrafterUNet,
        image_projector: Resampler | None,
        controlnet: DynamiCrafterControlNet | None = None,
    ):
        super().__init__()
        self.unet, self.image_projector, self.controlnet = unet, image_projector, controlnet

    def forward(self, sample, timesteps, text_tokens, image_features, fps) -> torch.Tensor:
        """Predicted v (B, C, T, h, w); `image_features` (B, L, D) go to the projector."""
        image_tokens = None if self.image_projector is None else self.image_projector(image_features)
        return predict(self.unet, self.controlnet, sample, timesteps, text_tokens, image_tokens, fps)


def select_trained(model: StageModel, trained: str, lora_rank: int = 16) -> None:
    """Set `requires_grad` of all parameters.

    'all': UNet and projector. 'spatial': as Mask2IV; `TEMPORAL_LAYERS` of the UNet stay as they are. 'lora':
    both stay, and adapters of `lora_rank` are added to the UNet's attention (needs `peft`).

    Raises:
        ValueError: unknown name, 'spatial' with a UNet that has no such layers, or less than 'all' with a
            ControlNet.
    """
    if trained not in TRAINED:
        raise ValueError(f'trained: expected one of {TRAINED}, got {trained!r}')
    if trained != 'all' and model.controlnet is not None:
        raise ValueError(f"trained: expected 'all' for a stage with a ControlNet, got {trained!r}")
    model.requires_grad_(trained != 'lora')
    if trained == 'spatial':
        frozen = [
            p for name, p in model.unet.named_parameters() if any(layer in name for layer in TEMPORAL_LAYERS)
        ]
        if not frozen:
            raise ValueError(
                "trained: 'spatial' freezes temporal layers, but this UNet has neither "
                'temporal_conv nor temporal_transformer_in'
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if trained == 'lora':
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError('LoRA needs the package peft: pip install peft') from error

        config = LoraConfig(
            r=lora_rank, lora_alpha=lora_rank, init_lora_weights='gaussian', target_modules=LORA_MODULES
        )
        model.unet.add_adapter(config)


def merge_adapter(base: DynamiCrafterUNet, folder: Path) -> DynamiCrafterUNet:
    """A copy of `base` with the adapter that `save_lora_adapter` wrote into `folder` added to its weights."""
    merged = copy.deepcopy(base)
    merged.load_lora_adapter(folder, weight_name=LORA_WEIGHT_NAME_SAFE, prefix=None)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def count_trained(model: torch.nn.Module) -> dict[str, int]:
    """Numbers of weight tensors and of parameters: 'tensors', 'trained_tensors', 'parameters', ..."""
    every = list(model.parameters())
    trained = [p for p in every if p.requires_grad]
    return {
        'tensors': len(every),
        'trained_tensors': len(trained),
        'parameters': sum(p.numel() for p in every),
        'trained_parameters': sum(p.numel() for p in trained),
    }
