"""LeRobot v3 datasets: how an `InteractionClip` is written, appended and read back.

Everything goes through LeRobot's own API. What LeRobot has no place for lives in per-frame `annotation.*`
columns, because only those survive its merge, split and delete tools, and because policies take every
`observation.*`, `action` and video column as input but leave these alone:

* `annotation.masks.<camera>`: JSON, one COCO run-length code a label name; lossless, unlike any video.
* `annotation.goal.<camera>`: the same for the goal image, '' where there is none.
* `annotation.camera.<camera>`: JSON intrinsics and pose, '' where unknown.
* `annotation.frame_time`: seconds of the real world; LeRobot's own `timestamp` is always index / fps.
* `annotation.source`: JSON provenance of the episode, repeated in each frame (parquet stores it once).

A dataset that LeRobot is writing cannot be read, and a crash leaves it so. Hence new episodes go into a
staging copy beside the dataset (old videos and tables hard linked) that takes its place when complete.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.labels import BACKGROUND, LABEL_NAMES

VIDEO_KEY = 'observation.images.{}'
DEPTH_KEY = 'observation.images.{}_depth'
MASKS_KEY = 'annotation.masks.{}'
GOAL_KEY = 'annotation.goal.{}'
CAMERA_KEY = 'annotation.camera.{}'
TIME_KEY = 'annotation.frame_time'
SOURCE_KEY = 'annotation.source'

CRF = 18  #: video quality; LeRobot's 30 blurs fingers and thin tools
MIN_DEPTH = (
    0.01  #: metres; LeRobot's depth codec stores nothing nearer, so invalid depth (0) comes back as this
)


class IncompatibleDataset(ValueError):  # noqa: N818
    """An episode does not fit the dataset that is already there."""


def resolve_dataset_dir(root: str | Path, name: str) -> Path:
    """Directory of the dataset `name` directly below `root`, never anywhere else.

    Raises:
        ValueError: `name` is not a plain name (1 to 100 letters, digits, '.', '_', '-', first a letter or
            digit), or leads out of `root` through a symbolic link.
    """
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]{0,99}', name):
        raise ValueError(
            f'dataset name {name!r}: expected 1 to 100 letters, digits, ".", "_" or "-", '
            'starting with a letter or digit, and no path'
        )
    root = Path(root).resolve()
    path = root / name
    if path.resolve() != path:
        raise ValueError(f'dataset name {name!r}: {path} is a symbolic link out of its place')
    return path


def encode_masks(labels: np.ndarray) -> str:
    """Lossless JSON of an (H, W) label image: {"size": [H, W], "<label name>": "<COCO RLE>", ...}."""
    from pycocotools import mask as coco

    code = {'size': list(labels.shape)}
    for label, name in LABEL_NAMES.items():
        if label != BACKGROUND and (labels == label).any():
            code[name] = coco.encode(np.asfortranarray(labels == label, dtype=np.uint8))['counts'].decode()
    return json.dumps(code)


def decode_masks(text: str) -> np.ndarray:
    """(H, W) uint8 label image of a text that `encode_masks` wrote."""
    from pycocotools import mask as coco

    code = json.loads(text)
    labels = np.zeros(code['size'], dtype=np.uint8)
    for label, name in LABEL_NAMES.items():
        if name in code:
            labels[coco.decode({'size': code['size'], 'counts': code[name]}).astype(bool)] = label
    return labels


def clip_features(clip: InteractionClip, camera: str, depth: bool = False) -> dict[str, dict]:
    """LeRobot features of a clip. State and action are there only if the clip has them."""
    height, width = clip.labels.shape[1:]
    axes = ['height', 'width', 'channels']
    features = {VIDEO_KEY.format(camera): {'dtype': 'video', 'shape': (height, width, 3), 'names': axes}}
    if depth:
        info = {'is_depth_map': True}
        features[DEPTH_KEY.format(camera)] = {
            'dtype': 'video', 'shape': (height, width, 1), 'names': axes, 'info': info
        }  # fmt: skip
    for key, values in (('observation.state', clip.states), ('action', clip.actions)):
        if values is not None:
            features[key] = {'dtype': 'float32', 'shape': (values.shape[1],), 'names': None}
    for key in (MASKS_KEY.format(camera), GOAL_KEY.format(camera), CAMERA_KEY.format(camera), SOURCE_KEY):
        features[key] = {'dtype': 'string', 'shape': (1,), 'names': None}
    features[TIME_KEY] = {'dtype': 'float64', 'shape': (1,), 'names': None}
    return features


def clip_rows(clip: InteractionClip, camera: str, depth: bool = False) -> Iterator[dict]:
    """The frames of a clip as LeRobot's `add_frame` takes them."""
    times = clip.source.get('frame_times', np.arange(len(clip)) / clip.fps)
    source = json.dumps({key: value for key, value in clip.source.items() if key != 'frame_times'})
    goal = '' if clip.goal is None else encode_masks(clip.goal)
    calibration = ''
    if clip.camera is not None:
        pose = clip.camera.cam_to_world
        calibration = json.dumps(
            {
                'intrinsics': np.asarray(clip.camera.intrinsics).tolist(),
                'cam_to_world': None if pose is None else np.asarray(pose).tolist(),
            }
        )
    for i, (frame, labels) in enumerate(zip(clip.frames, clip.labels, strict=True)):
        row = {
            VIDEO_KEY.format(camera): frame,
            MASKS_KEY.format(camera): encode_masks(labels),
            GOAL_KEY.format(camera): goal,
            CAMERA_KEY.format(camera): calibration,
            SOURCE_KEY: source,
            TIME_KEY: np.array([times[i]], dtype=np.float64),
            'task': clip.task,
        }
        if depth:
            row[DEPTH_KEY.format(camera)] = clip.depth[i, :, :, None]
        if clip.states is not None:
            row['observation.state'] = clip.states[i].astype(np.float32)
        if clip.actions is not None:
            row['action'] = clip.actions[i].astype(np.float32)
        yield row


