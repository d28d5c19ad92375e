"""Official Mask2IV and DynamiCrafter checkpoints (LDM's key names) to pipeline folders.

A checkpoint holds one stage: its UNet (`model.diffusion_model`) and Resampler (`image_proj_model`), and the
frozen parts that both stages share: VAE (`first_stage_model`), OpenCLIP text (`cond_stage_model`) and image
encoder (`embedder`). Every key of a file ends up in the report: used, not needed for a reason, or unused.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from mask2iv_ros.models import conversion as denoiser
from mask2iv_ros.models import encoder_conversion as encoders
from mask2iv_ros.models.openclip import OpenCLIPImageProcessor, openclip_tokenizer
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.weights import REPORT

logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

STAGES = {pipeline.stage: pipeline for pipeline in (MaskTrajectoryPipeline, InteractionVideoPipeline)}
#: What the input channels of each stage's UNet are, a third of them each.
CHANNEL_ORDER = {'trajectory': ('noise', 'mask', 'image'), 'video': ('noise', 'image', 'mask')}
DYNAMICRAFTER_CHANNELS, MASK2IV_CHANNELS = 8, 12
#: How the paper's models are sampled.
SAMPLING = {'num_inference_steps': 50, 'eta': 1.0, 'fps': 15.0}


@dataclass(frozen=True)
class _Part:
    folder: str
    prefix: str
    build: Callable[[dict], torch.nn.Module]
    infer_config: Callable[[StateDict], dict]
    key_map: Callable[[dict], dict[str, str]]
    convert: Callable[[StateDict, dict], StateDict]


_UNET = _Part(
    'unet',
    'model.diffusion_model.',
    DynamiCrafterUNet.from_config,
    denoiser.infer_unet_config,
    denoiser.ldm_unet_keys,
    denoiser.convert_ldm_unet,
)
_PROJECTOR = _Part(
    'image_projector',
    'image_proj_model.',
    Resampler.from_config,
    denoiser.infer_resampler_config,
    denoiser.ldm_resampler_keys,
    denoiser.convert_ldm_resampler,
)
_SHARED_PARTS = (
    _Part(
        'vae',
        'first_stage_model.',
        AutoencoderKL.from_config,
        encoders.infer_vae_config,
        encoders.ldm_vae_keys,
        encoders.convert_ldm_vae,
    ),
    _Part(
        'text_encoder',
        'cond_stage_model.model.',
        encoders.build_text_encoder,
        encoders.infer_text_encoder_config,
        encoders.ldm_text_encoder_keys,
        encoders.convert_ldm_text_encoder,
    ),
    _Part(
        'image_encoder',
        'embedder.model.visual.',
        encoders.build_image_encoder,
        encoders.infer_image_encoder_config,
        encoders.ldm_image_encoder_keys,
        encoders.convert_ldm_image_encoder,
    ),
)
#: Known keys without a place in the pipeline: pattern, reason.
_NOT_NEEDED = (
    (
        r'cond_stage_model\.model\.transformer\.resblocks\.\d+\.(ln_[12]|attn|mlp)\..*',
        'last layer; text tokens are the penultimate one',
    ),
    (r'cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)', 'not on the way to text tokens'),
    (r'embedder\.model\.visual\.proj', 'not on the way to image tokens'),
    (
        r'embedder\.model\.(token_embedding|positional_embedding|ln_final|text_projection|logit_scale|attn_mask)\b.*',
        'text half of the image encoder, which never runs',
    ),
    (r'embedder\.(mean|std)', 'constants of the feature extractor'),
    (r'first_stage_model\.loss\..*', 'training loss of the VAE'),
    (
        r'(betas|alphas_cumprod_prev|(sqrt|log)_.*|posterior_.*|lvlb_weights|logvar)',
        'follows from alphas_cumprod',
    ),
)


def load_checkpoint(path: str | Path) -> StateDict:
    """Read the tensors of a `.safetensors` file or of a torch checkpoint, without running code from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    try:
        if path.suffix == '.safetensors':
            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:  # torch's own text recommends to load without this protection
        name = re.search(r'GLOBAL (\S+)', str(error))
        detail = f'it calls {name[1]}' if name else str(error).rpartition('error: ')[2].strip().split('\n')[0]
        raise ValueError(
            f'{path}: expected a checkpoint of tensors only; nothing was run ({detail})'
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f'{path}: not a readable checkpoint of tensors ({error})') from error
    # Lightning keeps the weights under 'state_dict', DeepSpeed under 'module' behind a prefix.
    for name in ('state_dict', 'module'):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    values = content.values() if isinstance(content, dict) else [content]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in values):
        raise ValueError(f'{path}: expected a dictionary of tensors')
    return {key.removeprefix('_forward_module.'): value for key, value in content.items()}


