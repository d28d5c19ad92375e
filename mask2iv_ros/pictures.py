"""Pictures of clips for people: strips, contact sheets, videos and GIFs."""

from __future__ import annotations

from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
from PIL import Image

from mask2iv_ros.labels import labels_to_rgb, overlay

GAP = 4  # white pixels around the frames of a contact sheet
FONT = cv2.FONT_HERSHEY_SIMPLEX


def clip_strip(frames: np.ndarray, columns: int = 8) -> np.ndarray:
    """`columns` frames of a (T, H, W, 3) clip, spread evenly, side by side: (H, columns * W, 3)."""
    return np.concatenate(list(frames[_picks(len(frames), columns)]), axis=1)


def contact_sheet(rows: dict[str, np.ndarray], width: int = 1600, columns: int = 8) -> np.ndarray:
    """Named rows of (T, H, W, 3) uint8 clips as one (h, `width`, 3) picture for a person to judge.

    Each row shows `columns` frames, spread evenly; where there are more, with their number in the clip.
    """
    cell = (width - GAP) // columns - GAP
    strips = []
    for title, frames in rows.items():
        picks = _picks(len(frames), columns)
        height = round(frames.shape[1] * cell / frames.shape[2])
        strip = np.full((height + GAP, width, 3), 255, np.uint8)
        for i, pick in enumerate(picks):
            shown = cv2.resize(frames[pick], (cell, height), interpolation=cv2.INTER_AREA)
            if len(frames) > columns:
                for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # readable on any picture
                    cv2.putText(shown, str(pick), (4, 16), FONT, 0.5, colour, thickness, cv2.LINE_AA)
            left = GAP + i * (cell + GAP)
            strip[:height, left : left + cell] = shown
        bar = np.full((28, width, 3), 255, np.uint8)
        cv2.putText(bar, title, (GAP, 20), FONT, 0.6, (20, 20, 20), 1, cv2.LINE_AA)
        strips += [bar, strip]
    return np.concatenate(strips)


def _picks(length: int, columns: int) -> np.ndarray:
    return np.linspace(0, length - 1, columns).round().astype(int)


def plan_sheet(labels: np.ndarray, frames: np.ndarray | None, title: str) -> np.ndarray:
    """Contact sheet of a plan: its (T, H, W) masks in colour and, if there is one, its video."""
    rows = {f'{title}: predicted masks (object red, actor green)': labels_to_rgb(labels)}
    if frames is not None:
        rows['generated video'] = frames
        rows['masks over the video'] = overlay(frames, labels)
    return contact_sheet(rows)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a (H, W) or (H, W, 3) uint8 image in the format of the suffix, such as .png or .jpg."""
    Image.fromarray(image).save(path)


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write (T, H, W, 3) uint8 frames as H.264 (.mp4) or GIF, by the suffix; odd sizes lose a pixel row."""
    if path.suffix == '.gif':
        iio.imwrite(path, frames, duration=1000 / fps, loop=0)
    else:
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        iio.imwrite(path, even, plugin='pyav', codec='libx264', fps=round(fps), out_pixel_format='yuv420p')
