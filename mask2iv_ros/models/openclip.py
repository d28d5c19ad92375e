"""What goes into the OpenCLIP encoders of `mask2iv-512`: texts as token ids, images as pixel values."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur, normalize
from transformers import CLIPTokenizer

# Diffusers finds a custom component's load method by looking up this name in the component's module.
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

CONTEXT_LENGTH = 77
#: What OpenCLIP fills a text up with. A tokenizer's own padding token would be cut out of texts: 0 is "!".
PAD_TOKEN_ID = 0

_VOCABULARY = 'bpe_simple_vocab_16e6.txt.gz'
_NUM_MERGES = 49152 - 256 - 2


def openclip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, with the vocabulary that the installed package open_clip_torch carries.

    Its ids equal `open_clip.tokenize` for texts that the latter's clean-up (broken encodings, typographic
    quotes, HTML entities) leaves as they are.

    Raises:
        ImportError: the package is not installed, with the command that installs it.
    """
    spec = importlib.util.find_spec('open_clip')
    if spec is None or spec.origin is None:
        raise ImportError("CLIP's vocabulary needs open_clip_torch: pip install --no-deps open_clip_torch")
    with gzip.open(Path(spec.origin).parent / _VOCABULARY, 'rt', encoding='utf-8') as file:
        lines = file.read().splitlines()[1 : 1 + _NUM_MERGES]
    merges = [tuple(line.split()) for line in lines]
    # One character for each byte: itself if it is printable, else one from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]
    words = [f'{character}</w>' for character in characters]
    tokens = [*characters, *words, *map(''.join, merges), '<|startoftext|>', '<|endoftext|>']
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


class OpenCLIPImageProcessor(ImageProcessingMixin):
    """Pictures as DynamiCrafter shows them to its image encoder: squeezed to a square, smoothed before.

    It blurs with a Gaussian and then samples bicubically with the corners aligned, which is not the resize of
    transformers' CLIPImageProcessor; the tokens would differ.
    """

    def __init__(
        self,
        size: int = 224,
        image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: list[np.ndarray], return_tensors: str = 'pt') -> BatchFeature:
        """(H, W, 3) uint8 RGB images of one size -> `pixel_values` (B, 3, size, size) float32."""
        pixels = torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 127.5 - 1
        factors = [length / self.size for length in pixels.shape[-2:]]
        if max(factors) > 1:
            sigmas = [max((factor - 1) / 2, 0.001) for factor in factors]
            kernel = [int(max(4 * sigma, 3)) // 2 * 2 + 1 for sigma in sigmas]
            pixels = gaussian_blur(pixels, kernel[::-1], sigmas[::-1])  # torchvision has x first
        pixels = F.interpolate(pixels, (self.size, self.size), mode='bicubic', align_corners=True)
        pixels = normalize((pixels + 1) / 2, self.image_mean, self.image_std)
        return BatchFeature({'pixel_values': pixels}, tensor_type=return_tensors)
