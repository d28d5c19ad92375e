"""Does the full size convert, save, load and run? With checkpoints of random values in the official names.

    . scripts/env.sh && python benchmarks/full_size_conversion.py

Stage 1 holds all parts (2.6 billion weights, float16), stage 2 its UNet and Resampler. Both are converted
into one model, which is compared weight by weight, loaded in bfloat16 and run for one step of each stage at
320 x 512 and 16 frames. Each part runs in a process of its own; its time and peak memory (mapped files too)
go to benchmarks/results/full_size_conversion.json. Needs 20 GB of disk for a while, and 16 GiB of memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from safetensors import safe_open

from mask2iv_ros import labels as lb
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.pipelines import Mask2IVPipeline
from mask2iv_ros.pipelines.conversion import convert_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[1]
KEY_FILES = ('full_size_keys.json', 'full_size_encoder_keys.json')
#: Parts that a checkpoint of stage 2 may leave out, because stage 1 has the same.
FROZEN = ('first_stage_model', 'cond_stage_model', 'embedder')


def official_shapes() -> dict[str, dict[str, list[int]]]:
    """{part: {key: shape}} of a whole checkpoint; part '' has the buffers."""
    files = [json.loads((ROOT / 'test/data/parity' / name).read_text()) for name in KEY_FILES]
    return {part: keys for file in files for part, keys in file.items() if part != 'unet_config'}


def make(folder: Path, shapes: dict[str, dict[str, list[int]]]) -> dict:
    """Write stage1.ckpt and stage2.ckpt."""
    facts = {}
    for seed, (name, left_out) in enumerate({'stage1': (), 'stage2': FROZEN}.items()):
        generator = torch.Generator().manual_seed(seed)
        state_dict = {}
        for part, keys in shapes.items():
            if part in left_out:
                continue
            for key, shape in keys.items():
                value = torch.randn(shape, generator=generator)
                if len(shape) > 1:
                    value = value / np.prod(shape[1:]) ** 0.5
                else:
                    value = 0.1 * value + key.endswith('weight')
                state_dict[f'{part}.{key}' if part else key] = value.half()
        scheduler = RescaledDDIMScheduler()
        state_dict['alphas_cumprod'] = scheduler.alphas_cumprod.float()
        state_dict['scale_arr'] = torch.cat([scheduler.scales, torch.full((400,), 0.7)]).float()
        path = folder / f'{name}.ckpt'
        torch.save({'state_dict': state_dict}, path)
        facts[path.name] = {
            'keys': len(state_dict),
            'weights': sum(value.numel() for value in state_dict.values()),
            'bytes': path.stat().st_size,
        }
    return facts


def convert(folder: Path) -> dict:
    """Convert both into one model; how many keys had which fate."""
    report = convert_checkpoint(folder / 'stage1.ckpt', folder / 'model', video=folder / 'stage2.ckpt')
    kinds = ('used', 'not_needed', 'unused', 'missing')
    return {
        account['file']: {kind: len(account[kind]) for kind in kinds} for account in report['checkpoints']
    }


def compare(folder: Path) -> dict:
    """Look every used weight up in the saved files; AssertionError if a value differs."""
    report = json.loads((folder / 'model' / 'report.json').read_text())
    opened, found = {}, 0
    for path in sorted(folder.glob('model/*/*.safetensors')):
        file = safe_open(path, 'pt')
        opened |= {f'{path.parent.name}/{key}': (file, key) for key in file.keys()}  # noqa: SIM118
    saved = set(opened)
    for account in report['checkpoints']:
        state_dict = load_checkpoint(folder / account['file'])
        for ldm, places in account['used'].items():
            for place in places.split(', '):
                if place not in opened:  # a configuration
                    continue
                file, key = opened[place]
                expected = state_dict[ldm].flatten()
                if '.in_proj_' in ldm:
                    expected = expected.chunk(3)['qkv'.index(key.split('_proj.')[0][-1])]
                assert torch.equal(file.get_tensor(key).flatten(), expected), (ldm, place)
                saved.discard(place)
                found += 1
    assert not saved, f'weights of the model that no key accounts for: {sorted(saved)[:5]}'
    size = sum(path.stat().st_size for path in folder.glob('model/**/*') if path.is_file())
    return {'weights equal': found, 'weights saved': len(opened), 'model bytes': size}


def run(folder: Path) -> dict:
    """Load the model in bfloat16 and take one step of each stage."""
    start = time.perf_counter()
    pipeline = Mask2IVPipeline.from_pretrained(
        folder / 'model', torch_dtype=torch.bfloat16, local_files_only=True
    )
    loaded = time.perf_counter()
    height, width = pipeline.config.sample_size
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 255 // height, columns * 255 // width, rows % 256], axis=-1).astype(np.uint8)
    labels = np.where((abs(rows - height // 2) < 60) & (abs(columns - width // 2) < 80), lb.OBJECT, 0)
    output = pipeline(
        image[None],
        labels[None].astype(np.uint8),
        'open the drawer',
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
        output_type='latent',
    )
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        'parameters': {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        'load seconds': round(loaded - start, 1),
        'run seconds': round(time.perf_counter() - loaded, 1),
        'labels': list(output.labels.shape),
        'latents': list(output.frames.shape),
        'latents finite': bool(torch.isfinite(output.frames).all()),
        'latents std': round(float(output.frames.std()), 3),
    }


def measured(function, *arguments) -> dict:
    """What `function` returns, with its seconds and the peak memory of its process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    facts = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {'seconds': round(time.perf_counter() - start, 1), 'peak memory GiB': round(peak, 2), **facts}


def in_a_process(function, *arguments) -> dict:
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        facts = pool.submit(measured, function, *arguments).result()
    print(f'{function.__name__}: {json.dumps(facts, indent=1)}', flush=True)
    return facts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--folder', type=Path, help='where to put 20 GB for a while; default: the temporary one'
    )
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results/full_size_conversion.json')
    options = parser.parse_args()
    os.environ['HF_HUB_OFFLINE'] = '1'
    with tempfile.TemporaryDirectory(dir=options.folder, prefix='mask2iv_full_size_') as name:
        folder = Path(name)
        report = {
            'what': 'random float16 checkpoints in the official key names, bfloat16 run, one thread of a CPU',
            'versions': {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
            'make': in_a_process(make, folder, official_shapes()),
            'convert': in_a_process(convert, folder),
            'compare': in_a_process(compare, folder),
            'run': in_a_process(run, folder),
        }
    options.output.write_text(json.dumps(report, indent=1) + '\n')
    print(f'Written to {options.output}')


if __name__ == '__main__':
    main()
