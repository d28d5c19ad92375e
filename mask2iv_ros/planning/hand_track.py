"""Where the robot's hand is in the frames of a plan, from its silhouette.

A plan shows the whole arm as one mask. The gripper keeps its outline while it is carried (an arm that holds
its orientation only moves it, nearer or farther), so the piece of the actor's mask around the hand in the
observed frame, where the robot knows its hand to be, is looked for in the later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mask2iv_ros import labels as lb

SCALES = np.exp(np.linspace(-0.3, 0.3, 7))  #: from 26 % nearer to 35 % farther, in steps of 5 %
SCALE_COST = 2.0
JUMP_COST = 0.1  #: score that a jump by the window's own size costs: between like places, the nearer one
MIN_SCORE = 0.5  #: of a match in -1..1; less is no hand


@dataclass
class HandTrack:
    """Attributes:
    pixels: (T, 2) float64, (x, y) of the tracked point, nan where the hand was not found.
    scale: (T,) float64, size of the hand as a multiple of frame 0's.
    score: (T,) float64 in -1..1, agreement of the outline.
    """

    pixels: np.ndarray
    scale: np.ndarray
    score: np.ndarray


def track_hand(labels: np.ndarray, pixel: tuple[float, float], radius: float, step: float) -> HandTrack:
    """Follow the outline of the actor around a pixel of frame 0.

    Args:
        labels: (T, H, W) uint8 label images.
        pixel: (x, y) in frame 0, centre of the hand.
        radius: pixels, half the side of the piece of the mask that is followed.
    """
    height, width = labels.shape[1:]
    radius = max(4, round(radius))
    margin = 2 * radius
    # Actor +1, background -1; what the object covers may be either.
    values = np.where(labels == lb.ACTOR, 1.0, np.where(labels == lb.BACKGROUND, -1.0, 0.0))
    values = np.pad(values.astype(np.float32), ((0, 0), (margin, margin), (margin, margin)))
    x0, y0 = np.clip(np.rint(pixel).astype(int), 0, (width - 1, height - 1)) + margin
    piece = values[0, y0 - radius : y0 + radius + 1, x0 - radius : x0 + radius + 1]
    pieces = []
    for scale in SCALES:
        size = 2 * round(radius * scale) + 1
        scaled = cv2.resize(piece, (size, size), interpolation=cv2.INTER_LINEAR)
        pieces.append(scaled / max(np.abs(scaled).sum(), 1e-6))
    offset = np.asarray(pixel) + margin - (x0, y0)
    grid = np.arange(-round(step), round(step) + 1) / step
    jump = grid[:, None] ** 2 + grid**2
    found, at, size = [(float(x0), float(y0), 1.0, 1.0)], np.array((x0, y0)), 1.0
    for image in values[1:]:
        reach = round(step)
        left, top = int(at[0]) - reach, int(at[1]) - reach
        best = (-np.inf,)
        for scale, scaled in zip(SCALES, pieces, strict=True):
            if abs(np.log(scale / size)) > 0.11:
                continue
            half = scaled.shape[0] // 2
            pad = half + reach + 1
            wide = np.pad(image, pad)
            area = wide[
                top + pad - half : top + pad + 2 * reach + 1 + half,
                left + pad - half : left + pad + 2 * reach + 1 + half,
            ]
            agreement = cv2.matchTemplate(area, scaled, cv2.TM_CCORR)
            value = agreement - JUMP_COST * jump - SCALE_COST * np.log(scale / size) ** 2
            row, column = np.unravel_index(value.argmax(), value.shape)
            if value[row, column] > best[0]:
                best = value[row, column], column + left, row + top, scale, agreement[row, column]
        _, column, row, scale, score = best
        if score > MIN_SCORE:
            at, size = np.array((column, row)), scale
            found.append((column, row, scale, score))
        else:
            found.append((np.nan, np.nan, np.nan, score))
    found = np.array(found, float)
    return HandTrack(found[:, :2] + offset * found[:, 2:3] - margin, found[:, 2], found[:, 3])
