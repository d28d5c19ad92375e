"""Training of the small VAE on video frames and painted masks alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mask2iv_ros.labels import labels_to_rgb
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.pipelines.components import images_to_tensor, tensor_to_images
from mask2iv_ros.training.arrays import ClipArrays
from mask2iv_ros.training.trainer import Checked, Schedule, Trainer, number

#: Loss weight of a pixel by its label: background, object, actor, part.
LABEL_WEIGHTS = np.array([1, 8, 2, 8], dtype=np.float32)


@dataclass
class AutoencoderOptions(Checked):
    """Options of the VAE's training. `batch_size`: images a batch, on each process; half of them masks."""

    batch_size: int = 16
    kl_weight: float = 1e-5

    MINIMA = {'batch_size': 2}  # noqa: RUF012

    def __post_init__(self):
        self.kl_weight = number(self.kl_weight)
        self.check()


class TrainedAutoencoder(PatchAutoencoderKL):
    """Its `forward` is all of a training step, because gradients are averaged over processes around it."""

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Of images (B, 3, H, W): reconstructions of drawn latents, and KL a latent number (B,)."""
        posterior = self.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        decoded = self.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.kl() / posterior.mean[0].numel()


def train_autoencoder(
    arrays: ClipArrays,
    folder: Path,
    model_config: dict,
    schedule: Schedule,
    options: AutoencoderOptions,
    seed: int = 0,
    max_minutes: float | None = None,
) -> bool:
    """Train a `PatchAutoencoderKL` into `folder/vae`; half of every batch are frames, half colour masks.

    The loss is absolute plus squared error of pixels, weighted by `LABEL_WEIGHTS` because an object of some
    pixels is otherwise cheapest left out, plus L1 on pixel differences (edges), plus a light KL term. The
    exported VAE's `scaling_factor` makes its latents unit variance. True, and exported, when it is complete.
    """
    torch.manual_seed(seed)
    batch_size = options.batch_size
    trainer = Trainer(TrainedAutoencoder(**model_config), folder, schedule, seed, f'clips {arrays.digest}')

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clip = torch.randint(len(arrays), (batch_size,), generator=generator).tolist()
        frame = torch.randint(arrays.frames.shape[1], (batch_size,), generator=generator).tolist()
        labels = np.stack([arrays.labels[c, t] for c, t in zip(clip, frame, strict=True)])
        images = labels_to_rgb(labels)
        for i in range(batch_size // 2):
            images[i] = arrays.frames[clip[i], frame[i]]
        weights = torch.from_numpy(LABEL_WEIGHTS[labels])[:, None]
        return images_to_tensor(images).to(trainer.device), weights.to(trainer.device)

    def loss_at(generator: torch.Generator) -> dict[str, torch.Tensor]:
        images, weights = batch(generator)
        decoded, kl = trainer.model(images, generator)
        decoded, kl = decoded.float(), kl.float().mean()
        error = decoded - images
        pixels = (weights * (error.abs() + error.square())).mean()
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (-1, -2))
        return {'loss': pixels + edges + options.kl_weight * kl, 'pixels': pixels, 'kl': kl}

    def evaluate(step: int) -> dict[str, float]:
        images, _ = batch(trainer.generator(10**9))
        vae = trainer.accelerator.unwrap_model(trainer.model)
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.float()
        rows = [torch.cat(list(row[4:12]), dim=-1) for row in (images, decoded)]
        sheet = tensor_to_images(torch.cat(rows, dim=-2))
        Image.fromarray(sheet).save(folder / f'sample_{step:06d}.png')
        return {}

    done = trainer.run(loss_at, max_minutes, evaluate)
    state = trainer.final_state()
    if done and trainer.accelerator.is_main_process:
        vae = PatchAutoencoderKL(**model_config).eval().to(trainer.device)
        vae.load_state_dict(state)
        _export(vae, [batch(trainer.generator(10**9 + i))[0] for i in range(8)], folder / 'vae')
    trainer.accelerator.wait_for_everyone()
    return done


@torch.no_grad()
def _export(vae: PatchAutoencoderKL, batches: list[torch.Tensor], folder: Path) -> None:
    latents = torch.cat([vae.encode(images).latent_dist.mode() for images in batches])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    vae.save_pretrained(folder)