class LeRobotClipWriter:
    """Writes clips as episodes of the dataset at `root`; appends if there is one.

    Use it as a context manager: leaving it normally commits. `commit` makes all episodes added so far part of
    the dataset at once; before that, and after any error or kill, the dataset is what it was. One writer a
    dataset at a time.

    Args:
        root: directory of the dataset; its siblings `.<name>.*` are used while writing.
        camera: name of the video, mask, goal and calibration columns.
        depth: also store `clip.depth` (LeRobot's 12 bit logarithmic depth video, 0.01 to 10 m).
        robot_type: LeRobot's `robot_type` of a new dataset.

    Raises:
        IncompatibleDataset: (from `add`) features or fps differ from the dataset's, or other files are there.
        BlockingIOError: another process writes this dataset.
        OSError: the disk is full (errno ENOSPC) or not writable.
    """

    def __init__(
        self, root: str | Path, camera: str = 'front', depth: bool = False, robot_type: str | None = None
    ):
        self.root = Path(root).absolute()
        self.camera, self.depth, self.robot_type = camera, depth, robot_type
        self._staging = self._sibling('staging')
        self._dataset = None
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._sibling('lock'), 'w')  # noqa: SIM115 (open as long as the writer)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BlockingIOError(error.errno, f'another process is writing {self.root}') from None
        self._recover()

    def __enter__(self) -> LeRobotClipWriter:
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.commit()
            else:
                self._discard()
        finally:
            self._lock.close()

    def add(self, clip: InteractionClip) -> int:
        """Stage one clip; returns its episode index. An error drops all that was not committed."""
        if self.depth and clip.depth is None:
            raise ValueError('clip.depth: expected depth, because this writer stores it; got None')
        with self._discarding():
            if self._dataset is None:
                self._open(clip)
            else:
                self._check(clip)
            for row in clip_rows(clip, self.camera, self.depth):
                self._dataset.add_frame(row)
            self._dataset.save_episode()
            self._staged_frames += len(clip)
            return self._dataset.meta.total_episodes - 1

    def commit(self):
        """Make the staged episodes part of the dataset."""
        if self._dataset is None:
            return
        with self._discarding():
            self._dataset.finalize()
            self._check_videos()
            self._dataset = None
            if self.root.exists():
                self.root.rename(self._sibling('old'))
            self._staging.rename(self.root)
            shutil.rmtree(self._sibling('old'), ignore_errors=True)

    def _sibling(self, role: str) -> Path:
        return self.root.with_name(f'.{self.root.name}.{role}')

    def _recover(self):
        """Clear what an unfinished commit left behind, and put the dataset back if it was being replaced."""
        old = self._sibling('old')
        if old.exists() and not self.root.exists():
            old.rename(self.root)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self._staging, ignore_errors=True)

    def _open(self, clip: InteractionClip):
        import av
        import datasets
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets import LeRobotDataset

        # A queue without limit: LeRobot drops frames when its encoder is slower than add_frame.
        options = {'video_backend': 'pyav', 'streaming_encoding': True, 'encoder_queue_maxsize': 0}
        self._staged_frames = 0
        if self.root.exists() and any(self.root.iterdir()):
            meta = load_metadata(self.root)
            self._check(clip, meta)
            encoder = RGBEncoderConfig.from_video_info(
                meta.features[VIDEO_KEY.format(self.camera)].get('info')
            )
            self._old_videos = set(self.root.glob('videos/**/*.mp4'))
            shutil.copytree(self.root, self._staging, copy_function=self._link_or_copy)
            self._dataset = LeRobotDataset.resume(
                self.root.name, root=self._staging, rgb_encoder=encoder, **options
            )
        else:
            fps = round(clip.fps)
            if fps != clip.fps:
                raise ValueError(f'clip.fps: LeRobot stores whole frames a second, got {clip.fps}')
            self._old_videos = set()
            self._dataset = LeRobotDataset.create(
                self.root.name,
                fps=fps,
                features=clip_features(clip, self.camera, self.depth),
                root=self._staging,
                robot_type=self.robot_type,
                rgb_encoder=RGBEncoderConfig(crf=CRF),
                **options,
            )
        datasets.disable_progress_bars()  # one bar an episode; LeRobot's loading code switches them on again
        av.logging.set_libav_level(av.logging.ERROR)  # lines of the mp4 writer ...
        os.environ.setdefault('SVT_LOG', '1')  # ... and twenty an episode of the AV1 encoder

    def _link_or_copy(self, source: str, target: str):
        # LeRobot appends into new video and table files, but rewrites meta/*.json in place.
        if Path(source).relative_to(self.root).parts[0] in ('data', 'videos'):
            with contextlib.suppress(OSError):  # a file system without hard links
                return os.link(source, target)
        return shutil.copy2(source, target)

    def _check(self, clip: InteractionClip, meta=None):
        from lerobot.utils.constants import DEFAULT_FEATURES

        meta = meta or self._dataset.meta

        def comparable(features: dict) -> dict:
            return {
                key: (feature['dtype'], tuple(feature['shape']))
                for key, feature in features.items()
                if key not in DEFAULT_FEATURES
            }

        have = comparable(meta.features)
        want = comparable(clip_features(clip, self.camera, self.depth))
        problems = [f'{key}: dataset {have.get(key)}, clip {want.get(key)}' for key in sorted(have | want)
                    if have.get(key) != want.get(key)]  # fmt: skip
        if meta.fps != clip.fps:
            problems.append(f'fps: dataset {meta.fps}, clip {clip.fps}')
        if problems:
            raise IncompatibleDataset(f'{self.root}: {"; ".join(problems)}')

    def _check_videos(self):
        """LeRobot logs some encoder errors and carries on, so count what arrived."""
        import av

        for key in self._dataset.meta.video_keys:
            frames = 0
            for path in sorted((self._staging / 'videos' / key).glob('**/*.mp4')):
                if self.root / path.relative_to(self._staging) not in self._old_videos:
                    with av.open(str(path)) as video:
                        frames += video.streams.video[0].frames
            if frames != self._staged_frames:
                raise OSError(errno.EIO, f'{key}: {self._staged_frames} frames went in, {frames} arrived')

    @contextlib.contextmanager
    def _discarding(self):
        """Drop the staging copy on any error, and name a full disk as such."""
        try:
            yield
        except BaseException as error:
            full = self._staging.exists() and shutil.disk_usage(self._staging).free < 1 << 16
            self._discard()
            if not isinstance(error, Exception) or isinstance(error, IncompatibleDataset):
                raise
            code = errno.ENOSPC if full else _system_error(error)
            if code:
                raise OSError(code, f'{os.strerror(code)} (what was committed stays): {error}') from error
            raise

    def _discard(self):
        if self._dataset is not None:
            with contextlib.suppress(Exception):
                self._dataset.writer.cancel_pending_videos()
            # Else their __del__ writes files again
            self._dataset.writer._finalized = self._dataset.meta._finalized = True
            self._dataset = None
        self._recover()


