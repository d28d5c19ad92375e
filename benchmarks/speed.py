"""Where does a call spend its time, and how far is it from what the machine can do?

    . scripts/env.sh && python benchmarks/speed.py          # results/speed_<device>.{json,md}
    python benchmarks/speed.py --full-size --device cuda    # random weights; results/speed_<device>_full.*
    python benchmarks/speed.py --scaling                    # results/scaling_<device>.{json,md,png}

Rows, made in turn, so that what else the machine does meets all alike: `reference` (the plain pipeline with
the public 50 steps a stage, float32 on a CPU, bfloat16 on CUDA), `ours` (as the node loads and calls it) and
`masks only` (the same without stage 2). A call is `generate_plans` on a 640 x 480 picture. FLOPs are counted
once a row by torch's counter; bytes are those of the weights, each read once a call of its network. The
limit of a part is the longer of its FLOPs at the matrix rate and its bytes at the bandwidth that the machine
reaches in this run, on one large product and one large copy; `share` is that limit in the time measured.

`--scaling` measures instead how time and memory of `ours` grow with samples, frames and the model's
resolution, each on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from machine import processor_name
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from mask2iv_ros.models.openclip import OpenCLIPImageProcessor, openclip_tokenizer
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines import components, load_pipeline
from mask2iv_ros.pipelines.loading import choose_device
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.planning.generate import generate_plans
from mask2iv_ros.planning.request import GenerationRequest

HEIGHT, WIDTH = 480, 640
PUBLIC_STEPS = 50
#: Networks, in the order of a call. Before and after them come framing, scores and motion; `between` is what
#: the stages do besides: schedulers, masks from colours and back, blending with the observation.
NETWORKS = ('text', 'image tokens', 'encode 1', 'denoise 1', 'decode 1', 'encode 2', 'denoise 2', 'decode 2')
PARTS = ('preprocess', *NETWORKS, 'between', 'postprocess')
#: What grows: values of `GenerationRequest`, and factors of the model's height and width.
SCALES = {'num_samples': (1, 2, 4, 8, 16), 'num_frames': (16, 32, 48, 64), 'resolution': (1, 2, 3)}
RESULTS = Path(__file__).parent / 'results'


class Parts:
    """While it is entered, a pipeline's networks are timed, and their work is counted."""

    def __init__(self, pipeline: Mask2IVPipeline, counter: FlopCounterMode | None = None):
        self.pipeline, self.counter = pipeline, counter

    def __enter__(self) -> Parts:
        self.seconds, self.flops, self.bytes = defaultdict(float), defaultdict(int), defaultdict(int)
        self.stage, self.restored = 1, contextlib.ExitStack()
        pipeline = self.pipeline
        self._time(pipeline.text_encoder, 'forward', 'text')
        for name in ('image_encoder', 'trajectory_image_projector', 'video_image_projector'):
            if getattr(pipeline, name) is not None:
                self._time(getattr(pipeline, name), 'forward', 'image tokens')
        self._time(pipeline.vae, 'encode', 'encode', pipeline.vae.encoder)
        self._time(pipeline.vae, 'decode', 'decode', pipeline.vae.decoder)
        self._time(pipeline.trajectory_unet, 'forward', 'denoise 1')
        self._time(pipeline.video_unet, 'forward', 'denoise 2')
        return self

    def __exit__(self, *_):
        self.restored.close()

    def _time(self, module: torch.nn.Module, method: str, part: str, weights: torch.nn.Module | None = None):
        original = getattr(module, method)
        size = sum(p.numel() * p.element_size() for p in (weights or module).parameters())

        def timed(*args, **kwargs):
            if part == 'encode' and self.seconds['decode 1']:  # the masks of stage 1 go back in
                self.stage = 2
            name = f'{part} {self.stage}' if part in ('encode', 'decode') else part
            flops, start = self._flops(), self._now()
            result = original(*args, **kwargs)
            self.seconds[name] += self._now() - start
            self.flops[name] += self._flops() - flops
            self.bytes[name] += size
            return result

        setattr(module, method, timed)
        self.restored.callback(delattr, module, method)

    def _flops(self) -> int:
        return self.counter.get_total_flops() if self.counter else 0

    def _now(self) -> float:
        if self.pipeline.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()


