"""Recordings of ROS 2 (rosbag2: SQLite or MCAP) as episodes, read without ROS.

What belongs to a frame is what a policy would have had at that moment: of each topic the newest message that
had arrived. Masks are drawn from an image afterwards, so they are found by the image's own stamp instead.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import cv2
import numpy as np
import yaml

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout, natural_order
from mask2iv_ros.image_messages import (
    read_colour,
    read_depth,
    read_intrinsics,
    read_mask,
    read_stamp,
)
from mask2iv_ros.labels import combine_masks

METADATA = 'metadata.yaml'
STORAGE = '*.db3*', '*.mcap*'  #: files of messages, perhaps compressed
DEPTH_HEADER = 12  #: bytes before the PNG of compressed_depth_image_transport: int32, float32 a, float32 b


def recordings(path: Path) -> list[Path]:
    """The recording at `path`, or those in it, in natural order of their names.

    One that was killed has no `METADATA`; it is among them.
    """

    def is_one(folder: Path) -> bool:
        return (folder / METADATA).is_file() or any(any(folder.glob(kind)) for kind in STORAGE)

    if not path.is_dir() or is_one(path):
        return [path] * path.is_dir()
    found = [folder for folder in path.iterdir() if folder.is_dir() and is_one(folder)]
    return sorted(found, key=lambda folder: natural_order(folder.name))


@dataclass(frozen=True)
class CameraTopics:
    """Topics of one camera; '' for what it does not have. `image`, masks and depth may be compressed ones.

    `rectified`: the images are, so that the camera is that of P, without distortion.
    """

    image: str
    object_mask: str = ''
    actor_mask: str = ''
    depth: str = ''
    camera_info: str = ''
    rectified: bool = False


@dataclass(frozen=True)
class Contract:
    """How topics become an episode.

    Attributes:
        fps: frames a second of the episode.
        cameras: by name, the one to take by default first.
        states, actions: '/topic:field' each, nested fields with dots, such as '/joint_states:position' or
            '/target:pose.position.x'; numbers and arrays of them, one after the other.
        task: what is done; '/topic' is the newest text there (`std_msgs/String`).
        max_age: seconds; a frame for which one of the topics has nothing newer is left out, and counted.
        max_stamp_difference: seconds between the stamps of an image and of its masks.
        max_dropped: share of the frames; an episode that lacks more is refused.

    Raises:
        ValueError: a value out of range, or no camera.
    """

    fps: float
    cameras: Mapping[str, CameraTopics]
    states: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    task: str = ''
    max_age: float = 0.2
    max_stamp_difference: float = 0.02
    max_dropped: float = 0.1

    def __post_init__(self):
        if not self.cameras:
            raise ValueError('cameras: expected at least one')
        if self.fps <= 0 or self.max_age <= 0 or not 0 <= self.max_dropped <= 1:
            raise ValueError(
                'expected fps and max_age above 0 and max_dropped in 0..1, got '
                f'{self.fps}, {self.max_age}, {self.max_dropped}'
            )
        for name in (*self.states, *self.actions):
            if not name.startswith('/') or name.count(':') != 1:
                raise ValueError(f"states, actions: expected '/topic:field', got {name!r}")

    @classmethod
    def load(cls, path: str | Path) -> Contract:
        """Read a YAML file with these names; see config/recording.yaml. ValueError names what is wrong."""
        try:
            values = yaml.safe_load(Path(path).read_text())
            values['cameras'] = {name: CameraTopics(**topics) for name, topics in values['cameras'].items()}
            values |= {key: tuple(values[key]) for key in ('states', 'actions') if key in values}
            return cls(**values)
        except (TypeError, AttributeError, KeyError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f'{path}: {error}') from error

    @property
    def sampled(self) -> list[str]:
        """Topics of which each frame takes the newest message."""
        topics = [camera.image for camera in self.cameras.values()]
        topics += [name.partition(':')[0] for name in (*self.states, *self.actions)]
        return list(dict.fromkeys(topics))

    @property
    def topics(self) -> list[str]:
        """All topics that are read."""
        fields = ('object_mask', 'actor_mask', 'depth', 'camera_info')
        more = [getattr(camera, name) for camera in self.cameras.values() for name in fields]
        if self.task.startswith('/'):
            more.append(self.task)
        return list(dict.fromkeys((*self.sampled, *filter(None, more))))


@dataclass
class Timeline:
    """When the messages of a recording arrived, and which of them belong to which frame.

    Attributes:
        arrived: by topic, (N,) int64 nanoseconds, ascending.
        stamps: by topic, (N,) int64 nanoseconds of the messages' headers.
        picked: by topic, (T,) index of each frame's message.
        times: (T,) seconds since the first frame.
        dropped: how many frames were left out, by reason.
    """

    arrived: dict[str, np.ndarray]
    stamps: dict[str, np.ndarray]
    picked: dict[str, np.ndarray] = field(default_factory=dict)
    times: np.ndarray | None = None
    dropped: Counter = field(default_factory=Counter)

    def newest(self, topic: str) -> int:
        """Index of the last message of `topic`."""
        return len(self.arrived[topic]) - 1

    def sample(self, contract: Contract) -> None:
        """Fill in `picked`, `times`, `dropped`. ValueError for a topic without message, or too few frames."""
        for topic in contract.topics:
            if not len(self.arrived.get(topic, ())):
                raise ValueError(f'no message on {topic}')
        start = max(self.arrived[topic][0] for topic in contract.sampled)
        end = max(self.arrived[camera.image][-1] for camera in contract.cameras.values())
        count = int((end - start) * contract.fps / 1e9) + 1
        ticks = start + (np.arange(count) * (1e9 / contract.fps)).round().astype(np.int64)
        kept = np.ones(len(ticks), bool)
        for topic in contract.sampled:
            self.picked[topic] = np.searchsorted(self.arrived[topic], ticks, side='right') - 1
            stale = ticks - self.arrived[topic][self.picked[topic]] > contract.max_age * 1e9
            self._drop(kept, stale, f'nothing new on {topic}')
        for camera in contract.cameras.values():
            stamps = self.stamps[camera.image][self.picked[camera.image]]
            for topic in filter(None, (camera.object_mask, camera.actor_mask, camera.depth)):
                order = np.argsort(self.stamps[topic], kind='stable')
                nearest = _nearest(self.stamps[topic][order], stamps)
                self.picked[topic] = order[nearest]
                away = np.abs(self.stamps[topic][self.picked[topic]] - stamps)
                self._drop(kept, away > contract.max_stamp_difference * 1e9, f'no {topic} of the image')
        if kept.sum() < 2 or kept.mean() < 1 - contract.max_dropped:
            why = ', '.join(f'{reason} {count} times' for reason, count in self.dropped.items())
            raise ValueError(
                f'{int(kept.sum())} of {len(ticks)} frames are complete, expected at least two and '
                f'{100 * (1 - contract.max_dropped):.0f} %: {why or "too short"}'
            )
        self.picked = {topic: picked[kept] for topic, picked in self.picked.items()}
        self.times = (ticks[kept] - ticks[kept][0]) / 1e9

    def _drop(self, kept: np.ndarray, bad: np.ndarray, reason: str) -> None:
        if count := int((bad & kept).sum()):
            self.dropped[reason] += count
        kept &= ~bad


def _nearest(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the nearest of ascending `values` to each of `wanted`."""
    after = np.searchsorted(values, wanted).clip(0, len(values) - 1)
    before = (after - 1).clip(0)
    return np.where(wanted - values[before] <= values[after] - wanted, before, after)


