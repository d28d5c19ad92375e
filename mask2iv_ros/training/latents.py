"""What the frozen networks make of the training clips, computed once and memory mapped.

A step that ran VAE, text and image encoder itself would cost several times as much. Arrays are written row by
row and a stopped run goes on where it was, so neither their size nor their time matters (13,000 clips of 16
frames at 320 x 512 are about 4 GB an array).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from mask2iv_ros.pipelines.components import images_to_tensor
from mask2iv_ros.training.arrays import ClipArrays, alone, check_room

#: Images that the VAE encodes at once.
ENCODE_BATCH = 16
#: Rows after which a stopped run goes on.
SAVE_ROWS = 16


def cached_rows(
    path: Path, count: int, rows: Callable[[int], Iterator[np.ndarray]], stamp: str
) -> np.ndarray:
    """The (count, ...) array `path`.npy, read-only and memory mapped, made or finished first where needed.

    Args:
        path: without suffix; `path`.json says what the array was made of and how much of it there is.
        rows: `rows(start)` yields the rows from `start` on, equal in shape and dtype.
        stamp: what the rows depend on; an array of another stamp is made anew.

    Raises:
        OSError: the disk has no room for the array (writing to a mapped file would kill the process).
        ValueError: there are fewer rows than `count`.
    """
    file, record = path.with_suffix('.npy'), path.with_suffix('.json')

    def num_done() -> int:
        made = json.loads(record.read_text()) if record.is_file() else {}
        return made['done'] if made.get('made_of') == [stamp, count] and file.is_file() else 0

    if num_done() == count:
        return np.load(file, mmap_mode='r')
    with alone(path.with_suffix('.lock')):
        done = num_done()
        array = np.load(file, mmap_mode='r+') if done else None
        progress = tqdm(rows(done), initial=done, total=count, desc=path.name, unit='clip', mininterval=2)
        for row in progress if done < count else ():
            if array is None:
                record.unlink(missing_ok=True)
                array = _new_array(file, (count, *row.shape), row.dtype)
            array[done] = row
            done += 1
            if done % SAVE_ROWS == 0 or done == count:
                array.flush()
                fresh = record.with_suffix('.json.new')
                fresh.write_text(json.dumps({'made_of': [stamp, count], 'done': done}))
                os.replace(fresh, record)
        if done != count:
            raise ValueError(f'{path}: expected {count} rows, got {done}')
    return np.load(file, mmap_mode='r')


def _new_array(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    file.unlink(missing_ok=True)
    check_room(file, int(np.prod(shape)) * dtype.itemsize)
    return np.lib.format.open_memmap(file, 'w+', dtype, shape)


@torch.no_grad()
def encode_images(vae, images: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 images -> (..., C, h, w) float16 latents, scaled by the VAE's `scaling_factor`."""
    flat = images.reshape(-1, *images.shape[-3:])
    latents = []
    for start in range(0, len(flat), ENCODE_BATCH):
        pixels = images_to_tensor(flat[start : start + ENCODE_BATCH], vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            batch = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        latents.append((batch * vae.config.scaling_factor).to('cpu', torch.float16))
    latents = torch.cat(latents).numpy()
    return latents.reshape(*images.shape[:-3], *latents.shape[1:])


def weights_id(*models: torch.nn.Module | None) -> str:
    """sha256, hex, of the names and values of all weights."""
    return tensors_id(*(model.state_dict() for model in models if model is not None))


def tensors_id(*states: dict[str, torch.Tensor]) -> str:
    """sha256, hex, of names and values."""
    digest = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


class LatentCache:
    """Arrays of the training clips in one folder, each made on first use by the process that comes first.

    Attributes:
        id: what all of them depend on: the clips and the VAE.
    """

    def __init__(self, arrays: ClipArrays, vae, folder: Path):
        self.arrays, self.vae, self.folder = arrays, vae, folder
        self.id = f'{arrays.digest} {weights_id(vae)}'

    def encoded(
        self, name: str, images: Callable[[int], np.ndarray], made_of: str = '', count: int | None = None
    ) -> np.ndarray:
        """Latents of `images(i)` ((..., H, W, 3) uint8): (count, ..., C, h, w) float16; see `rows`."""
        return self.rows(name, lambda i: encode_images(self.vae, images(i)), f'{self.id} {made_of}', count)

    def rows(
        self, name: str, row: Callable[[int], np.ndarray], made_of: str, count: int | None = None
    ) -> np.ndarray:
        """`row(i)` for `count` rows, or every clip i if it is None; `made_of` says what it depends on."""
        stop = len(self.arrays) if count is None else count
        return self.batches(name, lambda start: (row(i) for i in range(start, stop)), made_of, count)

    def batches(
        self,
        name: str,
        rows: Callable[[int], Iterator[np.ndarray]],
        made_of: str,
        count: int | None = None,
    ) -> np.ndarray:
        """See `cached_rows`; as many rows as clips if `count` is None."""
        with PartialState().main_process_first():
            return cached_rows(
                self.folder / name, len(self.arrays) if count is None else count, rows, made_of
            )
