"""Opening a model folder on a device, with errors a user can act on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.weights import default_model_path, unpack

STAGES = (MaskTrajectoryPipeline.__name__, InteractionVideoPipeline.__name__)


class ModelError(RuntimeError):
    """The model folder is missing, incomplete or corrupt; the message names it."""


def choose_device(device: str) -> str:
    """'cpu', 'cuda' or 'cuda:N' as given; of 'auto', CUDA if there is one. ValueError if there is no such."""
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if not re.fullmatch(r'cpu|cuda(:\d+)?', device):
        raise ValueError(f"device {device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'device {device!r}: this machine has no CUDA GPU that torch can use')
    return device


def load_pipeline(
    model: str | Path = '',
    device: str = 'auto',
    dtype: torch.dtype | None = None,
    low_memory: bool = False,
) -> Mask2IVPipeline:
    """Load a model folder in eval mode.

    Args:
        model: folder of a saved `Mask2IVPipeline`; '' is the embedded default.
        device: 'cpu', 'cuda' or 'cuda:N'; 'auto' is CUDA if there is one.
        dtype: of the weights; None is bfloat16 where the device multiplies matrices in it (CUDA, a CPU with
            AMX), else float32.
        low_memory: keep the UNets' large weights in 8 bits (float8_e4m3fn; they compute in `dtype`), and on
            CUDA only the network there that works, the others in the computer's memory. Slower.

    Raises:
        ModelError: the folder cannot be loaded.
        ValueError: no such device.
    """
    device = choose_device(device)
    try:
        path = Path(model).expanduser() if model else default_model_path()
        if not (path / 'model_index.json').is_file():
            # diffusers would look for a repository of that name
            raise FileNotFoundError(f'{path} has no model_index.json: not the folder of a diffusers pipeline')
        index = json.loads((path / 'model_index.json').read_text())
        kind = index.get('_class_name')
        if kind != Mask2IVPipeline.__name__:
            hint = '; `mask2iv convert` makes one of two checkpoints, with --video' if kind in STAGES else ''
            raise ValueError(f'{path}: expected a {Mask2IVPipeline.__name__}, got a {kind}{hint}')
        for name, value in index.items():  # of a component: its library and class, or two nulls
            if isinstance(value, list) and isinstance(value[0], str) and not (path / name).is_dir():
                raise FileNotFoundError(f'{path} has no folder {name}, which its model_index.json names')
        if dtype is None:
            fast = device.startswith('cuda') or torch.cpu.get_capabilities().get('amx_bf16', False)
            dtype = torch.bfloat16 if fast else torch.float32
        pipeline = Mask2IVPipeline.from_pretrained(
            unpack(path), torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
        if low_memory:
            for unet in filter(None, (pipeline.trajectory_unet, pipeline.video_unet)):
                unet.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
            if device.startswith('cuda'):
                pipeline.enable_model_cpu_offload(device=device)
                return pipeline
        return pipeline.to(device)
    except Exception as error:
        raise ModelError(f'cannot load the model {model or "mask2iv-sim"}: {error}') from error