def request(steps: int, masks_only: bool, **options) -> GenerationRequest:
    """A drawer-like object with a gripper above it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return GenerationRequest(
        np.stack([rows / 2, columns / 3, (rows + columns) / 5], axis=-1).astype(np.uint8),
        (abs(rows - 280) < 60) & (abs(columns - 320) < 90),
        (rows < 230) & (abs(columns - 320) < 40),
        'open the drawer',
        num_inference_steps=steps,
        trajectory_only=masks_only,
        **options,
    )


def full_size_pipeline(device: str, dtype: torch.dtype) -> Mask2IVPipeline:
    """The paper's networks with random weights: they take as long as trained ones."""
    text = {'hidden_size': 1024, 'intermediate_size': 4096, 'num_attention_heads': 16, 'pad_token_id': 0}
    image = {'hidden_size': 1280, 'intermediate_size': 5120, 'num_attention_heads': 16, 'patch_size': 14}
    with torch.device(device):
        networks = {
            'vae': AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=('DownEncoderBlock2D',) * 4,
                up_block_types=('UpDecoderBlock2D',) * 4,
                layers_per_block=2,
                latent_channels=4,
            ),
            'text_encoder': CLIPTextModel(CLIPTextConfig(**text, num_hidden_layers=23)),
            'image_encoder': CLIPVisionModel(CLIPVisionConfig(**image, num_hidden_layers=32)),
        }
        for stage in ('trajectory', 'video'):
            networks |= {f'{stage}_unet': DynamiCrafterUNet(), f'{stage}_image_projector': Resampler()}
    return Mask2IVPipeline(
        **{name: network.to(dtype).eval() for name, network in networks.items()},
        scheduler=RescaledDDIMScheduler(),
        tokenizer=openclip_tokenizer(),
        feature_extractor=OpenCLIPImageProcessor(),
        name='full size, random weights',
    )


def machine_rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """FLOPs a second of a large matrix product in `dtype`, bytes a second of a large copy: best of five."""
    is_cuda = device.startswith('cuda')
    side = 8192 if is_cuda else 2048
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    memory = torch.zeros(2**30 if is_cuda else 2**27, device=device, dtype=torch.uint8)

    def best(work) -> float:
        times = []
        for _ in range(6):
            if is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return {
        'FLOPs a second': 2 * side**3 / best(lambda: matrix @ matrix),
        'bytes a second': 2 * len(memory) / best(memory.clone),
    }


class Row:
    """One way to call a model: its work, counted once, and the seconds of every call."""

    def __init__(self, pipeline: Mask2IVPipeline, steps: int, masks_only: bool = False):
        pipeline.set_progress_bar_config(disable=True)
        for network in pipeline.components.values():
            if isinstance(network, torch.nn.Module):
                network.requires_grad_(False)  # torch's counter of FLOPs does not go with no_grad alone
        self.pipeline, self.request, self.runs, self.memory = pipeline, request(steps, masks_only), [], 0
        components.TEXT_TOKENS.clear()
        with FlopCounterMode(display=False) as counter, Parts(pipeline, counter) as parts:
            generate_plans(pipeline, self.request)
        self.flops, self.bytes = dict(parts.flops), dict(parts.bytes)

    def run(self) -> None:
        reset_peak_memory(self.pipeline.device)
        components.TEXT_TOKENS.clear()  # the text is new each time
        with Parts(self.pipeline) as parts:
            start = time.perf_counter()
            clock = generate_plans(self.pipeline, self.request)[0].timings
            total = time.perf_counter() - start
        self.memory = max(self.memory, peak_memory(self.pipeline.device))
        seconds = {part: parts.seconds[part] for part in NETWORKS if parts.seconds[part]}
        seconds |= {part: clock[part] for part in ('preprocess', 'postprocess')}
        seconds['between'] = total - sum(seconds.values())
        self.runs.append({**seconds, 'total': total})

    def describe(self, rates: dict[str, float]) -> dict:
        found = {}
        for part in self.runs[0]:
            times = [run[part] for run in self.runs]
            found[part] = {'median': statistics.median(times), 'min': min(times), 'max': max(times)}
        for part in (*self.flops, 'total'):
            flops = sum(self.flops.values()) if part == 'total' else self.flops[part]
            size = sum(self.bytes.values()) if part == 'total' else self.bytes[part]
            limit = max(flops / rates['FLOPs a second'], size / rates['bytes a second'])
            found[part] |= {'FLOPs': flops, 'weight bytes': size, 'limit': limit}
            found[part]['share'] = limit / found[part]['median']
        return {
            'dtype': str(self.pipeline.dtype),
            'steps': self.request.num_inference_steps or self.pipeline.config.num_inference_steps,
            'rates': rates,
            'peak memory bytes': self.memory,
            'parts': found,
            'runs': self.runs,
        }