class _Checkpoint:
    """A checkpoint file and the account of its keys."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.state_dict = load_checkpoint(path)
        self.used: dict[str, list[str]] = {}
        self.missing: list[str] = []

    def weights(self, part: _Part) -> StateDict:
        """The weights of `part`, without its prefix."""
        prefix = part.prefix
        return {key[len(prefix) :]: value for key, value in self.state_dict.items() if key.startswith(prefix)}

    def found(self) -> str:
        """What the file holds, in a line."""
        counts = Counter(re.match(r'(model\.)?[^.]*', key)[0] for key in self.state_dict)
        names = [f'{count} {name}.*' for name, count in counts.most_common(6)]
        return f'{len(self.state_dict)} keys: {", ".join(names)}{", ..." if len(counts) > 6 else ""}'

    def build(self, part: _Part, folder: str) -> torch.nn.Module | None:
        """The model of `part`, its keys noted as used for `folder`; None if some are missing."""
        weights = self.weights(part)
        try:
            config = part.infer_config(weights)
            names = part.key_map(config)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
            self.missing.append(f'{part.prefix}* (the shapes give no config: {error!r})')
            return None
        self.account(part, folder, names)
        if any(ldm not in weights for ldm in names.values()):
            return None
        if part is _UNET:
            weights, config = _widen_input(weights, config)
        with torch.device('meta'):
            model = part.build(config)
        try:
            model.load_state_dict(part.convert(weights, config), assign=True)
        except RuntimeError as error:
            raise ValueError(f'{self.path}: the weights do not fit the config: {error}') from error
        return model.eval()

    def account(self, part: _Part, folder: str, names: Mapping[str, str]) -> None:
        """Note the keys of `part` as used for `folder`, or as missing."""
        for key, ldm in names.items():
            if part.prefix + ldm in self.state_dict:
                self.used.setdefault(part.prefix + ldm, []).append(f'{folder}/{key}')
            elif part.prefix + ldm not in self.missing:
                self.missing.append(part.prefix + ldm)

    @property
    def in_channels(self) -> int | None:
        """Input channels of the UNet; None if its first convolution is missing."""
        weight = self.state_dict.get(f'{_UNET.prefix}input_blocks.0.0.weight')
        return None if weight is None or weight.ndim != 4 else weight.shape[1]

    def report(self, stages: list[str]) -> dict[str, Any]:
        not_needed, unused = {}, []
        for key in self.state_dict:
            if key in self.used:
                continue
            reason = next((why for pattern, why in _NOT_NEEDED if re.fullmatch(pattern, key)), None)
            if reason:
                not_needed[key] = reason
            else:
                unused.append(key)
        return {
            'file': self.path.name,
            'stages': stages,
            'used': {key: ', '.join(places) for key, places in self.used.items()},
            'not_needed': not_needed,
            'unused': unused,
            'missing': self.missing,
        }


def _widen_input(weights: StateDict, config: dict[str, Any]) -> tuple[StateDict, dict[str, Any]]:
    """Give the first convolution of a DynamiCrafter UNet zero weights for the third group of channels."""
    name, new = 'input_blocks.0.0.weight', MASK2IV_CHANNELS - config['in_channels']
    if not new:
        return weights, config
    weight = weights[name]
    widened = torch.cat([weight, weight.new_zeros(weight.shape[0], new, *weight.shape[2:])], dim=1)
    return weights | {name: widened}, config | {'in_channels': MASK2IV_CHANNELS}


def convert_checkpoint(
    path: str | Path,
    out: str | Path,
    video: str | Path | None = None,
    stage: str | None = None,
    sample_size: tuple[int, int] = (320, 512),
) -> dict[str, Any]:
    """Convert one checkpoint, or one of each stage, into a pipeline folder of safetensors.

    With `video`, `path` is stage 1 and the result a `Mask2IVPipeline`; the frozen parts of both files must be
    equal and are stored once. A single Mask2IV checkpoint (12 input channels) becomes the pipeline of its
    stage. A single DynamiCrafter checkpoint (8 channels) is where training of both stages starts: it becomes
    a `Mask2IVPipeline` with it in both, its input widened by zero weights, unless `stage` names one.

    Args:
        path: `.ckpt`, `.pt` or `.safetensors` file.
        out: new or empty folder to write into.
        video: checkpoint of stage 2.
        stage: 'trajectory' (stage 1) or 'video' (stage 2), for a single checkpoint: its weights do not tell.
        sample_size: (height, width) in pixels that it was trained at.

    Returns:
        What `out/report.json` holds: `pipeline`, `channel_order`, `notes`, `configs` {folder: config}, and
        `checkpoints`, in which every key of a file is named once: `used` {key: where it went}, `not_needed`
        {key: why}, `unused` [keys]; beside them `missing` [keys that the models need].

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package with CLIP's vocabulary is not installed.
        ValueError: a file is damaged, of something else or of other sizes, its weights do not fill the
            models, or the files do not belong together. Where keys are missing the report is written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(child.name != REPORT for child in out.iterdir())):
        raise ValueError(f'{out}: expected a new or empty folder')
    if stage is not None and (video is not None or stage not in STAGES):
        raise ValueError(f'stage {stage!r}: expected one of {", ".join(STAGES)}, and only without `video`')
    tokenizer = openclip_tokenizer()
    checkpoints = [_Checkpoint(file) for file in (path, video) if file is not None]
    notes: list[str] = []
    stages = _stages(checkpoints, stage, notes)

    models = {}
    for name, checkpoint in stages.items():
        for part in (_UNET, _PROJECTOR):
            folder = part.folder if len(stages) == 1 else f'{name}_{part.folder}'
            models[folder] = checkpoint.build(part, folder)
    for part in _SHARED_PARTS:
        models[part.folder] = _build_shared(part, checkpoints)
    scheduler = _scheduler(checkpoints, notes)
    for checkpoint in checkpoints:
        if (factor := checkpoint.state_dict.get('scale_factor')) is not None and models['vae'] is not None:
            models['vae'].register_to_config(scaling_factor=float(factor))
            checkpoint.used['scale_factor'] = ['vae/config.json']

    unets = [model for folder, model in models.items() if folder.endswith('unet')]
    halvings = [len(model.config.block_out_channels) - 1 for model in (unets[0], models['vae']) if model]
    if any(side < 1 or side % 2 ** sum(halvings) for side in sample_size):
        raise ValueError(
            f'sample_size: expected multiples of {2 ** sum(halvings)}, which UNet and VAE can halve, '
            f'got {tuple(sample_size)}'
        )
    single = len(stages) == 1
    pipeline_class = STAGES[next(iter(stages))] if single else Mask2IVPipeline
    report = {
        'pipeline': pipeline_class.__name__,
        'channel_order': {name: CHANNEL_ORDER[name] for name in stages},
        'notes': notes,
        'configs': {folder: _plain(model.config) for folder, model in models.items() if model is not None},
        'checkpoints': [
            checkpoint.report([name for name, source in stages.items() if source is checkpoint])
            for checkpoint in checkpoints
        ],
    }
    report = json.loads(json.dumps(report))
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, indent=1) + '\n')
    for checkpoint, account in zip(checkpoints, report['checkpoints'], strict=True):
        if missing := account['missing']:
            raise ValueError(
                f'{checkpoint.path}: {len(missing)} weights are missing, first {missing[0]}; '
                f'found {checkpoint.found()}; see {out / REPORT}'
            )
        if unused := account['unused']:
            logger.warning(
                '%s: %d keys are not used, first %s; see %s',
                checkpoint.path,
                len(unused),
                unused[0],
                out / REPORT,
            )
    _check_fit(models, checkpoints[0].path)

    projector = next(model for folder, model in models.items() if folder.endswith(_PROJECTOR.folder))
    image_size = models['image_encoder'].config.image_size
    components = {
        **models,
        'scheduler': scheduler,
        'tokenizer': tokenizer,
        'feature_extractor': OpenCLIPImageProcessor(size=image_size),
        'num_frames': projector.config.num_frames,
        **SAMPLING,
    }
    if not single:
        components |= {'name': out.resolve().name, 'sample_size': tuple(sample_size)}
    pipeline: DiffusionPipeline = pipeline_class(**components)
    pipeline.save_pretrained(out)
    return report


