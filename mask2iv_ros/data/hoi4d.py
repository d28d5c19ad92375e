"""HOI4D (leolyliu/HOI4D-Instructions): egocentric RGB-D videos of hands and objects, one episode an action.

    ZY<camera>/H<human>/C<category>/N<instance>/S<room>/s<layout>/T<task>/
        align_rgb/image.mp4           300 frames of 1920 x 1080 at 15 a second, or its frames as <%05d>.jpg
        align_depth/depth_video.avi   16 bit FFV1, mm, registered to the colours, or its frames as <%05d>.png
        2Dseg/shift_mask/<%05d>.png   labels in PASCAL VOC colours; 2Dseg/mask for the first camera
        action/color.json             what is done when
    camera_params/ZY<camera>/intrin.npy

The parts come in archives of their own (`HOI4D_release`, `HOI4D_annotations`, `HOI4D_depth_video`); they may
lie side by side as unpacked, or merged in one tree.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import av
import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout
from mask2iv_ros.data.images import read_image, stack_images
from mask2iv_ros.labels import ACTOR, BACKGROUND, OBJECT, PART

FPS = 15.0
FRAMES = 300  #: of every video

CAMERA = 'rgb'
CATEGORIES = {
    1: 'ToyCar', 2: 'Mug', 3: 'Laptop', 4: 'StorageFurniture', 5: 'Bottle', 6: 'Safe', 7: 'Bowl',
    8: 'Bucket', 9: 'Scissors', 11: 'Pliers', 12: 'Kettle', 13: 'Knife', 14: 'TrashCan', 17: 'Lamp',
    18: 'Stapler', 20: 'Chair',
}  # fmt: skip

#: Label of each mask index (the row of `label.csv`): 1 object, 2 right hand, 3 and 4 parts, 6 left hand.
_LABELS = (BACKGROUND, OBJECT, ACTOR, PART, PART, BACKGROUND, ACTOR, BACKGROUND)
#: What Mask2IV's clean-up (its `format_mask`) does otherwise, by category: {mask index: label}.
_CLEAN_UP = {
    'Mug': {3: BACKGROUND},
    'Bottle': {3: BACKGROUND},
    'Kettle': {3: BACKGROUND},
    'Knife': {3: BACKGROUND},
    'Laptop': {1: PART, 3: OBJECT},
    'Scissors': {3: OBJECT},
    'Pliers': {3: OBJECT},
    'Bucket': {4: BACKGROUND},
    'TrashCan': {4: BACKGROUND},
    'Chair': {3: ACTOR},
}
_LEFT_HAND = {'Chair': 3}
_OTHER_LEFT_HAND = 6

#: Caption of each event (Mask2IV's `format_template`); events that no caption names are not in it.
_CAPTIONS = {
    'grasp': 'a hand grasping',
    'pickup': 'a hand picking up',
    'putdown': 'a hand putting down',
    'dump': 'a hand dumping',
    'open': 'a hand opening',
    'close': 'a hand closing',
    'carry': 'a hand carrying',
    'carrywithbothhands': 'two hands carrying',
    'press': 'a hand pressing',
    'push': 'a hand pushing',
    'pull': 'a hand pulling',
    'binding': 'a hand binding with',
    'cut': 'a hand cutting with',
    'paper-cut': 'a hand cutting with',
    'turn&on&the&switch': 'a hand turning on the switch of',
}
_OBJECT_WORDS = {'storagefurniture': 'storage furniture', 'trashcan': 'trash can'}
_ARCHIVES = ('HOI4D_release', 'HOI4D_annotations', 'HOI4D_depth_video')


@dataclass(frozen=True)
class Event:
    """An annotated action: frames `start` to `end`, both included."""

    name: str
    start: int
    end: int


def caption(event: str, category: str, two_hands: bool = False) -> str:
    """'a hand picking up a mug' for 'Pickup' and 'Mug'; '' for an event such as 'rest'."""
    action = _CAPTIONS.get(event.lower())
    if action is None:
        return ''
    thing = _OBJECT_WORDS.get(category.lower(), category.lower())
    article = '' if thing.endswith('s') else 'an ' if thing[0] in 'aeiou' else 'a '
    return f'{action.replace("a hand", "two hands") if two_hands else action} {article}{thing}'


@dataclass(frozen=True)
class Sequence:
    """One video and its annotations.

    Attributes:
        name: 'ZY20210800001/H1/C2/N01/S52/s02/T1'.
        roots: folders that may hold parts of it.
    """

    name: str
    roots: tuple[Path, ...] = field(repr=False)

    @property
    def category(self) -> str:
        number = int(self.name.split('/')[2][1:])
        if number not in CATEGORIES:
            raise BadEpisode(f'{self.name}: unknown category C{number}')
        return CATEGORIES[number]

    def find(self, part: str) -> Path | None:
        return next((path for root in self.roots if (path := root / self.name / part).exists()), None)

    @cached_property
    def mask_folder(self) -> Path | None:
        return self.find('2Dseg/shift_mask') or self.find('2Dseg/mask')

    def events(self) -> list[Event]:
        """The actions in order; a Reachout directly before a Grasp is part of the Grasp (Mask2IV).

        A frame belongs to an event if its time is in [start, end). Times are scaled so that the annotated
        duration is the whole video: some files run on a clock of 10 s.

        Raises:
            BadEpisode: there is no `action/color.json`, or not in a known form.
        """
        path = self.find('action/color.json')
        if path is None:
            raise BadEpisode(f'{self.name}: no action/color.json')
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            if 'events' in content:
                marks = [(mark['event'], mark['startTime'], mark['endTime']) for mark in content['events']]
            else:
                marks = content['markResult']['marks']
                marks = [(mark['event'], mark['hdTimeStart'], mark['hdTimeEnd']) for mark in marks]
            marks = sorted(
                ((str(n).strip(), float(s), float(e)) for n, s, e in marks), key=lambda mark: mark[1:]
            )
            info = content.get('info') or {}
            duration = float(info.get('duration') or info.get('Duration') or 0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadEpisode(
                f'{path}: expected events (event, startTime, endTime) or markResult.marks (event, '
                f'hdTimeStart, hdTimeEnd): {type(error).__name__}: {error}'
            ) from error
        if not duration:
            seconds = FRAMES / FPS
            duration = (
                seconds / 2 if max((end for *_, end in marks), default=seconds) < 0.6 * seconds else seconds
            )
        events = []
        for name, start, end in marks:
            first, last = (math.ceil(round(time * FRAMES / duration, 3)) for time in (start, end))
            event = Event(name, max(first, 0), min(last, FRAMES) - 1)
            if event.start > event.end:
                continue
            previous = events[-1].name.lower() if events else ''
            if name.lower() == 'grasp' and previous == 'reachout':
                event = Event(name, events.pop().start, event.end)
            events.append(event)
        return events

    def read_frames(self, frames: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 RGB of the video's frames `frames`."""
        folder = self.find(f'align_rgb/{frames[0]:05d}.jpg')
        if folder is not None:
            folder = folder.parent
            return stack_images((read_image(folder / f'{frame:05d}.jpg') for frame in frames), folder)
        return _decode(self._need('align_rgb/image.mp4'), frames, 'rgb24')

    def read_depth(self, frames: np.ndarray) -> np.ndarray | None:
        """(N, H, W) float32 metres, registered to the colours, 0 where invalid; None where there is none."""
        picture = self.find(f'align_depth/{frames[0]:05d}.png')
        video = self.find('align_depth/depth_video.avi')
        if picture is not None:
            paths = (picture.with_name(f'{frame:05d}.png') for frame in frames)
            depth = stack_images((read_image(path, -1) for path in paths), picture.parent)
        elif video is not None:
            depth = _decode(video, frames, 'gray16le')
        else:
            return None
        if depth.dtype != np.uint16 or depth.ndim != 3:
            raise BadEpisode(
                f'{self.name}: depth is {depth.shape[1:]} {depth.dtype}; expected (H, W) uint16 mm'
            )
        return depth.astype(np.float32) / 1000

    def read_masks(self, frames: np.ndarray) -> np.ndarray:
        """(N, H, W) uint8 mask index of each pixel, 0 to 7; colours outside the palette are 0.

        Raises:
            BadEpisode: a picture is missing, damaged, or in no VOC colour at all.
        """
        if self.mask_folder is None:
            raise BadEpisode(f'{self.name}: no 2Dseg/shift_mask or 2Dseg/mask')
        paths = [self.mask_folder / f'{frame:05d}.png' for frame in frames]
        return stack_images((_mask_indices(path) for path in paths), self.mask_folder)

    def labels(self, masks: np.ndarray) -> np.ndarray:
        """Label ids of mask indices, cleaned up as Mask2IV does for this category; both hands are actor."""
        lookup = np.array(_LABELS, np.uint8)
        for index, label in _CLEAN_UP.get(self.category, {}).items():
            lookup[index] = label
        return lookup[masks]

    def shows_left_hand(self, masks: np.ndarray) -> bool:
        return bool((masks == _LEFT_HAND.get(self.category, _OTHER_LEFT_HAND)).any())

    def camera(self) -> Camera | None:
        """Intrinsics of the colours; the pose is unknown as the camera is worn on the head."""
        name = f'camera_params/{self.name.split("/")[0]}/intrin.npy'
        path = next((root / name for root in self.roots if (root / name).is_file()), None)
        return None if path is None else Camera(np.load(path, allow_pickle=False).astype(np.float64))

    def _need(self, part: str) -> Path:
        path = self.find(part)
        if path is None:
            raise BadEpisode(f'{self.name}: no {part}')
        return path


