"""Raw BridgeData V2 folders (WidowX robot, 5 frames a second), read without running their pickles.

    .../<YYYY-MM-DD_HH-MM-SS>/raw/traj_group0/traj0/
        images0/im_0.jpg ...      over-the-shoulder camera; images1, images2, ... where there were more
        policy_out.pkl            one dict with 'actions' (7: dxyz, drpy, gripper) between each two images
        obs_dict.pkl              'full_state' (7: xyz, rpy, gripper) of each image
        lang.txt                  instructions, each followed by 'confidence: <number>'
        masks/mask_0.png ...      not part of the dataset: see `Trajectory.masks`

Layout and alignment as in rail-berkeley/bridge_data_v2, `data_processing/bridgedata_raw_to_numpy.py`.
`depth_images0` is not read: it is the depth camera's own view (`/D435/depth/image_rect_raw`, 16UC1, mm), not
registered to `images0`, and the dataset has no calibration to do it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout, natural_order
from mask2iv_ros.data.images import read_image, stack_images
from mask2iv_ros.data.pickles import read_pickle
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT

FPS = 5.0
MASK_CAMERA = 'images0'
#: Recordings before this day have actions one step early: action t shows its effect in image t + 2.
LATENCY_UNTIL = datetime(2021, 7, 23)
#: Label of each grey value of a mask picture (those of Mask2IV, arXiv 2510.03135).
GREYS = {0: BACKGROUND, 128: ACTOR, 255: OBJECT}

_DATE = re.compile(r'\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}')
_CONFIDENCE = re.compile(r'confidence:\s*(\d*\.?\d+)')


@dataclass(frozen=True)
class Trajectory:
    """One trajectory folder.

    Attributes:
        folder: the `traj<N>` folder.
        masks: folder of `mask_<t>.png`, one grey picture an image of `images0`: 0 background, 128 robot,
            255 object. It need not exist.
    """

    folder: Path
    masks: Path

    def cameras(self) -> dict[str, int]:
        """Images of each camera, 'images0' first.

        A camera whose number of images is not that of the first is left out: its images are not simultaneous.

        Raises:
            BadEpisode: no camera, or an image of the first is missing.
        """
        folders = sorted(
            (path for path in self.folder.iterdir() if re.fullmatch(r'images\d+', path.name)),
            key=lambda path: int(path.name[len('images') :]),
        )
        counts = {path.name: self._count_images(path) for path in folders}
        counts = {name: count for name, count in counts.items() if count}
        if not counts:
            raise BadEpisode(f'{self.folder}: no images (expected images0/im_0.jpg and so on)')
        length = next(iter(counts.values()))
        return {name: count for name, count in counts.items() if count == length}

    @staticmethod
    def _count_images(folder: Path) -> int:
        matches = (re.fullmatch(r'im_(\d+)\.jpg', name) for name in os.listdir(folder))
        numbers = sorted(int(match[1]) for match in matches if match)
        for expected, number in enumerate(numbers):
            if number != expected:
                raise BadEpisode(f'{folder}: im_{expected}.jpg is missing ({len(numbers)} images are there)')
        return len(numbers)

    def read_images(self, camera: str, numbers: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB of the images `numbers`."""
        folder = self.folder / camera
        return stack_images((read_image(folder / f'im_{number}.jpg') for number in numbers), folder)

    def has_masks(self) -> bool:
        return (self.masks / 'mask_0.png').is_file()

    def read_labels(self, numbers: np.ndarray) -> np.ndarray:
        """(N, H, W) uint8 label ids of the images `numbers` of `images0`."""
        lookup = np.full(256, 255, np.uint8)
        lookup[list(GREYS)] = list(GREYS.values())
        labels = []
        for number in numbers:
            path = self.masks / f'mask_{number}.png'
            grey = read_image(path, cv2.IMREAD_GRAYSCALE)
            labels.append(lookup[grey])
            if labels[-1].max() == 255:
                odd = sorted(set(np.unique(grey).tolist()) - set(GREYS))
                raise BadEpisode(f'{path}: grey values {odd}; expected {list(GREYS)}')
        return stack_images(labels, self.masks)

    def instruction(self) -> tuple[str, float | None]:
        """The instruction and its confidence (0 to 1): of several the surest, then the first; '' if none.

        A confidence line belongs to the lines above it that have none yet.
        """
        path = self.folder / 'lang.txt'
        if not path.is_file():
            return '', None
        rated, waiting = [], []
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            line = line.strip()
            if found := _CONFIDENCE.fullmatch(line.lower()):
                rated += [(text, float(found[1])) for text in waiting]
                waiting = []
            elif line and 'confidence' not in line.lower():
                waiting.append(line)
        rated += [(text, None) for text in waiting]
        return max(rated, key=lambda pair: -1.0 if pair[1] is None else pair[1], default=('', None))

    def has_actions(self) -> bool:
        return (self.folder / 'policy_out.pkl').is_file()

    def read_actions(self, images: int) -> np.ndarray:
        """(images - 1, 7) float32: action t was taken after image t was."""
        path = self.folder / 'policy_out.pkl'
        steps = read_pickle(path)
        if isinstance(steps, list):
            steps = [step.get('actions') if isinstance(step, dict) else step for step in steps]
        return _table(path, 'actions', steps, images - 1)

    def read_states(self, images: int) -> np.ndarray | None:
        """(images, 7) float32 state of the arm in each image, or None where it was not kept."""
        path = self.folder / 'obs_dict.pkl'
        if not path.is_file():
            return None
        observations = read_pickle(path)
        if not isinstance(observations, dict) or 'full_state' not in observations:
            raise BadEpisode(f"{path}: expected a dict with 'full_state'")
        return _table(path, 'full_state', observations['full_state'], images)

    def latency(self) -> int:
        """Steps by which images lag behind actions: 1 before 23 July 2021, else (and if undated) 0."""
        for part in reversed(self.folder.absolute().parts):
            if _DATE.fullmatch(part):
                return int(datetime.strptime(part, '%Y-%m-%d_%H-%M-%S') < LATENCY_UNTIL)
        return 0