def _system_error(error: BaseException | None) -> int | None:
    """The errno behind an exception: PyAV, datasets and LeRobot's encoder threads wrap it in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r'\[Errno (\d+)\]', str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def load_metadata(root: str | Path):
    """`LeRobotDatasetMetadata` of a local dataset.

    Raises:
        FileNotFoundError: `root` is not there.
        IncompatibleDataset: `root` is not a complete LeRobot v3 dataset. (LeRobot itself would ask the Hub.)
    """
    from lerobot.datasets import LeRobotDatasetMetadata

    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'no such dataset', str(root))
    if not (root / 'meta/info.json').is_file() or not any(root.glob('meta/episodes/**/*.parquet')):
        raise IncompatibleDataset(
            f'{root}: not a complete LeRobot v3 dataset (no meta/info.json or meta/episodes)'
        )
    return LeRobotDatasetMetadata(root.name, root=root)


def read_sources(root: str | Path) -> list[dict]:
    """Provenance (`InteractionClip.source`) of every episode, without decoding a video."""
    from lerobot.datasets import LeRobotDataset

    meta = load_metadata(root)
    table = LeRobotDataset(meta.repo_id, root=root, video_backend='pyav').hf_dataset.select_columns(
        SOURCE_KEY
    )
    return [json.loads(table[episode['dataset_from_index']][SOURCE_KEY]) for episode in meta.episodes]


def read_clips(
    root: str | Path, camera: str | None = None, episodes: Iterable[int] | None = None
) -> Iterator[InteractionClip]:
    """Read episodes of a LeRobot v3 dataset that carries masks.

    Frames are decoded only for the episodes asked, one episode at a time; `episodes` None is all of them.
    `camera` None is the first camera with masks.

    Raises:
        FileNotFoundError, IncompatibleDataset: as `load_metadata`.
        ValueError: there are no masks, or none of `camera`.
        IndexError: an episode is out of range.
    """
    from lerobot.datasets import LeRobotDataset

    root = Path(root)
    meta = load_metadata(root)
    prefix = MASKS_KEY.format('')
    cameras = [key.removeprefix(prefix) for key in meta.features if key.startswith(prefix)]
    if not cameras:
        raise ValueError(f'{root}: no masks (no {prefix}<camera> column)')
    camera = cameras[0] if camera is None else camera
    if camera not in cameras:
        raise ValueError(f'{root}: no masks of camera {camera!r}; there are {cameras}')
    wanted = range(meta.total_episodes) if episodes is None else list(episodes)
    for episode in wanted:
        if not 0 <= episode < meta.total_episodes:
            raise IndexError(f'{root}: episode {episode} of {meta.total_episodes}')

    # One item is a whole episode, as long as the longest; LeRobot pads the others with their last frame.
    steps = [i / meta.fps for i in range(max((meta.episodes[e]['length'] for e in wanted), default=0))]
    keys = [key for key in (VIDEO_KEY.format(camera), DEPTH_KEY.format(camera)) if key in meta.features]
    dataset = LeRobotDataset(
        root.name,
        root=root,
        video_backend='pyav',
        return_uint8=True,
        depth_output_unit='m',
        delta_timestamps=dict.fromkeys(keys, steps),
    )
    table = dataset.hf_dataset.with_format(None)  # LeRobot's own transform makes float64 float32
    for episode in wanted:
        first, end = (meta.episodes[episode][f'dataset_{edge}_index'] for edge in ('from', 'to'))
        yield _to_clip(dataset[first], table[first:end], meta, camera, episode)


def _to_clip(item: dict, rows: dict, meta, camera: str, episode: int) -> InteractionClip:
    def column(key: str) -> np.ndarray | None:
        return np.array(rows[key], dtype=meta.features[key]['dtype']) if key in rows else None

    def text(key: str) -> str:
        return rows[key][0] if key in rows else ''

    length = len(rows['timestamp'])
    frames = item[VIDEO_KEY.format(camera)][:length].permute(0, 2, 3, 1).contiguous().numpy()
    depth = item.get(DEPTH_KEY.format(camera))
    if depth is not None:
        depth = depth[:length].numpy().reshape(frames.shape[:3]).astype(np.float32)
        depth = np.where(depth > 1.01 * MIN_DEPTH, depth, 0)
    source = json.loads(text(SOURCE_KEY) or json.dumps({'dataset': meta.repo_id, 'episode': episode}))
    times = column(TIME_KEY)
    if times is not None and not np.array_equal(times, np.arange(length) / meta.fps):
        source['frame_times'] = times.tolist()
    calibration = json.loads(text(CAMERA_KEY.format(camera)) or 'null')
    if calibration:
        pose = calibration['cam_to_world']
        calibration = Camera(np.array(calibration['intrinsics']), None if pose is None else np.array(pose))
    goal = text(GOAL_KEY.format(camera))
    return InteractionClip(
        frames=frames,
        labels=np.stack([decode_masks(code) for code in rows[MASKS_KEY.format(camera)]]),
        task=item['task'],
        fps=float(meta.fps),
        goal=decode_masks(goal) if goal else None,
        actions=column('action'),
        states=column('observation.state'),
        depth=depth,
        camera=calibration,
        source=source,
    )