class HOI4DReader(EpisodeReader):
    """The annotated actions of HOI4D videos; a video whose annotation cannot be read is one bad episode.

    Args:
        path: folder of the dataset, above the `ZY...` folders or the unpacked archives.

    Raises:
        FileNotFoundError: `path` is not there.
        UnknownLayout: no sequence is below it.
    """

    with_depth = False  # it costs more than the colours, and twice their memory

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._episodes: list[tuple[Sequence, int, Event | BadEpisode]] = []
        for sequence in find_sequences(self.path):
            try:
                self._episodes += [(sequence, *item) for item in enumerate(sequence.events())]
            except BadEpisode as error:
                self._episodes.append((sequence, 0, error))

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> Episode:
        sequence, number, event = self._episodes[index]
        if isinstance(event, BadEpisode):
            raise event
        return Episode(
            name=f'{sequence.name}/{number:02d}-{event.name}',
            length=event.end - event.start + 1,
            fps=FPS,
            task=caption(event.name, sequence.category),
            cameras=(CAMERA,),
            masked=(CAMERA,) if sequence.mask_folder else (),
        )

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        sequence, _, event = self._episodes[index]
        numbers = frames + event.start
        return InteractionClip(
            frames=sequence.read_frames(numbers),
            labels=sequence.labels(sequence.read_masks(numbers)) if episode.masked else None,
            task=episode.task,
            depth=sequence.read_depth(numbers) if self.with_depth else None,
            camera=sequence.camera(),
            source={'first_frame': event.start},
        )