def build_clip(
    contract: Contract, camera: str, timeline: Timeline, messages: Mapping[str, Mapping[int, object]],
    frames: np.ndarray, joints: dict[str, list[str]],
) -> InteractionClip:  # fmt: skip
    """The clip that `camera` saw, of `frames` of a timeline.

    Args:
        messages: by topic, of each index in `timeline.picked` the message; depth may be left out.
        joints: by topic, the order in which the joints of `sensor_msgs/JointState` are wanted; a topic that
            is not there gets that of its first message.

    Raises:
        ValueError: messages that are not what the contract says, or of other joints.
    """
    topics = contract.cameras[camera]

    def picked(topic: str) -> list:
        return [messages[topic][int(index)] for index in timeline.picked[topic][frames]]

    def numbers(names: tuple[str, ...]) -> np.ndarray | None:
        if not names:
            return None
        columns = []
        for name in names:
            topic, _, path = name.partition(':')
            try:
                values = [_numbers(message, path, joints, topic) for message in picked(topic)]
                columns.append(np.stack([np.atleast_1d(value) for value in values]).astype(np.float32))
            except (
                AttributeError,
                TypeError,
                ValueError,
            ) as error:  # no such field, no numbers, or not as many
                raise ValueError(f'{name}: {error}') from error
        return np.concatenate(columns, axis=1)

    labels = None
    if topics.object_mask:
        masks = np.stack([_mask(message, topics.object_mask) for message in picked(topics.object_mask)])
        actors = None
        if topics.actor_mask:
            actors = np.stack([_mask(message, topics.actor_mask) for message in picked(topics.actor_mask)])
        labels = combine_masks(masks, actors)
    depth, calibration = None, {}
    if topics.depth in messages:
        depth = np.stack([_depth(message, topics.depth) for message in picked(topics.depth)])
    if topics.camera_info:
        calibration = _calibration(messages[topics.camera_info][0], topics.rectified)
    return InteractionClip(
        frames=np.stack([_colour(message, topics.image) for message in picked(topics.image)]),
        labels=labels,
        task=messages[contract.task][timeline.newest(contract.task)].data
        if contract.task.startswith('/')
        else contract.task,
        fps=contract.fps,
        actions=numbers(contract.actions),
        states=numbers(contract.states),
        depth=depth,
        camera=calibration.get('camera'),
        source={
            'frame_times': timeline.times[frames].tolist(),
            'frames_dropped': dict(timeline.dropped),
            **{name: told for name, told in calibration.items() if name != 'camera'},
        },
    )


