"""What both stages do with their frozen components: images to latents and back, text and image to tokens."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

#: Difference of decoded pixels (of 255) up to which they count as equal, and from which as different.
CHANGE_RANGE = (8, 40)

#: Pixels that go through the VAE at once, to bound its memory: three frames of 320 x 512.
VAE_PIXELS = 2**19

#: Tokens of the newest texts by text encoder, and how many are kept; OpenCLIP ViT-H's take 0.3 MB a text.
TEXT_TOKENS: WeakKeyDictionary = WeakKeyDictionary()
KEPT_TEXTS = 64


def images_to_tensor(images: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
    """(..., H, W, 3) uint8 images -> (..., 3, H, W) float32 pixels in [-1, 1] on `device` (None: the CPU)."""
    pixels = torch.from_numpy(np.array(images)).to(device)  # a copy: memory maps are read-only
    return pixels.movedim(-1, -3).float() / 127.5 - 1


def tensor_to_images(pixels: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) pixels in [-1, 1], clamped -> (..., H, W, 3) uint8 images."""
    images = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return images.movedim(-3, -1).cpu().numpy()


def vae_factor(vae) -> int:
    """How many pixels of an image's side one latent stands for."""
    return vae.config.get('patch_size', 1) * 2 ** (len(vae.config.block_out_channels) - 1)


def encode_images(vae, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """(B, T, H, W, 3) uint8 images -> scaled latents (B, C, T, h, w) of the VAE, each frame on its own.

    A batch of equal clips, as of the samples of one request, is encoded once. `device` is where the VAE runs:
    under CPU offload it is not where its weights wait.
    """
    if len(images) > 1 and (images[1:] == images[:1]).all():
        return encode_images(vae, images[:1], device).repeat(len(images), 1, 1, 1, 1)
    pixels = images_to_tensor(images.reshape(-1, *images.shape[2:]), device).to(vae.dtype)
    count = max(1, VAE_PIXELS // pixels.shape[-2:].numel())
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(count)])
    return (latents * vae.config.scaling_factor).unflatten(0, images.shape[:2]).transpose(1, 2)


