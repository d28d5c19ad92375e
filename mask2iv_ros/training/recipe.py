"""`mask2iv train`: the VAE, both stages and the assembled model, from one configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from diffusers import ConfigMixin

from mask2iv_ros.data.episodes import EpisodeReader, open_dataset, read_clips
from mask2iv_ros.data.sampling import spread
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.pipelines.interaction_video import InteractionVideoPipeline
from mask2iv_ros.pipelines.mask2iv import Mask2IVPipeline
from mask2iv_ros.pipelines.mask_trajectory import MaskTrajectoryPipeline
from mask2iv_ros.training.arrays import ClipArrays, build_arrays, encode_latents
from mask2iv_ros.training.autoencoder import train_autoencoder
from mask2iv_ros.training.diffusion import StageOptions, StageTrainer
from mask2iv_ros.training.trainer import Schedule

#: What can be trained, in the order in which one needs the other.
PARTS = ('autoencoder', 'trajectory', 'video')
#: One of so many episodes of a dataset without splits is for tests.
TEST_PERIOD = 10


class Recipe:
    """One training run in `folder`: `arrays/`, a folder for each part, and `model/` when all are done.

    Args:
        config: YAML file, see config/train/mask2iv-sim.yaml.
        data: folder with datasets `train` and `test`, as `mask2iv simulate` writes; or a benchmark that
            `mask2iv prepare` made; or any dataset with masks, of which every tenth episode is `test`.
        folder: where everything goes; a second run continues there.
    """

    def __init__(self, config: Path, data: Path, folder: Path):
        self.config = yaml.safe_load(config.read_text())
        self.data, self.folder = data, folder
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

    def arrays(self, split: str) -> ClipArrays:
        """Clips of a split at the model's resolution, decoded on first use and when the dataset changed."""
        folder = self.folder / 'arrays' / split
        reader, episodes = self._episodes(split)
        reader.with_depth = False
        views = [(episode, camera) for episode in episodes for camera in reader.episode(episode).masked]
        if not views:
            raise ValueError(f'{reader.path}: {split} has no masks to train on; `mask2iv segment` makes some')
        size, num_frames = tuple(self.config['sample_size']), self.config['num_frames']
        stamp = json.dumps([str(reader.path.resolve()), len(reader), len(views), size, num_frames])
        made_of = folder / 'made_of.json'
        if not made_of.is_file() or made_of.read_text() != stamp:
            clips = (
                clip
                for episode, camera in views
                for clip in read_clips(reader, [episode], spread(num_frames), camera)
            )
            build_arrays(clips, len(views), folder, size, num_frames)
            made_of.write_text(stamp)
        return ClipArrays.load(folder)

    def _episodes(self, split: str) -> tuple[EpisodeReader, list[int]]:
        if (self.data / split).is_dir():
            reader = open_dataset(self.data / split)
        elif (self.data / 'manifest.json').is_file():
            reader = open_dataset(self.data, split=split)
        else:
            reader = open_dataset(self.data)
            is_test = split == 'test'
            return reader, [i for i in range(len(reader)) if (i % TEST_PERIOD == 0) == is_test]
        return reader, list(range(len(reader)))

    def train(self, part: str, max_minutes: float | None = None) -> bool:
        """Train one part; True when its schedule is complete. Needs the parts before it."""
        if part == 'autoencoder':
            options = dict(self.config[part])
            return train_autoencoder(
                self.arrays('train'),
                self.folder / part,
                options.pop('model'),
                Schedule(**options.pop('schedule')),
                seed=self.config['seed'],
                max_minutes=max_minutes,
                **options,
            )
        vae_folder = self.folder / 'autoencoder' / 'vae'
        if not vae_folder.is_dir():
            raise FileNotFoundError(f'{vae_folder}: train the autoencoder first')
        vae = PatchAutoencoderKL.from_pretrained(vae_folder).to(self.device).eval()
        arrays = self.arrays('train')
        latents = encode_latents(arrays, vae, self.folder / 'latents', self.device, seed=self.config['seed'])
        trainer = StageTrainer(
            arrays,
            latents,
            vae,
            self.folder / part,
            self.config['unet'],
            self.config['image_projector'],
            self.config['scheduler'],
            Schedule(**self.config[part]['schedule']),
            StageOptions(stage=part, **self.config[part]['options']),
            seed=self.config['seed'],
        )
        sampling = {'num_frames': self.config['num_frames'], **self.config['sampling']}
        return trainer.run(self.arrays('test'), max_minutes, **sampling)

    def assemble(self) -> Path:
        """Join the trained parts into the float16 model folder `model/`, which is returned."""
        trajectory = MaskTrajectoryPipeline.from_pretrained(self.folder / 'trajectory' / 'pipeline')
        video = InteractionVideoPipeline.from_pretrained(self.folder / 'video' / 'pipeline')
        pipeline = Mask2IVPipeline(
            vae=trajectory.vae,
            trajectory_unet=trajectory.unet,
            video_unet=video.unet,
            scheduler=trajectory.scheduler,
            text_encoder=trajectory.text_encoder,
            trajectory_image_projector=trajectory.image_projector,
            video_image_projector=video.image_projector,
            name=self.config['name'],
            sample_size=self.config['sample_size'],
            num_frames=self.config['num_frames'],
            trajectory_residual_scale=trajectory.config.residual_scale,
            video_residual_scale=video.config.residual_scale,
            **self.config['sampling'],
        )
        folder = self.folder / 'model'
        for component in pipeline.components.values():
            if isinstance(component, ConfigMixin):  # else each remembers the folder that it came from
                component.register_to_config(_name_or_path='')
        pipeline.to(torch.float16).save_pretrained(folder)
        return folder