def _stages(checkpoints: list[_Checkpoint], stage: str | None, notes: list[str]) -> dict[str, _Checkpoint]:
    """{stage: its checkpoint}, with a note for each choice that the user should know of."""
    for checkpoint in checkpoints:
        if checkpoint.in_channels not in (None, DYNAMICRAFTER_CHANNELS, MASK2IV_CHANNELS):
            raise ValueError(
                f'{checkpoint.path}: the UNet has {checkpoint.in_channels} input channels, expected '
                f'{DYNAMICRAFTER_CHANNELS} (DynamiCrafter) or {MASK2IV_CHANNELS} (Mask2IV); '
                f'found {checkpoint.found()}'
            )
    widened = [checkpoint for checkpoint in checkpoints if checkpoint.in_channels == DYNAMICRAFTER_CHANNELS]
    notes += [
        f'{checkpoint.path.name}: a DynamiCrafter checkpoint of 8 input channels. Channels 8 to 11 are new, '
        'with zero weights, as training of Mask2IV starts: until it is fine-tuned, stage 1 does not see the '
        'image latent and stage 2 does not see the masks.'
        for checkpoint in widened
    ]
    if len(checkpoints) == 2:
        return dict(zip(STAGES, checkpoints, strict=True))
    if stage is None and widened:
        return dict.fromkeys(STAGES, checkpoints[0])
    if stage is None:
        stage = 'trajectory'
        notes.append(
            f'{checkpoints[0].path.name}: taken as stage 1 (noise, mask, image): its weights do not tell the '
            'stage. Convert one of stage 2 (noise, image, mask) with --stage video, or both with --video.'
        )
    return {stage: checkpoints[0]}