def decode_latents(vae, latents: torch.Tensor) -> np.ndarray:
    """Scaled latents (B, C, T, h, w) -> (B, T, H, W, 3) uint8 images, each frame on its own.

    A batch of equal clips is decoded once, as it is encoded.

    Raises:
        FloatingPointError: a latent is not finite, which would become an even grey.
    """
    if not torch.isfinite(latents).all():
        raise FloatingPointError('the model gave numbers that are not finite: are its weights damaged?')
    batch, _, frames = latents.shape[:3]
    if batch > 1 and (latents[1:] == latents[:1]).all():
        return decode_latents(vae, latents[:1]).repeat(batch, axis=0)
    flat = latents.transpose(1, 2).flatten(0, 1).to(vae.dtype) / vae.config.scaling_factor
    count = max(1, VAE_PIXELS // (flat.shape[-2:].numel() * vae_factor(vae) ** 2))
    images = np.concatenate([tensor_to_images(vae.decode(part).sample) for part in flat.split(count)])
    return images.reshape(batch, frames, *images.shape[1:])


def keep_observed(decoded: np.ndarray, decoded_first: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Undo the VAE's error where nothing changed.

    Where a decoded frame equals the decoded first frame, the observed first frame is the better answer; where
    they differ by more than `CHANGE_RANGE`, the decoded frame is; between, a blend.

    Args:
        decoded: (B, T, H, W, 3) uint8 decoded frames.
        decoded_first: (B, H, W, 3) uint8, the observed frame encoded and decoded.
        observed: (B, H, W, 3) uint8 observed frame.
    """
    low, high = CHANGE_RANGE
    decoded, first = np.ascontiguousarray(decoded), np.ascontiguousarray(decoded_first)[:, None]
    change = (np.maximum(decoded, first) - np.minimum(decoded, first)).max(axis=-1)
    unchanged = np.clip((high - np.arange(256, dtype=np.float32)) / (high - low), 0, 1)
    frames = unchanged[change][..., None] * (observed[:, None].astype(np.float32) - first)
    frames += decoded
    return np.clip(frames, 0, 255, out=frames).round(out=frames).astype(np.uint8)


def encode_text(pipeline, texts: list[str]) -> torch.Tensor:
    """Text tokens (B, L, D) of the pipeline's frozen `text_encoder` and optional `tokenizer`.

    The tokens of the newest texts are kept. So that they are the same whoever asked first, each text is
    encoded on its own and outside of autocast.
    """
    kept = TEXT_TOKENS.setdefault(pipeline.text_encoder, {})
    place = (pipeline._execution_device, pipeline.text_encoder.dtype)
    for text in dict.fromkeys(texts):
        tokens = kept.pop((text, *place), None)
        kept[text, *place] = _encode_one_text(pipeline, text) if tokens is None else tokens
    encoded = torch.cat([kept[text, *place] for text in texts])
    for old in list(kept)[:-KEPT_TEXTS]:
        del kept[old]
    return encoded


@torch.autocast('cpu', enabled=False)
@torch.autocast('cuda', enabled=False)
def _encode_one_text(pipeline, text: str) -> torch.Tensor:
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    if tokenizer is None:
        return encoder([text])
    # Not padded by the tokenizer: it would cut the word of the padding's id (OpenCLIP: "!") out of texts.
    length = tokenizer.model_max_length
    ids = tokenizer(text, truncation=True, max_length=length).input_ids
    token_ids = torch.full((1, length), encoder.config.pad_token_id, device=encoder.device)
    token_ids[0, : len(ids)] = torch.tensor(ids)
    return encoder(token_ids).last_hidden_state


def encode_first_frame(pipeline, images: np.ndarray, latents: torch.Tensor) -> torch.Tensor | None:
    """Image tokens (B, T * N, D) of (B, H, W, 3) uint8 first frames; None without an `image_projector`.

    `latents` (B, C, h, w) are the frames' scaled latents.
    """
    projector = pipeline.image_projector
    if projector is None:
        return None
    return projector(image_features(pipeline, images, latents).to(projector.dtype))


def image_features(pipeline, images: np.ndarray, latents: torch.Tensor | None) -> torch.Tensor:
    """What the `image_projector` sees of (B, H, W, 3) uint8 images: (B, L, D) tokens of the `image_encoder`.

    Without one it is the positions of the images' scaled latents (B, C, h, w).
    """
    encoder = pipeline.image_encoder
    if encoder is None:
        return latents.flatten(2).transpose(1, 2)
    pixels = pipeline.feature_extractor(images=list(images), return_tensors='pt').pixel_values
    return encoder(pixels.to(encoder.device, encoder.dtype)).last_hidden_state


def check_call(
    pipeline, image: np.ndarray, output_type: str, callback_on_step_end_tensor_inputs: tuple[str, ...]
) -> None:
    """Raise ValueError unless the first frames and the options that both stages have can be served."""
    check_images(image, 'image', (None, None, None, 3))
    factor = vae_factor(pipeline.vae) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if image.shape[1] % factor or image.shape[2] % factor:
        raise ValueError(
            f'image: expected a height and width that are multiples of {factor}, '
            f'got {image.shape[1]} x {image.shape[2]}'
        )
    check_options(pipeline, output_type, callback_on_step_end_tensor_inputs)


def check_options(pipeline, output_type: str, callback_on_step_end_tensor_inputs: tuple[str, ...]) -> None:
    """Raise ValueError for an output type or a callback's tensor that `pipeline` does not have."""
    if output_type not in ('np', 'latent'):
        raise ValueError(f"output_type: expected 'np' or 'latent', got {output_type!r}")
    known = pipeline._callback_tensor_inputs
    if unknown := set(callback_on_step_end_tensor_inputs) - set(known):
        raise ValueError(
            f'callback_on_step_end_tensor_inputs: expected some of {known}, got {sorted(unknown)}'
        )


def check_images(images: np.ndarray, name: str, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `images` is uint8 and fits `shape` (None: any size)."""
    fits = images.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, images.shape, strict=True)
    )
    if images.dtype != np.uint8 or not fits:
        wanted = tuple('any' if size is None else size for size in shape)
        raise ValueError(f'{name}: expected uint8 {wanted}, got {images.dtype} {images.shape}')
