"""Training arrays: a dataset decoded once to the model's resolution, on disk, memory mapped.

Decoding video in every training step would cost more than the step itself. So frames and labels are fitted to
the model's frame once; `latents.py` runs the frozen networks over them once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros import labels as lb
from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import EpisodeReader, read_clips
from mask2iv_ros.data.sampling import spread
from mask2iv_ros.framing import Framing

#: What is stored of each clip; where it was less, arrays are made anew.
HELD = 'frames, labels, goals'
#: One line for each clip that is stored.
CLIP_LOG = 'clips.jsonl'


def check_room(file: Path, needed: int) -> None:
    """OSError if the disk has no room for `needed` bytes: writing to a mapped file would kill the process."""
    free = shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f'{file}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB')


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same lock `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f'{file}: another process is at it; waiting', file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass
class ClipArrays:
    """N clips of T frames at one resolution.

    Attributes:
        frames: (N, T, h, w, 3) uint8 RGB.
        labels: (N, T, h, w) uint8 label ids.
        goals: (N, h, w) uint8 label ids of where the object ends, see `InteractionClip.goal_labels`.
        tasks: N task texts.
        fps: (N,) frames a second.
        sources: N source records of the clips.
        digest: sha256 of frames, labels and goals, hex.
    """

    frames: np.ndarray
    labels: np.ndarray
    goals: np.ndarray
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
            goals=np.load(folder / 'goals.npy', mmap_mode='r'),
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
    start: int = 0,
    short_side: int | None = None,
) -> ClipArrays:
    """Fit `count` clips of `num_frames` frames to `size` (height, width) and store them in `folder`.

    `index.json` is written last, so a folder that has it is complete. Raises ValueError for a clip of another
    length, or without masks, and OSError if the disk has no room.

    Args:
        start: how many of the clips are in `folder` already (see `stored_clips`); `clips` goes on after them.
        short_side: of the crop that shows the object, see `Framing.with_short_side`; None: no crop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape, mode = (count, num_frames, *size), 'r+' if start else 'w+'
    if not start:  # of 3 bytes a pixel of the frames, one of the labels and of the goals
        check_room(folder / 'frames.npy', 4 * math.prod(shape) + count * math.prod(size))
    frames = np.lib.format.open_memmap(folder / 'frames.npy', mode, np.uint8, (*shape, 3))
    labels = np.lib.format.open_memmap(folder / 'labels.npy', mode, np.uint8, shape)
    goals = np.lib.format.open_memmap(folder / 'goals.npy', mode, np.uint8, (count, *size))
    log = folder / CLIP_LOG
    records = [json.loads(line) for line in log.read_text().splitlines()[:start]] if start else []
    log.write_text(''.join(json.dumps(record) + '\n' for record in records))
    digest = hashlib.sha256()
    for i in range(start):
        digest.update(frames[i].tobytes() + labels[i].tobytes() + goals[i].tobytes())
    progress = tqdm(clips, initial=start, total=count, desc='fit clips', unit='clip', mininterval=2)
    for i, clip in enumerate(progress, start):
        if len(clip) != num_frames:
            raise ValueError(f'{clip.source}: expected {num_frames} frames, got {len(clip)}')
        if clip.labels is None:
            raise ValueError(f'{clip.source}: training needs masks, this clip has none')
        framing = Framing.with_short_side(
            clip.frames.shape[1:3], size, short_side, clip.labels[0] == lb.OBJECT
        )
        frames[i], labels[i] = framing.fit_frames(clip.frames), framing.fit_labels(clip.labels)
        goals[i] = framing.fit_labels(clip.goal_labels)
        digest.update(frames[i].tobytes() + labels[i].tobytes() + goals[i].tobytes())
        records.append({'task': clip.task, 'fps': clip.fps, 'source': clip.source})
        with log.open('a') as file:
            file.write(json.dumps(records[-1]) + '\n')
    if len(records) != count:
        raise ValueError(f'expected {count} clips, got {len(records)}')
    for array in (frames, labels, goals):
        array.flush()
    index = {f'{key}s': [record[key] for record in records] for key in ('task', 'source')}
    index |= {'fps': [record['fps'] for record in records], 'digest': digest.hexdigest()}
    (folder / 'index.json').write_text(json.dumps(index))
    return ClipArrays.load(folder)


def cached_arrays(
    reader: EpisodeReader,
    views: Sequence[tuple[int, str]],
    folder: Path,
    stamp: str,
    size: tuple[int, int],
    num_frames: int = 16,
    short_side: int | None = None,
) -> ClipArrays:
    """`build_arrays` of a clip spread over each (episode, camera), where `folder` does not have them yet.

    Args:
        stamp: says what the clips are made of; arrays of another stamp are made anew.
    """
    made_of, stamp = folder / 'made_of.json', f'{HELD} of {stamp}'

    def is_begun() -> bool:
        return made_of.is_file() and made_of.read_text() == stamp

    def is_complete() -> bool:
        return is_begun() and (folder / 'index.json').is_file()

    if is_complete():
        return ClipArrays.load(folder)
    with alone(folder.with_name(f'{folder.name}.lock')):
        if not is_begun():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            made_of.write_text(stamp)
        if not is_complete():
            start = stored_clips(folder)
            clips = (
                clip
                for episode, camera in views[start:]
                for clip in read_clips(reader, [episode], spread(num_frames), camera)
            )
            build_arrays(clips, len(views), folder, size, num_frames, start, short_side)
    return ClipArrays.load(folder)


def stored_clips(folder: Path) -> int:
    """How many clips a `build_arrays` that was killed left in `folder`."""
    log = folder / CLIP_LOG
    return log.read_text().count('\n') if log.is_file() else 0
