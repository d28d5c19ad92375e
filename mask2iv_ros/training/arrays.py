"""Training arrays: a dataset decoded once to the model's resolution, on disk, memory mapped.

Decoding video and running the frozen VAE in every training step would cost more than the step itself. So
frames and labels are fitted to the model's frame once, and `encode_latents` runs the VAE over them once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing
from mask2iv_ros.pipelines.components import images_to_tensor


@dataclass
class ClipArrays:
    """N clips of T frames at one resolution.

    Attributes:
        frames: (N, T, h, w, 3) uint8 RGB.
        labels: (N, T, h, w) uint8 label ids.
        tasks: N task texts.
        fps: (N,) frames a second.
        sources: N source records of the clips.
        digest: sha256 of frames and labels, hex.
    """

    frames: np.ndarray
    labels: np.ndarray
    tasks: list[str]
    fps: np.ndarray
    sources: list[dict]
    digest: str

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def load(cls, folder: Path) -> ClipArrays:
        """Open arrays that `build_arrays` wrote, memory mapped; FileNotFoundError if there are none."""
        index = json.loads((folder / 'index.json').read_text())
        return cls(
            frames=np.load(folder / 'frames.npy', mmap_mode='r'),
            labels=np.load(folder / 'labels.npy', mmap_mode='r'),
            tasks=index['tasks'],
            fps=np.array(index['fps']),
            sources=index['sources'],
            digest=index['digest'],
        )


def build_arrays(
    clips: Iterable[InteractionClip],
    count: int,
    folder: Path,
    size: tuple[int, int],
    num_frames: int = 16,
) -> ClipArrays:
    """Fit `count` clips of `num_frames` frames to `size` (height, width) and store them in `folder`.

    `index.json` is written last, so a folder that has it is complete. Raises ValueError for a clip of another
    length, or without masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, num_frames, *size)
    frames = np.lib.format.open_memmap(folder / 'frames.npy', 'w+', np.uint8, (*shape, 3))
    labels = np.lib.format.open_memmap(folder / 'labels.npy', 'w+', np.uint8, shape)
    index: dict = {'tasks': [], 'fps': [], 'sources': []}
    digest = hashlib.sha256()
    for i, clip in enumerate(tqdm(clips, total=count, desc='fit clips', unit='clip')):
        if len(clip) != num_frames:
            raise ValueError(f'{clip.source}: expected {num_frames} frames, got {len(clip)}')
        if clip.labels is None:
            raise ValueError(f'{clip.source}: training needs masks, this clip has none')
        framing = Framing(clip.frames.shape[1:3], size)
        frames[i], labels[i] = framing.fit_frames(clip.frames), framing.fit_labels(clip.labels)
        digest.update(frames[i].tobytes() + labels[i].tobytes())
        index['tasks'].append(clip.task)
        index['fps'].append(clip.fps)
        index['sources'].append(clip.source)
    if len(index['tasks']) != count:
        raise ValueError(f'expected {count} clips, got {len(index["tasks"])}')
    frames.flush()
    labels.flush()
    (folder / 'index.json').write_text(json.dumps({**index, 'digest': digest.hexdigest()}))
    return ClipArrays.load(folder)


def damage_labels(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dilate or erode every mask of a (T, h, w) clip by one kernel of 3, 5 or 7 pixels (Mask2IV)."""
    size = int(rng.choice((3, 5, 7)))
    operation = lb.dilate if rng.random() < 0.5 else lb.erode
    return lb.combine_masks(
        operation(labels == lb.OBJECT, size),
        operation(labels == lb.ACTOR, size),
        operation(labels == lb.PART, size),
    )


@torch.no_grad()
def encode_latents(
    arrays: ClipArrays, vae, folder: Path, device: torch.device, seed: int = 0
) -> dict[str, np.ndarray]:
    """Encode all clips with a frozen VAE; returns float16 arrays and keeps them in `folder`.

    Keys: `video`, `masks`, `damaged_masks` (N, T, C, h, w), the last with one dilation or erosion a clip;
    `goal` (N, C, h, w). Latents are scaled by the VAE's `scaling_factor`.
    """
    stamp = latents_id(arrays, vae, seed)
    keys = ('video', 'masks', 'damaged_masks', 'goal')
    if (folder / 'latents.json').is_file() and (folder / 'latents.json').read_text() == stamp:
        return {key: np.load(folder / f'{key}.npy') for key in keys}

    def encode(images: np.ndarray) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(images_to_tensor(images).to(device)).latent_dist.mode()
        return (latents * vae.config.scaling_factor).to('cpu', torch.float16).numpy()

    rng = np.random.default_rng(seed)
    latents: dict[str, list] = {key: [] for key in keys}
    for frames, labels in tqdm(
        zip(arrays.frames, arrays.labels, strict=True), total=len(arrays), desc='encode', unit='clip'
    ):
        latents['video'].append(encode(frames))
        latents['masks'].append(encode(lb.labels_to_rgb(labels)))
        latents['damaged_masks'].append(encode(lb.labels_to_rgb(damage_labels(labels, rng))))
        latents['goal'].append(encode(lb.labels_to_rgb(lb.goal_labels(labels))[None])[0])
    folder.mkdir(parents=True, exist_ok=True)
    stacked = {key: np.stack(values) for key, values in latents.items()}
    for key, values in stacked.items():
        np.save(folder / f'{key}.npy', values)
    (folder / 'latents.json').write_text(stamp)
    return stacked


def latents_id(arrays: ClipArrays, vae, seed: int) -> str:
    """sha256, hex, of what the latents of `encode_latents` depend on: clips, VAE weights and seed."""
    digest = hashlib.sha256(f'{arrays.digest} {seed}'.encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
