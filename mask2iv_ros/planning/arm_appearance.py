"""Where a robot's hand is in space, from the silhouette of its arm: the robot knows how it looks.

A plan shows the arm in every frame, but as a mask, without depth. A robot that has moved about in front of
its camera (minutes, no task) knows which silhouette goes with which position of the hand: the whole arm takes
part, so depth is told as well as the place in the image. The map is kernel ridge regression on the principal
components of the blurred, reduced mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mask2iv_ros import labels as lb

SIZE = (64, 48)  #: (width, height) to which masks are reduced: finer ones are not better, and slower
BLUR = 1.0  #: pixels at that size; makes near silhouettes near vectors
COMPONENTS = 60
WIDTH = 0.5  #: of the kernel, in units of the median squared distance between silhouettes
RIDGE = 1e-3  #: as a share of the kernel's height
STRANGE = 3.0  #: times as unlike all that was seen as the poses left out are (99 %): not this arm
FILL_STEPS = 16  #: rounds in which what the object covers of the arm is filled in


@dataclass
class ArmAppearance:
    """Silhouettes to positions for one camera; made by `fit`.

    Attributes:
        mean: (D,) mean reduced mask. basis: (D, C) principal components.
        known: (N, C) reduced masks of the poses that were seen. weights: (N, 3). centre: (3,) mean position.
        width: factor of the squared distance in the kernel.
        error: (3,) root mean square error a coordinate, each pose told from all others, metres.
        strange: squared distance to all known silhouettes from which on a mask is not this arm's.
    """

    mean: np.ndarray
    basis: np.ndarray
    known: np.ndarray
    weights: np.ndarray
    centre: np.ndarray
    width: float
    error: np.ndarray
    strange: float

    @classmethod
    def fit(cls, masks: np.ndarray, hands: np.ndarray) -> ArmAppearance:
        """From (N, H, W) bool masks of the arm and (N, 3) positions of the hand.

        Raises:
            ValueError: too few poses, or lengths that differ.
        """
        if len(masks) != len(hands) or len(masks) <= COMPONENTS:
            raise ValueError(
                f'expected more than {COMPONENTS} masks and as many positions, got {len(masks)} masks and '
                f'{len(hands)} positions'
            )
        reduced = _reduce(masks)
        mean = reduced.mean(axis=0)
        some = (reduced - mean)[:: max(1, len(reduced) // 1000)]
        basis = np.linalg.svd(some, full_matrices=False)[2][:COMPONENTS].T
        known = (reduced - mean) @ basis
        some = known[:: max(1, len(known) // 300)]
        width = WIDTH / np.median(_squared_distances(some, some))
        kernel = np.exp(-width * _squared_distances(known, known))
        inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(kernel)))
        centre = hands.mean(axis=0)
        weights = inverse @ (hands - centre)
        left_out = weights / np.diag(inverse)[:, None]
        error = np.sqrt((left_out**2).mean(axis=0))
        apart = _squared_distances(known, known)
        np.fill_diagonal(apart, np.inf)
        unlike = apart.min(axis=1) + ((reduced - mean) ** 2).sum(axis=1) - (known**2).sum(axis=1)
        strange = STRANGE * np.percentile(unlike, 99)
        return cls(mean, basis, known, weights, centre, float(width), error, float(strange))

    def locate(self, labels: np.ndarray) -> np.ndarray:
        """(T, 3) positions of the hand in (T, H, W) label images; nan in frames that do not show this arm.

        What the object covers of the arm is taken to look as it does in the poses that fit the rest.
        """
        actors = labels == lb.ACTOR
        vectors = _reduce(actors) - self.mean
        covered = _reduce(lb.object_mask(labels)) > 0.05
        for _ in range(FILL_STEPS):
            filled = vectors @ self.basis @ self.basis.T
            vectors = np.where(covered, filled, vectors)
        inside = vectors @ self.basis
        distances = _squared_distances(inside, self.known)
        found = np.exp(-self.width * distances) @ self.weights + self.centre
        unlike = distances.min(axis=1) + (vectors**2).sum(axis=1) - (inside**2).sum(axis=1)
        found[(unlike > self.strange) | ~actors.any(axis=(1, 2))] = np.nan
        return found

    def save(self, path: str | Path):
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: str | Path) -> ArmAppearance:
        with np.load(path) as arrays:
            values = dict(arrays)
        return cls(**values | {name: float(values[name]) for name in ('width', 'strange')})


def _reduce(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool to (N, D) float64 in 0..1."""
    reduced = (cv2.resize(mask.astype(np.float32), SIZE, interpolation=cv2.INTER_AREA) for mask in masks)
    return np.array([cv2.GaussianBlur(image, (0, 0), BLUR).ravel() for image in reduced], np.float64)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0)
