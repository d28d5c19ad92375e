"""The README's picture of augmented episodes: recorded, repainted, drawn.

    mask2iv simulate demos/ --stride 4 --camera-jitter 0 --height 128 --width 160 --test-episodes 3 \\
        --tasks drawer-open door-open button-press-topdown faucet-open
    mask2iv augment demos/test repainted/ --ungated --variants 1
    mask2iv augment demos/test drawn/ --ungated --variants 1 --keep background
    python doc/augment_picture.py doc/images/augmented.jpg 0,6 demos/test repainted/ drawn/
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from mask2iv_ros.data.episodes import open_dataset
from mask2iv_ros.data.sampling import spread_frames
from mask2iv_ros.pictures import write_picture

FRAMES, WIDTH = 6, 150


def row(clip) -> np.ndarray:
    frames = clip.frames[spread_frames(len(clip), FRAMES)]
    height = round(WIDTH * frames.shape[1] / frames.shape[2])
    return np.concatenate(
        [cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA) for frame in frames], axis=1
    )


def main(out: str, episodes: str, *datasets: str) -> None:
    readers, rows = [open_dataset(path) for path in datasets], []
    for index in map(int, episodes.split(',')):
        rows += [row(reader.read(index)) for reader in readers]
        rows.append(np.full((6, FRAMES * WIDTH, 3), 255, 'u1'))
    write_picture(Path(out), np.concatenate(rows[:-1]))


if __name__ == '__main__':
    main(*sys.argv[1:])
