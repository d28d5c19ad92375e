"""Training of the small VAE on video frames and painted masks alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mask2iv_ros.labels import labels_to_rgb
from mask2iv_ros.models.autoencoder import PatchAutoencoderKL
from mask2iv_ros.training.arrays import ClipArrays, images_to_tensor
from mask2iv_ros.training.trainer import Schedule, Trainer


def train_autoencoder(
    arrays: ClipArrays,
    folder: Path,
    model_config: dict,
    schedule: Schedule,
    batch_size: int = 16,
    kl_weight: float = 1e-5,
    seed: int = 0,
    max_minutes: float | None = None,
) -> bool:
    """Train a `PatchAutoencoderKL` into `folder/vae`; half of every batch are frames, half colour masks.

    The loss is L1 on pixels plus L1 on pixel differences (edges), plus a light KL term. The exported VAE's
    `scaling_factor` makes its latents unit variance. Returns True when the schedule is complete.
    """
    torch.manual_seed(seed)
    trainer = Trainer(PatchAutoencoderKL(**model_config), folder, schedule, seed)

    def batch(generator: torch.Generator) -> torch.Tensor:
        clip = torch.randint(len(arrays), (batch_size,), generator=generator).tolist()
        frame = torch.randint(arrays.frames.shape[1], (batch_size,), generator=generator).tolist()
        half = batch_size // 2
        images = [arrays.frames[c, t] for c, t in zip(clip[:half], frame[:half], strict=True)]
        images += [labels_to_rgb(arrays.labels[c, t]) for c, t in zip(clip[half:], frame[half:], strict=True)]
        return images_to_tensor(np.stack(images)).to(trainer.device)

    def loss_at(generator: torch.Generator) -> dict[str, torch.Tensor]:
        images = batch(generator)
        vae = trainer.accelerator.unwrap_model(trainer.model)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(trainer.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        pixels = F.l1_loss(decoded, images)
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (-1, -2))
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return {'loss': pixels + edges + kl_weight * kl, 'l1': pixels, 'kl': kl}

    def sample(step: int) -> None:
        images = batch(trainer.generator(10**9))
        with trainer.accelerator.autocast():
            vae = trainer.accelerator.unwrap_model(trainer.model)
            decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.float()
        rows = [torch.cat(list(row[4:12]), dim=-1) for row in (images, decoded)]
        sheet = ((torch.cat(rows, dim=-2).clamp(-1, 1) + 1) * 127.5).byte().movedim(0, -1).cpu().numpy()
        Image.fromarray(sheet).save(folder / f'sample_{step:06d}.png')

    done = trainer.run(loss_at, max_minutes, sample)
    vae = trainer.averaged_model().eval()
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(batch(trainer.generator(10**9 + i))).latent_dist.mode() for i in range(8)]
        )
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    vae.save_pretrained(folder / 'vae')
    return done