def part_folders(path: Path) -> tuple[Path, ...]:
    """Folders that parts of the sequences may be in, of a dataset in `path`."""
    return (path, *(path / name for name in _ARCHIVES if (path / name).is_dir()))


def find_sequences(path: Path) -> list[Sequence]:
    """All sequences below `path`, in numeric order.

    Raises:
        FileNotFoundError: `path` is not there.
        UnknownLayout: there is none.
    """
    if not path.is_dir():
        raise FileNotFoundError(f'{path}: no such folder')
    folders = part_folders(path)
    names = {
        folder.relative_to(root).as_posix()
        for root in folders
        for folder in root.glob('ZY*/H*/C*/N*/S*/s*/T*')
    }
    names = {name for name in names if re.fullmatch(r'ZY\d+/H\d+/C\d+/N\d+/S\d+/s\d+/T\d+', name)}
    if not names:
        raise UnknownLayout(f'{path}: no HOI4D sequence (ZY*/H*/C*/N*/S*/s*/T*) in it, nor in {_ARCHIVES}')
    return [
        Sequence(name, folders)
        for name in sorted(names, key=lambda n: [int(i) for i in re.findall(r'\d+', n)])
    ]


def _mask_indices(path: Path) -> np.ndarray:
    """VOC colours to (H, W) uint8 index: bit 0 is red, bit 1 green, bit 2 blue, each 128."""
    red, green, blue = (np.ascontiguousarray(channel) for channel in np.moveaxis(read_image(path), -1, 0))
    indices = red >> 7 | green >> 7 << 1 | blue >> 7 << 2
    mixed = (red | green | blue) & 127
    indices[mixed != 0] = 0
    if not indices.any() and mixed.any():
        raise BadEpisode(f'{path}: none of its colours is of the PASCAL VOC palette (channels of 0 and 128)')
    return indices


def _decode(path: Path, frames: np.ndarray, pixel_format: str) -> np.ndarray:
    """Frames of a video by their number in presentation order, whatever its time stamps are."""
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            # Without a context PyAV does not know the codec, and would crash
            if stream is None or stream.codec_context is None:
                raise BadEpisode(f'{path}: no video in it that can be decoded')
            stream.thread_type = 'AUTO'
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
            if frames.max() >= len(stamps):
                raise BadEpisode(f'{path}: {len(stamps)} frames; frame {frames.max()} was wanted')
            wanted = {stamps[frame]: frame for frame in np.unique(frames)}
            found = {}
            for start in (min(wanted), stamps[0]):  # from the first where the key frame is not before
                container.seek(start, stream=stream)
                for picture in container.decode(stream):
                    if picture.pts in wanted and not picture.is_corrupt:
                        found[wanted[picture.pts]] = picture.to_ndarray(format=pixel_format)
                    if len(found) == len(wanted):
                        return stack_images([found[frame] for frame in frames], path)
    except av.FFmpegError as error:
        raise BadEpisode(f'{path}: damaged video: {error}') from error
    raise BadEpisode(f'{path}: frame {min(set(wanted.values()) - set(found))} cannot be decoded')