def _calibration(message, rectified: bool) -> dict:
    """The 'camera', or why there is 'no_camera': datasets have no place for lens distortion."""
    if np.any(message.d) and not rectified:
        return {'no_camera': f'lens distortion ({message.distortion_model}), and images are not rectified'}
    intrinsics = read_intrinsics(message, rectified)
    return {'no_camera': 'not calibrated'} if intrinsics is None else {'camera': Camera(intrinsics)}


def _numbers(message, path: str, joints: dict[str, list[str]], topic: str):
    """A field of a message; where joints have names, in the order of `joints[topic]`."""
    values, names = attrgetter(path)(message), getattr(message, 'name', ())
    if isinstance(names, str) or not len(names) or np.shape(values) != (len(names),):
        return values
    order = joints.setdefault(topic, list(names))
    if sorted(order) != sorted(names):
        raise ValueError(
            f'expected the joints {", ".join(order)}, got {", ".join(names)}; what moves several arms '
            'needs a topic for each'
        )
    return np.asarray(values)[[names.index(name) for name in order]]


def _colour(message, name: str) -> np.ndarray:
    if hasattr(message, 'encoding'):
        return read_colour(message, name)
    return cv2.cvtColor(_decompressed(message, name, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _mask(message, name: str) -> np.ndarray:
    if hasattr(message, 'encoding'):
        return read_mask(message, name)
    if 'jp' in message.format.lower().split(';')[-1]:
        raise ValueError(f'{name}: expected a mask without loss, got {message.format!r}')
    pixels = _decompressed(message, name, cv2.IMREAD_UNCHANGED)  # 16 bits stay 16 bits
    return pixels[..., :3].any(axis=-1) if pixels.ndim == 3 else pixels != 0


def _depth(message, name: str) -> np.ndarray:
    """See `read_depth`; also PNGs of compressed_image_transport and compressed_depth_image_transport.

    The latter stores 32FC1 as v = a / depth + b, 0 where unknown, with a and b in its header.
    """
    if hasattr(message, 'encoding'):
        return read_depth(message, name)
    encoding, _, kind = message.format.partition(';')
    skipped = DEPTH_HEADER if 'compressedDepth' in kind else 0
    pixels = _decompressed(message, name, cv2.IMREAD_UNCHANGED, skipped)
    if pixels.dtype != np.uint16 or pixels.ndim != 2:
        raise ValueError(f'{name}: expected depth of 16 bits, got {pixels.dtype} of shape {pixels.shape}')
    if encoding.strip() != '32FC1':
        return pixels.astype(np.float32) * np.float32(0.001)
    if not skipped:
        raise ValueError(f'{name}: {message.format!r} does not say which depth its pixels are')
    a, b = np.frombuffer(bytes(message.data[4:DEPTH_HEADER]), '<f4')
    known = pixels > b
    return np.divide(a, pixels - b, out=np.zeros(pixels.shape, np.float32), where=(pixels > 0) & known)


def _decompressed(message, name: str, how: int, skipped: int = 0) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8)[skipped:]
    image = cv2.imdecode(data, how) if len(data) else None
    if image is None:
        raise ValueError(f'{name}: {len(message.data)} bytes of {message.format!r} are no picture')
    return image


class RosbagReader(EpisodeReader):
    """Episodes of rosbag2 recordings: `path` is one, or a folder of some, in natural order of their names.

    Joints are in the order of the first recording's first message.

    Args:
        contract: file, see `Contract.load`.

    Raises:
        UnknownLayout: there is no recording.
        ValueError: the contract is wrong.
    """

    def __init__(self, path: str | Path, contract: str | Path):
        self.path = Path(path)
        self.contract = Contract.load(contract)
        self._bags = recordings(self.path)
        self._joints: dict[str, list[str]] | None = None
        if not self._bags:
            raise UnknownLayout(f'{self.path}: expected rosbag2 recordings (folders with {METADATA})')
        self._timeline: tuple[int, Timeline] | None = None  # of the recording that was read last

    def __len__(self) -> int:
        return len(self._bags)

    def episode(self, index: int) -> Episode:
        timeline, contract = self._sampled(index), self.contract
        task = contract.task
        if task.startswith('/'):
            newest = timeline.newest(task)
            task = self._messages(index, timeline, {task: {newest}})[task][newest].data
        return Episode(
            name=self._bags[index].name,
            length=len(timeline.times),
            fps=contract.fps,
            task=task,
            cameras=tuple(contract.cameras),
            masked=tuple(name for name, topics in contract.cameras.items() if topics.object_mask),
        )

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        timeline, contract = self._sampled(index), self.contract
        topics = contract.cameras[camera]
        wanted = {}
        names = [topics.image, topics.object_mask, topics.actor_mask, topics.depth if self.with_depth else '']
        names += [name.partition(':')[0] for name in (*contract.states, *contract.actions)]
        for topic in filter(None, names):
            wanted[topic] = set(timeline.picked[topic][frames].tolist())
        if topics.camera_info:
            wanted[topics.camera_info] = {0}
        if contract.task.startswith('/'):
            wanted[contract.task] = {timeline.newest(contract.task)}
        messages = self._messages(index, timeline, wanted)
        return build_clip(contract, camera, timeline, messages, frames, self._order_of_joints())

    def _order_of_joints(self) -> dict[str, list[str]]:
        """By topic, of the first recording that can be read."""
        for index in range(len(self)) if self._joints is None else ():
            with contextlib.suppress(BadEpisode):
                self._joints = self._joints_of(index)
                break
        return dict(self._joints or {})

    def _joints_of(self, index: int) -> dict[str, list[str]]:
        topics = {name.partition(':')[0] for name in (*self.contract.states, *self.contract.actions)}
        found = {}
        with self._open(index) as recording:
            for connection in recording.connections:
                if connection.topic in topics and connection.msgtype == 'sensor_msgs/msg/JointState':
                    for _, _, data in recording.messages([connection]):
                        names = list(recording.deserialize(data, connection.msgtype).name)
                        if names:
                            found[connection.topic] = names
                        break
        return found

    def _sampled(self, index: int) -> Timeline:
        if self._timeline is None or self._timeline[0] != index:
            timeline = self._scan(index)
            try:
                timeline.sample(self.contract)
            except ValueError as error:
                raise BadEpisode(f'{self._bags[index]}: {error}') from error
            self._timeline = index, timeline
        return self._timeline[1]

    @contextlib.contextmanager
    def _open(self, index: int):
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.rosbag2 import ReaderError
        from rosbags.typesys import Stores, get_typestore

        if not (self._bags[index] / METADATA).is_file():
            raise BadEpisode(
                f'{self._bags[index]}: has no {METADATA}, as a recorder leaves it that was killed; '
                '`ros2 bag reindex` makes one'
            )
        try:
            with AnyReader(
                [self._bags[index]], default_typestore=get_typestore(Stores.ROS2_JAZZY)
            ) as recording:
                yield recording
        except (AnyReaderError, ReaderError) as error:
            raise BadEpisode(f'{self._bags[index]}: {error}') from error

    def _scan(self, index: int) -> Timeline:
        """When messages of the contract's topics arrived, without decoding one."""
        found = {topic: [] for topic in self.contract.topics}
        with self._open(index) as recording:
            connections = [c for c in recording.connections if c.topic in found]
            for connection, arrived, data in recording.messages(connections) if connections else ():
                stamp = read_stamp(data) if has_stamp(connection.msgtype) else arrived
                found[connection.topic].append((arrived, stamp))
        times = {topic: np.array(values, np.int64).reshape(-1, 2) for topic, values in found.items()}
        return Timeline(
            {topic: pair[:, 0] for topic, pair in times.items()},
            {topic: pair[:, 1] for topic, pair in times.items()},
        )

    def _messages(self, index: int, timeline: Timeline, wanted: Mapping[str, set[int]]) -> dict[str, dict]:
        """By topic the messages of the wanted indices."""
        found = {topic: {} for topic in wanted}
        counts = Counter()
        last = {topic: max(indices) for topic, indices in wanted.items()}
        end = max(int(timeline.arrived[topic][number]) for topic, number in last.items())
        with self._open(index) as recording:
            connections = [c for c in recording.connections if c.topic in wanted]
            for connection, _, data in recording.messages(connections, stop=end + 1):
                topic = connection.topic
                if counts[topic] in wanted[topic]:
                    found[topic][counts[topic]] = recording.deserialize(data, connection.msgtype)
                counts[topic] += 1
        return found


def has_stamp(kind: str) -> bool:
    """Whether stamps of messages of this type are looked at."""
    return kind in ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
