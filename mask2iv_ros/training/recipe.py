"""`mask2iv train`: one training run from one configuration file, from a dataset to a model folder."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from diffusers import AutoencoderKL, ConfigMixin

from mask2iv_ros.data.episodes import EpisodeReader, demonstrations, files_id, open_dataset, split_episodes
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.models.controlnet import DynamiCrafterControlNet
from mask2iv_ros.models.resampler import Resampler
from mask2iv_ros.models.scheduling_ddim import RescaledDDIMScheduler
from mask2iv_ros.models.text_encoder import PackagedTextEncoder
from mask2iv_ros.models.unet import DynamiCrafterUNet
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.training.arrays import ClipArrays, cached_arrays
from mask2iv_ros.training.autoencoder import AutoencoderOptions, train_autoencoder
from mask2iv_ros.training.diffusion import (
    StageTrainer,
    TrajectoryOptions,
    TrajectoryTrainer,
    Validation,
    VideoOptions,
    VideoTrainer,
    predicted_picks,
)
from mask2iv_ros.training.latents import LatentCache
from mask2iv_ros.training.predictions import predicted_labels
from mask2iv_ros.training.trainer import Schedule
from mask2iv_ros.weights import DEFAULT_MODEL, default_model_path, unpack


@dataclass(frozen=True)
class Stage:
    """The classes of a stage, of the networks that it trains, and what else its pipeline needs to know.

    In a model folder each `networks` and `facts` has the stage's name before its own.
    """

    pipeline: type
    trainer: type
    options: type
    networks: dict[str, type]
    facts: dict[str, object]


NETWORKS = {'unet': DynamiCrafterUNet, 'image_projector': Resampler}
STAGES = {
    'trajectory': Stage(
        MaskTrajectoryPipeline,
        TrajectoryTrainer,
        TrajectoryOptions,
        NETWORKS,
        {'residual_scale': None, 'goal_guidance': 1.0},
    ),
    'video': Stage(
        InteractionVideoPipeline,
        VideoTrainer,
        VideoOptions,
        {**NETWORKS, 'controlnet': DynamiCrafterControlNet},
        {'residual_scale': None, 'masks': 'both'},
    ),
}
#: What can be trained, in the order in which one needs the other.
PARTS = ('autoencoder', *STAGES)
#: What a configuration must say that starts from no model; with one, all but `name` may be left out.
NEEDED = {'name', 'sample_size', 'num_frames', 'sampling', 'scheduler', 'unet', 'image_projector', *PARTS}
KEYS = NEEDED | {'seed', 'init', 'validation', 'short_side'}
#: One of so many training episodes is held out where a dataset has no `val`.
HELD_OUT_PERIOD = 20
#: And no more of them: scoring looks at some clips (`Validation.clips`), the rest is better trained on.
MOST_HELD_OUT = 32
#: What `sampling` may say.
SAMPLING = {'num_inference_steps', 'eta', 'fps'}


class Recipe:
    """One training run in `folder`: `arrays/`, a folder for each part, and `model/` when all are done.

    A configuration trains the parts that it names: a whole model (autoencoder and both stages), or parts of
    the model `init`, whose other networks are taken over. Stages start from the networks of `init`, unless
    the configuration has `unet` and `image_projector`: then from new ones of that size. The autoencoder goes
    on from that of `init`, too.

    `short_side` crops as the paper does, see `Framing.with_short_side`; without it clips are seen whole.

    `fps` of `sampling` is the frame rate that the UNets are told of every clip and that the model works at.
    Without it they are told each clip's own, and the model's is the median of the training clips'.

    Args:
        config: YAML file, see config/train/.
        data: folder with datasets `train` and maybe `val` and `test`, as `mask2iv simulate` writes; or a
            benchmark that `mask2iv prepare` made; or any dataset with masks, of which every tenth
            demonstration is `test`.
        folder: where everything goes; a second run continues there.
        init: folder of a `Mask2IVPipeline`, or 'mask2iv-sim' for the embedded one; it goes before that of the
            configuration.
        cache: folder for `arrays/` and `latents/` in place of `folder`, so that runs on one dataset that
            follow each other decode and encode it once.

    Attributes:
        prediction_seconds: what stage 1 took to predict the masks that stage 2 is trained on.

    Raises:
        ValueError: the configuration has a key too many or too few, or `init` is no model.
    """

    def __init__(
        self,
        config: Path,
        data: Path,
        folder: Path,
        init: str | Path | None = None,
        cache: Path | None = None,
    ):
        # The first process makes arrays while the others wait at a barrier, which may take hours.
        self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))
        self.config = yaml.safe_load(config.read_text())
        self.data, self.folder, self.cache = data, folder, cache or folder
        self.prediction_seconds = 0.0
        self.parts = [part for part in PARTS if part in self.config]
        init = init or self.config.get('init')
        if unknown := self.config.keys() - KEYS:
            raise ValueError(f'{config}: unknown key {sorted(unknown)}; known are {sorted(KEYS)}')
        missing = ({'name'} if init else NEEDED) - self.config.keys()
        if missing or not self.parts:
            raise ValueError(
                f'{config}: expected {sorted(missing) or "a part to train"}'
                + ('' if init else ', or a model to start from (--init)')
            )
        if init and 'scheduler' in self.config:
            raise ValueError(f'{config}: the scheduler is that of the model {init}; leave it out')
        if init and 'model' in (self.config.get('autoencoder') or {}):
            raise ValueError(
                f'{config}: autoencoder: the model goes on from that of {init}; leave `model` out'
            )
        if not init and (self.config['autoencoder'] or {}).get('keep_latents'):
            raise ValueError(f'{config}: autoencoder: keep_latents: there is no model (--init) whose to keep')
        if ('unet' in self.config) != ('image_projector' in self.config):
            raise ValueError(f'{config}: expected unet and image_projector, or neither')
        short_side = self.config.get('short_side', 1)
        if not isinstance(short_side, int) or short_side < 1:
            raise ValueError(f'{config}: short_side: expected a whole number of pixels, got {short_side!r}')
        self.init = self._model_folder(init) if init else None
        if self.init:
            defaults = {key: self._index[key] for key in ('sample_size', 'num_frames')}
            sampling = {key: self._index[key] for key in ('num_inference_steps', 'eta')}
            sampling |= self.config.get('sampling', {})
            self.config = {**defaults, **self.config, 'sampling': sampling}
        self.seed = self.config.get('seed', 0)
        self.validation = _fill(Validation, self.config.get('validation', {}), f'{config}: validation')
        self.options = {part: self._part_options(part, f'{config}: {part}') for part in self.parts}
        if (fps := self.config['sampling'].get('fps', 1)) < 1:
            raise ValueError(f'{config}: sampling: fps: expected at least 1, got {fps}')
        if unknown := self.config['sampling'].keys() - SAMPLING:
            raise ValueError(
                f'{config}: sampling: unknown key {sorted(unknown)}; known are {sorted(SAMPLING)}'
            )
        if 'scheduler' in self.config:
            _fill(RescaledDDIMScheduler, self.config['scheduler'], f'{config}: scheduler')
        with torch.device('meta'):  # only to know that it can be made
            for name in NETWORKS.keys() & self.config.keys():
                _fill(NETWORKS[name], self.config[name], f'{config}: {name}')
            if 'autoencoder' in self.parts:
                model = self.config['autoencoder'].get('model', {})
                _fill(PatchAutoencoderKL, model, f'{config}: autoencoder: model')

    def _part_options(self, part: str, where: str) -> tuple[Schedule, object]:
        section = dict(self.config[part])
        schedule = _fill(Schedule, section.pop('schedule', {}), where)
        if part == 'autoencoder':
            section.pop('model', None)
            return schedule, _fill(AutoencoderOptions, section, where)
        options = section.pop('options', {})
        if section:
            raise ValueError(f'{where}: unknown key {sorted(section)}; known are options and schedule')
        return schedule, _fill(STAGES[part].options, options, where)

    @staticmethod
    def _model_folder(init: str | Path) -> Path:
        folder = default_model_path() if str(init) == DEFAULT_MODEL else Path(init).expanduser()
        if not (folder / 'model_index.json').is_file():
            raise ValueError(f'init: {folder} has no model_index.json: not the folder of a Mask2IVPipeline')
        return unpack(folder)

    def arrays(self, split: str) -> ClipArrays:
        """Clips of 'train', 'val' or 'test' at the model's resolution, decoded on first use and when the
        dataset changed. Without a 'val' of its own, a dataset lends some episodes of 'train' to it."""
        folder = self.cache / 'arrays' / split
        reader, episodes = self._episodes(split)
        reader.with_depth = False
        views = [(episode, camera) for episode in episodes for camera in reader.episode(episode).masked]
        if not views:
            raise ValueError(f'{reader.path}: {split} has no masks to train on; `mask2iv segment` makes some')
        size, num_frames = tuple(self.config['sample_size']), self.config['num_frames']
        files = files_id(reader.path, (self.folder, self.cache))
        short_side = self.config.get('short_side')
        stamp = json.dumps(
            [str(reader.path.resolve()), files, len(reader), views, size, num_frames, short_side]
        )
        with self.state.main_process_first():
            return cached_arrays(reader, views, folder, stamp, size, num_frames, short_side)

    def _episodes(self, split: str) -> tuple[EpisodeReader, list[int]]:
        if split in ('train', 'val') and not self._has_split('val'):
            reader, episodes = self._split('train')
            groups = demonstrations(reader, episodes)
            if len(groups) < 2:
                return reader, episodes  # nothing to spare: one demonstration is both
            # At random: tasks take turns in a data set, and even steps would meet one again and again.
            count = min(len(episodes) // HELD_OUT_PERIOD + 1, MOST_HELD_OUT)
            held_out: set[int] = set()
            for number in np.random.default_rng(0).permutation(len(groups))[: len(groups) - 1]:
                if len(held_out) < count:
                    held_out |= set(groups[number])
            return reader, [i for i in episodes if (i in held_out) == (split == 'val')]
        return self._split(split)

    def _has_split(self, split: str) -> bool:
        return (self.data / split).is_dir() or (self.data / 'manifest.json').is_file()

    def _split(self, split: str) -> tuple[EpisodeReader, list[int]]:
        if (self.data / split).is_dir():
            reader = open_dataset(self.data / split)
        elif (self.data / 'manifest.json').is_file():
            reader = open_dataset(self.data, split=split)
        else:
            reader = open_dataset(self.data)
            training, tests = split_episodes(reader)
            return reader, tests if split == 'test' else training or tests
        return reader, list(range(len(reader)))

    def train(self, part: str, max_minutes: float | None = None) -> bool:
        """Train one part; True when its schedule is complete. Needs the parts before it."""
        if part == 'autoencoder':
            schedule, options = self.options[part]
            torch.manual_seed(self.seed)
            vae = self._whole.vae if self.init else PatchAutoencoderKL(**self.config[part].get('model', {}))
            return train_autoencoder(
                self.arrays('train'),
                self.folder / part,
                vae.requires_grad_(True),
                schedule,
                options,
                seed=self.seed,
                max_minutes=max_minutes,
                is_new=not self.init,
            )
        return self.stage_trainer(part).run(self.arrays('val'), max_minutes, self.validation)

    def stage_trainer(self, stage: str) -> StageTrainer:
        """The trainer of a stage, with its clips encoded."""
        schedule, options = self.options[stage]
        is_new = 'unet' in self.config
        networks = self._new_networks(options) if is_new else self._networks_of_init(stage)
        pipeline = self._stage_pipeline(stage, networks)
        pipeline.vae.to(self.state.device).requires_grad_(False)
        arrays = self.arrays('train')
        cache = LatentCache(arrays, pipeline.vae, self.cache / 'latents')
        more = {}
        if stage == 'video' and options.damage.predicted and pipeline.config.masks != 'none':
            trained_here = 'trajectory' in self.parts
            networks = (
                self._trained_networks('trajectory') if trained_here else self._networks_of_init('trajectory')
            )
            trajectory = self._stage_pipeline('trajectory', networks).to(self.state.device)
            start = time.monotonic()
            more['predicted_clips'] = picks = predicted_picks(options, len(arrays), self.seed)
            more['predicted'], more['predicted_id'] = predicted_labels(cache, trajectory, picks, self.seed)
            self.prediction_seconds = time.monotonic() - start
        return STAGES[stage].trainer(
            pipeline,
            arrays,
            cache,
            self.folder / stage,
            schedule,
            options,
            seed=self.seed,
            is_new=is_new,
            fps=self.config['sampling'].get('fps'),
            **more,
        )

    def _stage_pipeline(
        self, stage: str, networks: dict
    ) -> MaskTrajectoryPipeline | InteractionVideoPipeline:
        """A stage, float32 on the CPU, over the frozen networks of `init` or of this run."""
        if self.init:
            whole = self._whole
            names = ('vae', 'scheduler', 'text_encoder', 'tokenizer', 'image_encoder', 'feature_extractor')
            frozen = {name: getattr(whole, name) for name in names}
        else:
            frozen = {
                'scheduler': RescaledDDIMScheduler(**self.config['scheduler']),
                'text_encoder': PackagedTextEncoder(),
            }
        if 'autoencoder' in self.parts:
            frozen['vae'] = self._trained_vae()
        return STAGES[stage].pipeline(
            **frozen, **networks, num_frames=self.config['num_frames'], **self._sampling
        )

    def _trained_vae(self) -> AutoencoderKL:
        folder = self.folder / 'autoencoder' / 'vae'
        if not folder.is_dir():
            raise FileNotFoundError(f'{folder}: train the autoencoder first')
        vae_class = PatchAutoencoderKL
        if self.init:
            library, name = self._index['vae']
            vae_class = getattr(importlib.import_module(library), name)
        return vae_class.from_pretrained(folder, use_safetensors=True).eval()

    @property
    def _whole(self) -> Mask2IVPipeline:
        """The model `init` without the networks of its stages."""
        left_out = {f'{name}_{network}': None for name in STAGES for network in STAGES[name].networks}
        safe = {'local_files_only': True, 'use_safetensors': True}
        return Mask2IVPipeline.from_pretrained(self.init, **safe, **left_out)

    def _new_networks(self, options: TrajectoryOptions | VideoOptions) -> dict:
        torch.manual_seed(self.seed)
        networks = {
            'unet': DynamiCrafterUNet(**self.config['unet']),
            'image_projector': Resampler(**self.config['image_projector']),
        }
        if isinstance(options, VideoOptions):
            networks['masks'] = options.masks or 'both'
            if options.controlnet:
                networks['controlnet'] = DynamiCrafterControlNet.from_unet(networks['unet'])
        return networks

    def _networks_of_init(self, stage: str) -> dict:
        index, networks = self._index, {}
        for name, default in STAGES[stage].facts.items():
            networks[name] = index.get(f'{stage}_{name}', default)
        for name, network in STAGES[stage].networks.items():
            if (self.init / f'{stage}_{name}').is_dir():
                networks[name] = network.from_pretrained(self.init / f'{stage}_{name}', use_safetensors=True)
        if 'unet' not in networks:
            raise ValueError(f'{self.init}: has no {stage} stage to start from')
        return networks

    def _trained_networks(self, stage: str) -> dict:
        folder = self.folder / stage
        if not (folder / 'stage.json').is_file():
            raise FileNotFoundError(f'{folder}: {stage} is not trained to its end')
        record = json.loads((folder / 'stage.json').read_text())
        networks = {name: record.get(name, default) for name, default in STAGES[stage].facts.items()}
        for name, network in STAGES[stage].networks.items():
            if (folder / name).is_dir():
                networks[name] = network.from_pretrained(folder / name)
        return networks

    def assemble(self) -> Path:
        """Join the trained parts, and what `init` has beside them, into the model folder `model/`.

        New weights are float16; those of `init` are copied as they are.
        """
        folder, fresh = self.folder / 'model', self.folder / 'model.new'
        _ = self._sampling  # may read clips, for which all processes wait
        if self.state.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
            if self.init:
                self._extend_init(fresh)
            else:
                self._join(fresh)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        self.state.wait_for_everyone()
        return folder

    def _join(self, folder: Path) -> None:
        stages = {stage: self._stage_pipeline(stage, self._trained_networks(stage)) for stage in STAGES}
        trajectory, video = stages['trajectory'], stages['video']
        pipeline = Mask2IVPipeline(
            vae=trajectory.vae,
            trajectory_unet=trajectory.unet,
            video_unet=video.unet,
            scheduler=trajectory.scheduler,
            text_encoder=trajectory.text_encoder,
            trajectory_image_projector=trajectory.image_projector,
            video_image_projector=video.image_projector,
            video_controlnet=video.controlnet,
            trajectory_residual_scale=trajectory.config.residual_scale,
            trajectory_goal_guidance=trajectory.config.goal_guidance,
            video_residual_scale=video.config.residual_scale,
            video_masks=video.config.masks,
            **self._description,
        )
        for component in pipeline.components.values():
            if isinstance(component, ConfigMixin):  # else each remembers the folder that it came from
                component.register_to_config(_name_or_path='')
            if isinstance(component, torch.nn.Module):
                component.half()
        pipeline.save_pretrained(folder)

    def _extend_init(self, folder: Path) -> None:
        shutil.copytree(self.init, folder)
        if 'autoencoder' in self.parts:
            vae = self._trained_vae()
            vae.register_to_config(_name_or_path='')
            shutil.rmtree(folder / 'vae')
            vae.half().save_pretrained(folder / 'vae')
        index = {**self._index, **self._description}
        trained = {stage: self._trained_networks(stage) for stage in STAGES if stage in self.parts}
        if trained.get('video', {}).get('masks') == 'none':
            trained.setdefault('trajectory', {})  # a model of one stage has no other
        for stage, networks in trained.items():
            for name, default in STAGES[stage].facts.items():
                index[f'{stage}_{name}'] = networks.get(name, default)
            for name, network in STAGES[stage].networks.items():
                shutil.rmtree(folder / f'{stage}_{name}', ignore_errors=True)
                index[f'{stage}_{name}'] = [None, None]
                if name in networks:
                    shutil.copytree(self.folder / stage / name, folder / f'{stage}_{name}')
                    index[f'{stage}_{name}'] = [network.__module__, network.__name__]
        (folder / 'model_index.json').write_text(json.dumps(index, indent=2) + '\n')

    @property
    def _index(self) -> dict:
        return json.loads((self.init / 'model_index.json').read_text())

    @cached_property
    def _sampling(self) -> dict:
        sampling = self.config['sampling']
        if 'fps' in sampling:
            return sampling
        return {**sampling, 'fps': max(1.0, float(np.round(np.median(self.arrays('train').fps))))}

    @property
    def _description(self) -> dict:
        keys = ('name', 'sample_size', 'num_frames')
        return {**{key: self.config[key] for key in keys}, **self._sampling}


def _fill(options_class: type, values: dict, where: str):
    try:
        return options_class(**values)
    except (TypeError, ValueError) as error:  # a name too many or too few, or a wrong value
        raise ValueError(f'{where}: {str(error).replace("__init__() ", "")}') from error
