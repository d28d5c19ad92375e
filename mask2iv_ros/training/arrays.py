"""Training arrays: a dataset decoded once to the model's resolution, on disk, memory mapped.

Decoding video in every training step would cost more than the step itself. So frames and labels are fitted to
the model's frame once; `latents.py` runs the frozen networks over them once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.framing import Framing


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


def goal_labels(labels: np.ndarray) -> np.ndarray:
    """The goal of a (..., T, h, w) clip: its last label image without the actor."""
    last = labels[..., -1, :, :]
    return np.where(last == lb.ACTOR, lb.BACKGROUND, last).astype(np.uint8)