class BridgeReader(EpisodeReader):
    """The trajectories below a folder of BridgeData V2; `path` may be any folder above them, or one of them.

    An episode's frames are those that an action follows: all images but the last, and in recordings before
    23 July 2021 not the first either, as their actions come one step early. A trajectory without
    `policy_out.pkl` has all its images, and no actions.

    Args:
        path: folder of the dataset.
        masks: folder with `<trajectory's path below path>/masks/mask_<t>.png`; None for the dataset itself.

    Raises:
        FileNotFoundError: `path` is not there.
        UnknownLayout: no trajectory is below it.
    """

    def __init__(self, path: str | Path, masks: str | Path | None = None):
        self.path = Path(path)
        self.masks = self.path if masks is None else Path(masks)
        self.trajectories = find_trajectories(self.path, self.masks)
        if not self.trajectories:
            raise UnknownLayout(
                f'{self.path}: no BridgeData V2 trajectory (.../raw/traj_group*/traj*) below it'
            )

    def __len__(self) -> int:
        return len(self.trajectories)

    def episode(self, index: int) -> Episode:
        trajectory = self.trajectories[index]
        try:
            cameras = trajectory.cameras()
            first, end = self._images(trajectory, cameras)
            return Episode(
                name=trajectory.folder.relative_to(self.path).as_posix(),
                length=end - first,
                fps=FPS,
                task=trajectory.instruction()[0],
                cameras=tuple(cameras),
                masked=(MASK_CAMERA,) if MASK_CAMERA in cameras and trajectory.has_masks() else (),
            )
        except OSError as error:
            raise BadEpisode(f'{trajectory.folder}: {error}') from error

    @staticmethod
    def _images(trajectory: Trajectory, cameras: dict[str, int]) -> tuple[int, int]:
        """First image of the episode, and the one after its last."""
        count = next(iter(cameras.values()))
        if not trajectory.has_actions():
            return 0, count
        first, end = trajectory.latency(), count - 1
        if first >= end:
            raise BadEpisode(f'{trajectory.folder}: {count} images are too few for an action')
        return first, end

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        trajectory = self.trajectories[index]
        cameras = trajectory.cameras()
        count = next(iter(cameras.values()))
        images = frames + self._images(trajectory, cameras)[0]
        actions = states = None
        if trajectory.has_actions():
            # Frame t has action t: where images lag one step behind, the frame is image t + 1
            actions = trajectory.read_actions(count)[frames]
            states = trajectory.read_states(count)
            states = None if states is None else states[images]
        confidence = trajectory.instruction()[1]
        return InteractionClip(
            frames=trajectory.read_images(camera, images),
            labels=trajectory.read_labels(images) if camera in episode.masked else None,
            task=episode.task,
            actions=actions,
            states=states,
            source={} if confidence is None else {'confidence': confidence},
        )


def find_trajectories(path: Path, masks: Path) -> list[Trajectory]:
    """Trajectories at or below `path` in numeric order; folders with 'lmdb' in their name are left out."""
    if not path.is_dir():
        raise FileNotFoundError(f'{path}: no such folder')
    folders = []
    for folder, names, _ in os.walk(path):
        here = Path(folder)
        if re.fullmatch(r'traj\d+', here.name):
            folders.append(here)
            names[:] = []  # not into its pictures: a full copy has millions
        elif here.name.startswith('traj_group'):
            names[:] = [name for name in names if re.fullmatch(r'traj\d+', name)]
        else:
            names[:] = [name for name in names if 'lmdb' not in name]
    folders.sort(key=lambda folder: natural_order(str(folder.relative_to(path))))
    return [Trajectory(folder, masks / folder.relative_to(path) / 'masks') for folder in folders]


def _table(path: Path, what: str, rows, length: int) -> np.ndarray:
    try:
        table = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadEpisode(f'{path}: {what} are not rows of numbers: {error}') from error
    if table.ndim != 2 or len(table) != length:
        raise BadEpisode(f'{path}: {what} of shape {table.shape}; expected ({length}, N) for its images')
    return table