def _build_shared(part: _Part, checkpoints: list[_Checkpoint]) -> torch.nn.Module | None:
    """The frozen `part`, which every checkpoint that has it must have with equal values."""
    holders = [checkpoint for checkpoint in checkpoints if checkpoint.weights(part)] or checkpoints[:1]
    model = holders[0].build(part, part.folder)
    for other in holders[1:]:
        for key, places in list(holders[0].used.items()):
            if not key.startswith(part.prefix):
                continue
            if key not in other.state_dict:
                other.missing.append(key)
                continue
            if not _equal(other.state_dict[key], holders[0].state_dict[key]):
                raise ValueError(
                    f'{other.path}: {key} differs from that of {holders[0].path}; both stages share the '
                    f'{part.folder}, so they do not belong together'
                )
            other.used[key] = places
    return model


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype:  # one file in half precision
        dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        a, b = a.to(dtype), b.to(dtype)
    return torch.equal(a, b)


def _scheduler(checkpoints: list[_Checkpoint], notes: list[str]) -> RescaledDDIMScheduler:
    """The scheduler, its noise schedule and rescale checked against what the files say."""
    bases = {checkpoint.path: _rescale_base(checkpoint, notes) for checkpoint in checkpoints}
    if len(set(bases.values())) > 1:
        raise ValueError(f'dynamic rescale differs, so the stages cannot share a scheduler: {bases}')
    return RescaledDDIMScheduler(rescale_base=next(iter(bases.values())))


def _rescale_base(checkpoint: _Checkpoint, notes: list[str]) -> float:
    state_dict, name = checkpoint.state_dict, checkpoint.path.name
    default = RescaledDDIMScheduler()
    if (alphas := state_dict.get('alphas_cumprod')) is not None:
        if not _close(alphas, default.alphas_cumprod):
            raise ValueError(
                f"{checkpoint.path}: alphas_cumprod is not Mask2IV's noise schedule (zero terminal SNR after "
                f'{len(default)} steps): {len(alphas)} steps, ends at {float(alphas[-1]):.4g}'
            )
        checkpoint.used['alphas_cumprod'] = ['scheduler (equal)']
    if (scales := state_dict.get('scale_arr')) is not None:
        base = round(float(scales[-1]), 3)  # 0.7 also from a file in half precision
        # The public array goes on beyond the last timestep.
        if not _close(scales[: len(default)], RescaledDDIMScheduler(rescale_base=base).scales):
            raise ValueError(
                f'{checkpoint.path}: scale_arr does not fall linearly from 1 over 400 timesteps: it starts '
                f'at {float(scales[0]):.4g} and ends at {base:.4g}'
            )
        checkpoint.used['scale_arr'] = ['scheduler/scheduler_config.json']
        return base
    if alphas is not None:
        notes.append(f'{name}: it has a noise schedule and no scale_arr: dynamic rescale is off.')
        return 1.0
    notes.append(f"{name}: it has no noise schedule and no scale_arr; took the paper's, rescale base 0.7.")
    return default.config.rescale_base


def _close(given: torch.Tensor, expected: torch.Tensor) -> bool:
    return given.shape == expected.shape and torch.allclose(given.double(), expected, rtol=0, atol=1e-3)


def _check_fit(models: Mapping[str, torch.nn.Module], path: Path) -> None:
    """Raise ValueError unless the widths of the parts fit together."""
    text, image = models['text_encoder'].config.hidden_size, models['image_encoder'].config.hidden_size
    for folder, model in models.items():
        config = model.config
        if folder.endswith(_UNET.folder):
            wanted = {
                'cross_attention_dim': text,
                'out_channels': models['vae'].config.latent_channels,
                'image_cross_attention': True,
            }
        elif folder.endswith(_PROJECTOR.folder):
            wanted = {'output_dim': text, 'embedding_dim': image}
        else:
            continue
        for name, value in wanted.items():
            if config[name] != value:
                raise ValueError(
                    f'{path}: {folder} has {name} {config[name]}, but its other parts need {value}'
                )


def _plain(config: Any) -> dict[str, Any]:
    values = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
    return {key: value for key, value in values.items() if not key.startswith('_')}
