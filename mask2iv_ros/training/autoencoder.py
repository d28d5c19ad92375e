"""Training of a VAE on video frames and painted masks alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from mask2iv_ros.augmentation.looks import LOOKS_VERSION, Looks
from mask2iv_ros.labels import labels_to_rgb
from mask2iv_ros.pipelines.components import images_to_tensor, tensor_to_images
from mask2iv_ros.training.arrays import ClipArrays
from mask2iv_ros.training.latents import weights_id
from mask2iv_ros.training.trainer import Checked, Schedule, Trainer, number

#: Loss weight of a pixel by its label: background, object, actor, part.
LABEL_WEIGHTS = np.array([1, 8, 2, 8], dtype=np.float32)


@dataclass
class AutoencoderOptions(Checked):
    """Options of the VAE's training.

    Attributes:
        batch_size: images a batch, on each process; a third of them masks.
        kl_weight: of the KL term.
        looks: share of the frames that are repainted, recoloured, enlarged or mirrored, so that other scenes
            than those of the clips are reproduced too.
        keep_latents: for a VAE that goes on from a model's: loss weight of how far the latents of masks and
            of frames as they are move from where they were, in their standard deviations, squared. The
            model's stages then go on working; with 0 they have to be trained again.
    """

    batch_size: int = 16
    kl_weight: float = 1e-5
    looks: float = 0.0
    keep_latents: float = 0.0

    MINIMA = {'batch_size': 3}  # noqa: RUF012

    def __post_init__(self):
        self.kl_weight = number(self.kl_weight)
        self.check()
        if self.looks > 1:
            raise ValueError(f'looks: expected a share of 0 to 1, got {self.looks}')


class TrainedAutoencoder(torch.nn.Module):
    """A VAE whose `forward` is all of a training step, as gradients are averaged over processes around it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Of images (B, 3, H, W): reconstructions of drawn latents, KL a latent number (B,), and the latents'
        means (B, C, h, w)."""
        posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.kl() / posterior.mean[0].numel(), posterior.mean


def train_autoencoder(
    arrays: ClipArrays,
    folder: Path,
    vae: AutoencoderKL,
    schedule: Schedule,
    options: AutoencoderOptions,
    seed: int = 0,
    max_minutes: float | None = None,
    is_new: bool = True,
) -> bool:
    """Train `vae` into `folder/vae`, in place; a third of every batch are colour masks, the rest frames.

    The loss is absolute plus squared error of pixels, weighted by `LABEL_WEIGHTS` because an object of some
    pixels is otherwise cheapest left out, plus L1 on pixel differences (edges), plus a light KL term, plus
    that of `keep_latents`. The exported `scaling_factor` of a new VAE makes its latents unit variance; one
    that goes on keeps its own. True, and exported, when the schedule is complete.
    """
    batch_size, scale = options.batch_size, vae.config.scaling_factor
    num_masks = batch_size // 3
    num_kept = num_masks + round((batch_size - num_masks) * (1 - options.looks))
    data = f'clips {arrays.digest}'
    before = None
    if not is_new:
        data += f', from {weights_id(vae)}'
        if options.keep_latents:
            before = copy.deepcopy(vae).eval().requires_grad_(False)
    objective = {name: getattr(options, name) for name in ('looks', 'kl_weight', 'keep_latents')}
    objective |= {'looks_version': LOOKS_VERSION} if options.looks else {}
    trainer = Trainer(TrainedAutoencoder(vae), folder, schedule, seed, data, objective)
    if before is not None:
        before.to(trainer.device)

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        clip = torch.randint(len(arrays), (batch_size,), generator=generator).tolist()
        frame = torch.randint(arrays.frames.shape[1], (batch_size,), generator=generator).tolist()
        rng = np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())
        labels = np.stack([arrays.labels[c, t] for c, t in zip(clip, frame, strict=True)])
        images = labels_to_rgb(labels)
        for i in range(num_masks, batch_size):
            images[i] = arrays.frames[clip[i], frame[i]]
            if i >= num_kept:
                images[i], labels[i] = other_scene(images[i], labels[i], rng)
        weights = torch.from_numpy(LABEL_WEIGHTS[labels])[:, None]
        return images_to_tensor(images).to(trainer.device), weights.to(trainer.device)

    def loss_at(generator: torch.Generator) -> dict[str, torch.Tensor]:
        images, weights = batch(generator)
        decoded, kl, latents = trainer.model(images, generator)
        decoded, kl = decoded.float(), kl.float().mean()
        error = decoded - images
        pixels = (weights * (error.abs() + error.square())).mean()
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (-1, -2))
        losses = {'loss': pixels + edges + options.kl_weight * kl, 'pixels': pixels, 'kl': kl}
        if before is not None:
            with torch.no_grad(), trainer.accelerator.autocast():
                wanted = before.encode(images[:num_kept]).latent_dist.mean
            losses['moved'] = F.mse_loss(latents[:num_kept].float(), wanted.float()) * scale**2
            losses['loss'] = losses['loss'] + options.keep_latents * losses['moved']
        return losses

    def evaluate(step: int) -> dict[str, float]:
        images, _ = batch(trainer.generator(10**9))
        vae = trainer.accelerator.unwrap_model(trainer.model).vae
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.float()
        shown = np.linspace(0, batch_size - 1, min(8, batch_size)).astype(int)
        rows = [torch.cat(list(row[shown]), dim=-1) for row in (images, decoded)]
        sheet = tensor_to_images(torch.cat(rows, dim=-2))
        Image.fromarray(sheet).save(folder / f'sample_{step:06d}.png')
        return {}

    done = trainer.run(loss_at, max_minutes, evaluate)
    state = trainer.final_state()
    if done and trainer.accelerator.is_main_process:
        trained = TrainedAutoencoder(type(vae).from_config(vae.config)).eval().to(trainer.device)
        trained.load_state_dict(state)
        if is_new:
            _set_scale(trained.vae, [batch(trainer.generator(10**9 + i))[0] for i in range(8)])
        trained.vae.save_pretrained(folder / 'vae')
    trainer.accelerator.wait_for_everyone()
    return done


def other_scene(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A (H, W, 3) uint8 frame and its (H, W) labels as another scene might be: in a drawn look, in other
    colours all over, enlarged, mirrored, or several of these."""
    repainted, recoloured, enlarged, mirrored = rng.random(4) < (0.7, 0.5, 0.5, 0.5)
    if repainted:
        image = Looks()(image, labels, rng)
    if recoloured or not repainted:
        image = _recolour(image, rng)
    if enlarged:
        size = labels.shape[::-1]
        height, width = (round(n * rng.uniform(0.45, 1)) for n in labels.shape)
        top, left = rng.integers(labels.shape[0] - height + 1), rng.integers(labels.shape[1] - width + 1)
        part = slice(top, top + height), slice(left, left + width)
        image = cv2.resize(image[part], size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels[part], size, interpolation=cv2.INTER_NEAREST)
    return (image[:, ::-1], labels[:, ::-1]) if mirrored else (image, labels)


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Channels swapped and mixed, and now and then inverted; other contrast, brightness and gamma."""
    mixing = np.eye(3)[rng.permutation(3)] if rng.random() < 0.5 else np.eye(3)
    share = rng.uniform(0, 0.5)
    mixing = (1 - share) * mixing + share * rng.dirichlet(np.ones(3), 3)
    values = image.astype(np.float32) / 255 @ mixing.T.astype(np.float32)
    if rng.random() < 0.2:
        values = 1 - values
    values = values ** rng.uniform(0.6, 1.6) * rng.uniform(0.7, 1.3, 3) + rng.uniform(-0.1, 0.1, 3)
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


@torch.no_grad()
def _set_scale(vae: AutoencoderKL, batches: list[torch.Tensor]) -> None:
    latents = torch.cat([vae.encode(images).latent_dist.mode() for images in batches])
    vae.register_to_config(scaling_factor=1 / latents.std().item())
