"""What every dataset reader promises: episodes that are listed cheaply and decoded lazily.

`open_dataset` finds the reader for a path. A reader decodes only the frames that are asked for and keeps no
decoded frame, so a pass over any number of clips needs the memory of one.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import InteractionClip


class BadEpisode(ValueError):  # noqa: N818
    """One episode cannot be read, others may; the message names file, episode and, where known, frame."""


class UnknownLayout(ValueError):  # noqa: N818
    """The path holds nothing that a reader knows; the message says what was found."""


@dataclass(frozen=True)
class Episode:
    """What is known of an episode before a frame of it is decoded.

    Attributes:
        name: unique in its dataset, such as 'demo_3' or a folder's relative path.
        length: frames.
        fps: frames a second.
        task: instruction; '' if unknown.
        cameras: names to choose from, the one to take by default first.
        masked: those of `cameras` that have masks.
    """

    name: str
    length: int
    fps: float
    task: str
    cameras: tuple[str, ...]
    masked: tuple[str, ...] = ()


def files_id(path: Path, without: Iterable[Path] = ()) -> str:
    """SHA-256, in hexadecimal, of names, sizes and times of the files at or below `path`.

    Args:
        without: folders below it that do not count.
    """
    path, without = path.resolve(), {folder.resolve() for folder in without}
    digest = hashlib.sha256()
    found = [(str(path.parent), [], [path.name])] if path.is_file() else os.walk(path)
    for parent, folders, names in found:
        folders[:] = sorted(name for name in folders if Path(parent, name) not in without)
        for name in sorted(names):
            file = Path(parent, name)
            facts = file.stat()
            digest.update(f'{file} {facts.st_size} {facts.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def options_identity(options: Mapping[str, object]) -> dict:
    """Options of a reader, JSON-serialisable, by which a job knows that it goes on.

    Of a contract counts what it says, not where it lies.
    """
    if contract := options.get('contract'):
        return {**options, 'contract': hashlib.sha256(Path(contract).read_bytes()).hexdigest()}
    return dict(options)


def natural_order(text: str) -> list:
    """Sort key that puts 'traj2' before 'traj10'."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r'(\d+)', text))]


