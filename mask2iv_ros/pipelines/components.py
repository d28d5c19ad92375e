"""What both stages do with their frozen components: images to latents and back, text and image to tokens."""

from __future__ import annotations

import numpy as np
import torch

#: Difference of decoded pixels (of 255) up to which they count as equal, and from which as different.
CHANGE_RANGE = (8, 40)


def encode_images(vae, images: np.ndarray) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 images -> scaled latents (B, C, T, h, w) of the VAE, each frame on its own."""
    batch, frames = images.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(images.reshape(-1, *images.shape[2:])))
    pixels = pixels.to(vae.device).movedim(-1, 1).to(vae.dtype) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents.unflatten(0, (batch, frames)).transpose(1, 2)


def decode_latents(vae, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents (B, C, T, h, w) -> (B, T, H, W, 3) uint8 images, each frame on its own."""
    batch, _, frames = latents.shape[:3]
    flat = latents.transpose(1, 2).flatten(0, 1).to(vae.dtype) / vae.config.scaling_factor
    pixels = vae.decode(flat).sample.float().clamp(-1, 1)
    images = ((pixels + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    return images.unflatten(0, (batch, frames)).cpu().numpy()


def keep_observed(decoded: np.ndarray, decoded_first: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Undo the VAE's error where nothing changed.

    Where a decoded frame equals the decoded first frame, the observed first frame is the better answer; where
    they differ by more than `CHANGE_RANGE`, the decoded frame is; between, a blend.

    Args:
        decoded: (B, T, H, W, 3) uint8 decoded frames.
        decoded_first: (B, H, W, 3) uint8, the observed frame encoded and decoded.
        observed: (B, H, W, 3) uint8 observed frame.
    """
    first = decoded_first[:, None].astype(np.int16)
    change = np.abs(decoded - first).max(axis=-1, keepdims=True)
    low, high = CHANGE_RANGE
    unchanged = np.clip((high - change) / (high - low), 0, 1)
    return np.clip(decoded + unchanged * (observed[:, None] - first), 0, 255).round().astype(np.uint8)


def encode_text(pipeline, texts: list[str]) -> torch.Tensor:
    """Text tokens (B, L, D) of the pipeline's `text_encoder` and optional `tokenizer`."""
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    if tokenizer is None:
        return encoder(texts)
    tokens = tokenizer(
        texts,
        padding='max_length',
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors='pt',
    )
    return encoder(tokens.input_ids.to(encoder.device)).last_hidden_state


def encode_first_frame(pipeline, images: np.ndarray, latents: torch.Tensor) -> torch.Tensor | None:
    """Image tokens (B, T * N, D) of (B, H, W, 3) uint8 first frames; None without an `image_projector`.

    Without an `image_encoder` the frames' scaled latents (B, C, h, w) are the features.
    """
    projector, encoder = pipeline.image_projector, pipeline.image_encoder
    if projector is None:
        return None
    if encoder is None:
        features = latents.flatten(2).transpose(1, 2)
    else:
        pixels = pipeline.feature_extractor(images=list(images), return_tensors='pt').pixel_values
        features = encoder(pixels.to(encoder.device, encoder.dtype)).last_hidden_state
    return projector(features.to(projector.dtype))


def check_images(images: np.ndarray, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `images` is uint8 and fits `shape` (None: any size)."""
    fits = images.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, images.shape, strict=True)
    )
    if images.dtype != np.uint8 or not fits:
        wanted = tuple('any' if size is None else size for size in shape)
        raise ValueError(f'{name}: expected uint8 {wanted}, got {images.dtype} {images.shape}')