def reset_peak_memory(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak of the process starts anew


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA of tensors; on a CPU of the process, models of other rows included."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated()
    (line,) = [x for x in Path('/proc/self/status').read_text().splitlines() if x.startswith('VmHWM')]
    return int(line.split()[1]) * 1024


def scaling(pipeline: Mask2IVPipeline, steps: int, runs: int) -> dict[str, list[dict]]:
    """Seconds and peak memory of calls by what grows and how far."""
    pipeline.set_progress_bar_config(disable=True)
    size, found = tuple(pipeline.config.sample_size), {}
    for what, values in SCALES.items():
        found[what] = []
        for value in tqdm(values, desc=what, unit='call'):
            options = {} if what == 'resolution' else {what: value}
            factor = value if what == 'resolution' else 1
            fitted = tuple(factor * side for side in size)
            pipeline.register_to_config(sample_size=fitted)
            wanted = request(steps, masks_only=False, **options)
            if wanted.num_frames and wanted.num_frames < pipeline.config.num_frames:
                continue
            generate_plans(pipeline, wanted)
            reset_peak_memory(pipeline.device)
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                generate_plans(pipeline, wanted)
                seconds.append(time.perf_counter() - start)
            found[what].append(
                {
                    what: list(fitted) if what == 'resolution' else value,
                    'seconds': statistics.median(seconds),
                    'min': min(seconds),
                    'max': max(seconds),
                    'clips an hour': 3600 * wanted.num_samples / statistics.median(seconds),
                    'peak memory bytes': peak_memory(pipeline.device),
                }
            )
    pipeline.register_to_config(sample_size=size)
    return found


def scaling_table(report: dict) -> str:
    lines = [
        f'{report["model"]}, {report["dtype"][6:]}, {report["steps"]} steps, {report["processor"]}, '
        f'{report["threads"]} threads; masks and video, medians of {report["runs"]} calls, see `speed.py`. '
        'On a CPU the memory is that of the process, which keeps some of what the rows above it took.',
        '',
        '| | | seconds | from to | clips an hour | peak memory, GiB |',
        '|---|---|---|---|---|---|',
    ]
    for what, rows in report['scaling'].items():
        for row in rows:
            value = 'x'.join(map(str, row[what])) if what == 'resolution' else row[what]
            lines.append(
                f'| {what.removeprefix("num_")} | {value} | {row["seconds"]:.2f} | {row["min"]:.2f} to '
                f'{row["max"]:.2f} | {row["clips an hour"]:.0f} | {row["peak memory bytes"] / 2**30:.2f} |'
            )
    return '\n'.join(lines) + '\n'


def draw_scaling(report: dict, path: Path) -> None:
    """Seconds and memory against the work, both relative to the least; the diagonal is proportional."""
    figure = Figure(figsize=(9, 3.2), layout='constrained')
    for axes, (what, rows) in zip(figure.subplots(1, len(SCALES)), report['scaling'].items(), strict=True):
        work = [np.prod(row[what]) / np.prod(rows[0][what]) for row in rows]
        for name, label in (('seconds', 'time'), ('peak memory bytes', 'peak memory')):
            axes.plot(work, [row[name] / rows[0][name] for row in rows], marker='o', label=label)
        axes.plot([1, max(work)], [1, max(work)], ':', color='grey', label='proportional')
        axes.set(title=what.removeprefix('num_'), xlabel='times as many' + ' pixels' * (what == 'resolution'))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def ratios(rows: dict[str, Row], name: str) -> dict[str, float]:
    """How many times faster a row is than the reference, of the calls made side by side."""
    pairs = zip(rows['reference'].runs, rows[name].runs, strict=True)
    found = [reference['total'] / own['total'] for reference, own in pairs]
    return {'median': statistics.median(found), 'min': min(found), 'max': max(found)}


def table(report: dict) -> str:
    rows = report['rows']
    totals = [row['parts']['total'] for row in rows.values()]

    def line(name: str, cells) -> str:
        return f'| {name} | ' + ' | '.join(cells) + ' |'

    def seconds(part: str) -> Iterator[str]:
        for row in rows.values():
            found = row['parts'].get(part)
            share = f' ({100 * found["share"]:.0f} %)' if found and found.get('share', 0) > 0.005 else ''
            yield f'{found["median"]:.3f}{share}' if found else ''

    faster = (f'{r["median"]:.1f} ({r["min"]:.1f} to {r["max"]:.1f})' for r in report['faster'].values())
    lines = [
        f'{report["model"]}, {report["processor"]}, {report["threads"]} threads, {report["runs"]} calls a '
        'row made in turn; see `speed.py`. Seconds (median), in brackets the share of the limit.',
        '',
        line('', (f'{name}: {row["dtype"][6:]}, {row["steps"]} steps' for name, row in rows.items())),
        '|---' * (len(rows) + 1) + '|',
        *(line(part, seconds(part)) for part in (*PARTS, 'total')),
        line('total, from to', (f'{total["min"]:.2f} to {total["max"]:.2f}' for total in totals)),
        line('times faster', ('', *faster)),
        line('TFLOP', (f'{total["FLOPs"] / 1e12:.3f}' for total in totals)),
        line(
            'TFLOP a second that the machine reaches',
            (f'{row["rates"]["FLOPs a second"] / 1e12:.2f}' for row in rows.values()),
        ),
        line('peak memory, GiB', (f'{row["peak memory bytes"] / 2**30:.2f}' for row in rows.values())),
    ]
    return '\n'.join(lines) + '\n'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', default='', help='folder of a model; empty: the embedded one')
    parser.add_argument('--full-size', action='store_true', help="the paper's networks, random weights")
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--steps', type=int, default=0, help="of `ours`; 0: the model's")
    parser.add_argument('--runs', type=int, default=5, help='calls a row')
    parser.add_argument('--scaling', action='store_true', help='time and memory against the work instead')
    parser.add_argument('--output', type=Path, help='result files, without their ending')
    options = parser.parse_args(arguments)

    device = choose_device(options.device)
    if device.startswith('cuda'):
        torch.cuda.set_device(device)  # which is measured below

    def load(dtype: torch.dtype | None) -> Mask2IVPipeline:
        if not options.full_size:
            return load_pipeline(options.model, device, dtype)
        return full_size_pipeline(device, dtype or torch.bfloat16)

    ours = load(None)
    is_cuda = ours.device.type == 'cuda'
    about = {
        'model': ours.config.name,
        'processor': torch.cuda.get_device_name() if is_cuda else processor_name(),
        'threads': torch.get_num_threads(),
        'image': [WIDTH, HEIGHT],
        'runs': options.runs,
    }
    kind = 'scaling' if options.scaling else 'speed'
    output = options.output or RESULTS / f'{kind}_{ours.device.type}{"_full" if options.full_size else ""}'
    if options.scaling:
        about |= {'dtype': str(ours.dtype), 'steps': options.steps or ours.config.num_inference_steps}
        report = {**about, 'scaling': scaling(ours, options.steps, options.runs)}
        draw_scaling(report, output.with_suffix('.png'))
        write(report, scaling_table(report), output)
        return
    plain = torch.bfloat16 if is_cuda else torch.float32
    rows = {
        'reference': Row(ours if ours.dtype == plain else load(plain), PUBLIC_STEPS),
        'ours': Row(ours, options.steps),
        'masks only': Row(ours, options.steps, masks_only=True),
    }
    for _ in tqdm(range(options.runs), desc='calls', unit='round'):
        for row in rows.values():
            row.run()
    rates = {dtype: machine_rates(device, dtype) for dtype in {row.pipeline.dtype for row in rows.values()}}
    report = {
        **about,
        'rows': {name: row.describe(rates[row.pipeline.dtype]) for name, row in rows.items()},
        'faster': {name: ratios(rows, name) for name in rows if name != 'reference'},
    }
    write(report, table(report), output)


def write(report: dict, text: str, output: Path) -> None:
    output.with_suffix('.json').write_text(json.dumps(report, indent=1) + '\n')
    output.with_suffix('.md').write_text(text)
    print(text)


if __name__ == '__main__':
    main()