class EpisodeReader(ABC):
    """Lazy access to the episodes of one dataset. Subclasses fill in `__len__`, `episode` and `_read`.

    Attributes:
        path: file or folder of the dataset.
        with_depth: set it to False where clips need no depth; decoding it can cost as much as the frames.
    """

    path: Path
    with_depth: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes."""

    @abstractmethod
    def episode(self, index: int) -> Episode:
        """What is known of episode `index` without decoding; BadEpisode if not even that can be read."""

    @abstractmethod
    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        """Decode `frames` ((N,) int64, valid, not empty) of `camera` (one of `episode.cameras`).

        `clip.fps` and `clip.source` are set by `read`; a reader may put more keys into `source`.
        """

    def split_group(self, index: int) -> str:
        """Name of the demonstration that an episode shows; '' where that is lost.

        Episodes that were made of one another have one name, and belong on one side of any split.
        """
        return f'{self.path.name}/{index}'

    def read(
        self, index: int, frames: Sequence[int] | None = None, camera: str | None = None
    ) -> InteractionClip:
        """Decode one episode, or some of its frames.

        Args:
            index: 0 to len(self) - 1.
            frames: indices in the episode in the order wanted; None for all.
            camera: one of `episode(index).cameras`; None for the first.

        Returns:
            The clip. `source` is the provenance written with the episode, else 'dataset', 'episode' and
            'camera'; where not the whole episode was read, also 'frames' (indices) and 'frame_times' (s).

        Raises:
            IndexError: no such episode or frame.
            ValueError: no such camera.
            BadEpisode: damaged data, named by file, episode and frame.
        """
        episode = self._checked_episode(index)
        camera = episode.cameras[0] if camera is None and episode.cameras else camera
        if camera not in episode.cameras:
            raise ValueError(
                f'{self.path}: episode {episode.name}: no camera {camera!r}; there are {episode.cameras}'
            )
        wanted = np.arange(episode.length) if frames is None else np.asarray(frames, dtype=np.int64)
        if not len(wanted) or wanted.min() < 0 or wanted.max() >= episode.length:
            raise IndexError(
                f'{self.path}: episode {episode.name}: frames {wanted.tolist()} of {episode.length}'
            )
        try:
            clip = self._read(index, episode, wanted, camera)
        except BadEpisode:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError) as error:
            raise BadEpisode(f'{self.path}: episode {episode.name}: {error}') from error
        for name in ('actions', 'states'):
            values = getattr(clip, name)
            if values is not None and not np.isfinite(values).all():
                bad = wanted[np.flatnonzero(~np.isfinite(values).all(axis=1))[0]]
                raise BadEpisode(f'{self.path}: episode {episode.name}: frame {bad}: {name} are not finite')
        if 'dataset' not in clip.source:
            clip.source |= {'dataset': self.path.name, 'episode': episode.name, 'camera': camera}
        clip.fps = episode.fps
        if not np.array_equal(wanted, np.arange(episode.length)):
            clip.source['frames'] = wanted.tolist()
            clip.source.setdefault('frame_times', (wanted / episode.fps).tolist())
            if wanted[-1] > wanted[0]:
                clip.fps = episode.fps * (len(wanted) - 1) / float(wanted[-1] - wanted[0])
        return clip

    def _checked_episode(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.path}: episode {index} of {len(self)}')
        return self.episode(index)


class Subset(EpisodeReader):
    """Some episodes of a reader, as a dataset of their own."""

    def __init__(self, reader: EpisodeReader, episodes: Sequence[int]):
        self.path, self.reader, self.episodes = reader.path, reader, list(episodes)

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        return self.reader.episode(self.episodes[index])

    def split_group(self, index: int) -> str:
        return self.reader.split_group(self.episodes[index])

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        return self.reader._read(self.episodes[index], episode, frames, camera)


#: One of so many demonstrations of a dataset that has no splits is for tests, beginning with the first.
TEST_PERIOD = 10


def demonstrations(reader: EpisodeReader, episodes: Iterable[int] | None = None) -> list[list[int]]:
    """Episodes (None: all) by the demonstration that they show, in the order of their first ones.

    An episode of which that is not known, or that is damaged, is taken for one of its own.
    """
    groups: dict[str | int, list[int]] = {}
    lost = 0
    for index in range(len(reader)) if episodes is None else episodes:
        try:
            group = reader.split_group(index)
            lost += not group
        except BadEpisode:
            group = ''
        groups.setdefault(group or index, []).append(index)
    if lost:
        tqdm.write(
            f'{reader.path}: nobody knows which demonstration {lost} episodes show, as after a merge with '
            'what was augmented; what was made of them may be on the other side of the split',
            file=sys.stderr,
        )
    return list(groups.values())


def split_episodes(reader: EpisodeReader) -> tuple[list[int], list[int]]:
    """Episodes to train on, and episodes to test on: those of one of `TEST_PERIOD` demonstrations."""
    groups = demonstrations(reader)
    tests = {index for group in groups[::TEST_PERIOD] for index in group}
    return [index for index in range(len(reader)) if index not in tests], sorted(tests)


#: Chooses frames of an episode: one index array for each clip wanted (see `mask2iv_ros.data.sampling`).
Sampler = Callable[[Episode], Iterable[Sequence[int] | None]]


def whole_episode(episode: Episode) -> list[None]:
    """Sampler: one clip with every frame."""
    return [None]


def open_dataset(path: str | Path, **options) -> EpisodeReader:
    """The reader for what is at `path`.

    That is a LeRobot v3 dataset, HDF5 (robomimic, LIBERO, ALOHA), BridgeData V2, HOI4D, the folder of a
    benchmark that `mask2iv prepare` made, which needs the option `split`, or rosbag2 recordings, which need
    the option `contract`.

    Args:
        options: more arguments of the reader; ValueError if it has no such, or needs one that is missing.

    Raises:
        FileNotFoundError: nothing is there.
        UnknownLayout, IncompatibleDataset: it is none of these, or an older version of one.
    """
    from mask2iv_ros.data.bridge import BridgeReader
    from mask2iv_ros.data.hdf5 import open_hdf5
    from mask2iv_ros.data.hoi4d import HOI4DReader
    from mask2iv_ros.data.lerobot_reader import LeRobotReader
    from mask2iv_ros.data.paper_benchmarks import BenchmarkReader
    from mask2iv_ros.data.rosbag import RosbagReader, recordings

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, 'no such dataset', str(path))
    if (path / 'meta').is_dir():
        readers = [LeRobotReader]
    elif (path / 'manifest.json').is_file():
        if 'split' not in options:
            raise ValueError(f'{path}: is a prepared benchmark; say which split (train, val or test)')
        readers = [BenchmarkReader]
    elif recordings(path):
        if 'contract' not in options:
            raise ValueError(f'{path}: is a rosbag2 recording; say what its topics are (contract)')
        readers = [RosbagReader]
    elif path.is_file():
        readers = [open_hdf5]
    else:
        readers = [open_hdf5, BridgeReader, HOI4DReader]
    refused: set[str] = set()
    for reader in readers:
        if unknown := set(options) - set(inspect.signature(reader).parameters):
            refused |= unknown
            continue
        try:
            return reader(path, **options)
        except UnknownLayout:
            if len(readers) == 1:
                raise
    if refused:
        raise ValueError(f'{path}: there is no {" or ".join(sorted(refused))} for a dataset of its kind')
    found = sorted(entry.name for entry in path.iterdir())[:8]
    raise UnknownLayout(
        f'{path}: expected a LeRobot v3 dataset (meta/info.json), HDF5 files, BridgeData V2 trajectories '
        '(.../raw/traj_group*/traj*), HOI4D sequences (ZY*/H*/C*/...) or rosbag2 recordings; '
        f'found {", ".join(found) or "nothing"}'
    )


def read_clips(
    source: EpisodeReader | str | Path,
    episodes: Iterable[int] | None = None,
    sampler: Sampler = whole_episode,
    camera: str | None = None,
    skipped: list[BadEpisode] | None = None,
) -> Iterator[InteractionClip]:
    """Clips of a dataset, one at a time.

    Args:
        source: a reader, or the path of a dataset.
        episodes: indices; None for all.
        sampler: which frames of each episode.
        camera: name; None for each episode's first.
        skipped: if given, damaged episodes are appended here and passed over instead of raised.
    """
    reader = source if isinstance(source, EpisodeReader) else open_dataset(source)
    for index in range(len(reader)) if episodes is None else episodes:
        try:
            for frames in sampler(reader._checked_episode(index)):
                yield reader.read(index, frames, camera)
        except BadEpisode as error:
            if skipped is None:
                raise
            skipped.append(error)
