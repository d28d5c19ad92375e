"""What does a training step cost? Seconds and memory of the recipes in config/train/, with random weights.

    . scripts/env.sh && python benchmarks/training_cost.py   # results/training_cost.{json,md}

A step is forward, backward, clipping, AdamW and the averaged weights, in the recipe's batch and precision, on
what the caches hold: frozen networks are not in it. `mask2iv-sim` is run on the machine's device. The full
size (320 x 512, 16 frames) is run on a CUDA GPU; without one its memory is computed: the same step on tensors
without data, whose sizes are added up while they live, with attention that keeps no matrix, as on a GPU.
Workspaces of kernels and what an allocator wastes are not in a computed number.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import weakref
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.resources import config_path
from mask2iv_ros.training.trained_parts import StageModel, count_trained, select_trained

RESULTS = Path(__file__).parent / 'results' / 'training_cost'
#: Recipe, stage, and whether its UNet is the full one.
RECIPES = {
    'mask2iv-sim': ('trajectory', False),
    'hoi4d_trajectory': ('trajectory', True),
    'hoi4d_video': ('video', True),
    'lora_video': ('video', True),
}
WARM_STEPS, TIMED_STEPS = 2, 10


def configuration(recipe: str) -> tuple[dict, dict, dict]:
    """The recipe, and of its stage the options and schedule."""
    config = yaml.safe_load(config_path(f'train/{recipe}.yaml').read_text())
    section = config[RECIPES[recipe][0]]
    return config, section['options'], section['schedule']


def build(recipe: str, device: torch.device) -> StageModel:
    """The recipe's networks with new weights, of the dtypes they have in training on a GPU."""
    config, options, _ = configuration(recipe)
    is_full = RECIPES[recipe][1]
    with device:
        unet = DynamiCrafterUNet(**({} if is_full else config['unet']))
        projector = Resampler(**({} if is_full else config['image_projector']))
    model = StageModel(unet, projector).train()
    trained = options.get('trained', 'all')
    if trained == 'lora':
        model.bfloat16()
    select_trained(model, trained, options.get('lora_rank', 16))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if options.get('gradient_checkpointing'):
        unet.enable_gradient_checkpointing()
        projector.enable_gradient_checkpointing()
    return model


class Step:
    """One optimisation step of a stage, on random inputs."""

    def __init__(self, recipe: str, model: StageModel, device: torch.device):
        stage, is_full = RECIPES[recipe]
        config, options, self.schedule = configuration(recipe)
        self.model, self.device, batch = model, device, options['batch_size']
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.trained] if self.schedule.get('ema_decay') else []
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        height, width = (320, 512) if is_full else config['sample_size']
        side = 8 if is_full else 4
        width_of_image = model.image_projector.config.embedding_dim
        tokens = (257 if is_full else height // side * (width // side), width_of_image)
        channels, text = model.unet.config.in_channels, model.unet.config.cross_attention_dim
        self.inputs = (
            torch.randn(batch, channels, 16, height // side, width // side, device=device),
            torch.randint(0, 1000, (batch,), device=device),
            torch.randn(batch, 77 if is_full else 16, text, device=device),
            torch.randn(batch, *tokens, device=device),
            torch.full((batch,), 15, device=device),
        )
        self.facts = {
            'stage': stage, 'trained': options.get('trained', 'all'), 'batch': batch, 'size': [height, width],
            **count_trained(self.model),
        }  # fmt: skip

    def __call__(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            velocity = self.model(*self.inputs)
        velocity.float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.schedule['max_grad_norm'])
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average, parameter in zip(self.averaged, self.trained, strict=False):
            average.lerp_(parameter.detach(), 0.01)


def measured(recipe: str, device: torch.device) -> dict:
    """Seconds a step, and on a GPU the peak memory."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == 'cpu' else ExitStack():
        step, seconds = Step(recipe, build(recipe, device), device), []
        for _ in range(WARM_STEPS + TIMED_STEPS):
            start = time.perf_counter()
            step()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[WARM_STEPS:])
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == 'cuda' else None
    return {
        **step.facts,
        'seconds a step': {'median': seconds[len(seconds) // 2], 'min': seconds[0], 'max': seconds[-1]},
        'peak memory GiB': memory,
        'how': 'measured',
    }


def computed(recipe: str) -> dict:
    """Peak memory of the second step (the first makes AdamW's state), on tensors without data."""
    model = build(recipe, torch.device('meta'))
    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for module in model.modules():  # `to_empty` cannot make tensors of this mode
            for name, p in module._parameters.items():
                if p is not None:
                    empty = torch.empty(p.shape, dtype=p.dtype)
                    module._parameters[name] = torch.nn.Parameter(empty, p.requires_grad)
        with LiveStorages() as memory:
            step = Step(recipe, model, torch.device('cpu'))
            memory.add([*model.parameters(), *model.buffers()])
            step()
            held = memory.bytes  # with AdamW's state
            step()
    return {
        **step.facts,
        'seconds a step': None,
        'peak memory GiB': round(memory.peak / 2**30, 2),
        'between steps GiB': round(held / 2**30, 2),
        'how': 'computed',
    }


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.bytes, self.peak, self._known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.add(result)
        return result

    def add(self, tensors) -> None:
        """Count the tensors among `tensors`, nested as they may be."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.bytes -= size


def markdown(report: dict) -> str:
    lines = [
        '# Cost of a training step',
        '',
        f'Made by `benchmarks/training_cost.py` on {report["machine"]}.',
    ]
    lines += [
        '',
        '| recipe | stage | trained | parameters trained | batch | seconds a step | peak memory GiB | |',
    ]
    lines += ['|---' * 8 + '|']
    for recipe, row in report['recipes'].items():
        seconds, memory = row['seconds a step'], row['peak memory GiB']
        cells = (
            recipe, row['stage'], row['trained'],
            f'{row["trained_parameters"]:,} of {row["parameters"]:,}', row['batch'],
            f'{seconds["median"]:.2f} ({seconds["min"]:.2f} to {seconds["max"]:.2f})' if seconds else '',
            '' if memory is None else f'{memory:.1f}', row['how'],
        )  # fmt: skip
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    machine = f'{platform.machine()} CPU, {torch.get_num_threads()} threads'
    report = {
        'machine': torch.cuda.get_device_name() if device.type == 'cuda' else machine,
        'torch': torch.__version__,
        'recipes': {},
    }
    there = json.loads(path.read_text()) if (path := RESULTS.with_suffix('.json')).exists() else {}
    if all(there.get(key) == report[key] for key in ('machine', 'torch')):
        report['recipes'] = there['recipes']
    for recipe in options.recipes:
        is_computed = RECIPES[recipe][1] and device.type == 'cpu'
        report['recipes'][recipe] = computed(recipe) if is_computed else measured(recipe, device)
        print(recipe, json.dumps(report['recipes'][recipe]), flush=True)
        if device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    RESULTS.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
    RESULTS.with_suffix('.md').write_text(markdown(report))


if __name__ == '__main__':
    main()
