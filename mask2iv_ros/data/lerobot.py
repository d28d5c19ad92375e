"""LeRobot v3 datasets: how an `InteractionClip` is written and appended. `lerobot_reader` reads it back.

Everything goes through LeRobot's own API. What LeRobot has no place for lives in per-frame `annotation.*`
columns, because only those survive its merge, split and delete tools, and because policies take every
`observation.*`, `action` and video column as input but leave these alone:

* `annotation.masks.<camera>`: JSON, one COCO run-length code a label name; lossless, unlike any video. There
  only if the clip has masks.
* `annotation.goal.<camera>`: the same for the goal image, '' where there is none.
* `annotation.camera.<camera>`: JSON intrinsics and pose, '' where unknown.
* `annotation.goal_point`: JSON x, y, z in metres, '' where unknown.
* `annotation.contact`: 1 where the actor touches the object, 0 where not, -1 where unknown.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.labels import BACKGROUND, LABEL_NAMES

VIDEO_KEY = 'observation.images.{}'
DEPTH_KEY = 'observation.images.{}_depth'
MASKS_KEY = 'annotation.masks.{}'
GOAL_KEY = 'annotation.goal.{}'
CAMERA_KEY = 'annotation.camera.{}'
GOAL_POINT_KEY = 'annotation.goal_point'
CONTACT_KEY = 'annotation.contact'
TIME_KEY = 'annotation.frame_time'
SOURCE_KEY = 'annotation.source'
GROUP_KEY = 'split_group'  #: of an episode: see `EpisodeReader.split_group`

MIN_SIDE = 32  #: pixels; the AV1 encoder kills the process on smaller pictures
CRF = 18  #: video quality; LeRobot's 30 blurs fingers and thin tools
#: Metres; LeRobot's depth codec stores nothing nearer, so invalid depth (0) comes back as this.
MIN_DEPTH = 0.01


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


def decode_masks(texts: Sequence[str]) -> np.ndarray:
    """(N, H, W) uint8 label images of N texts of one size that `encode_masks` wrote.

    Raises:
        ValueError, KeyError, TypeError: a text is damaged, or of another size than the first.
    """
    from pycocotools import mask as coco

    codes = [json.loads(text) for text in texts]
    height, width = codes[0]['size']
    if other := next((code['size'] for code in codes if code['size'] != [height, width]), None):
        raise ValueError(f'expected masks of size {[height, width]}, got {other}')
    found = [
        (i, label) for i, code in enumerate(codes) for label, name in LABEL_NAMES.items() if name in code
    ]
    # RLE runs down the columns: what is decoded, and painted here, is (W, H).
    labels = np.zeros((len(texts), width, height), dtype=np.uint8)
    if found:
        counts = [{'size': [height, width], 'counts': codes[i][LABEL_NAMES[label]]} for i, label in found]
        for (i, label), mask in zip(found, coco.decode(counts).T, strict=True):
            np.maximum(labels[i], mask * np.uint8(label), out=labels[i])
    return np.ascontiguousarray(labels.transpose(0, 2, 1))


def clip_features(views: Mapping[str, InteractionClip], depth: bool = False) -> dict[str, dict]:
    """LeRobot features of an episode seen by `views` (camera name -> clip).

    State, action and masks are there only if the clips have them. IncompatibleDataset for small frames.
    """
    features = {}
    axes = ['height', 'width', 'channels']
    for camera, clip in views.items():
        if min(clip.frames.shape[1:3]) < MIN_SIDE:
            height, width = clip.frames.shape[1:3]
            raise IncompatibleDataset(
                f'{camera}: expected frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, got {width}x{height}'
            )
    text = {'dtype': 'string', 'shape': (1,), 'names': None}
    for camera, clip in views.items():
        height, width = clip.frames.shape[1:3]
        features[VIDEO_KEY.format(camera)] = {'dtype': 'video', 'shape': (height, width, 3), 'names': axes}
        if depth:
            info = {'is_depth_map': True}
            features[DEPTH_KEY.format(camera)] = {
                'dtype': 'video', 'shape': (height, width, 1), 'names': axes, 'info': info
            }  # fmt: skip
        if clip.labels is not None:
            features[MASKS_KEY.format(camera)] = text
        features |= dict.fromkeys((GOAL_KEY.format(camera), CAMERA_KEY.format(camera)), text)
    for key, values in (('observation.state', clip.states), ('action', clip.actions)):
        if values is not None:
            features[key] = {'dtype': 'float32', 'shape': (values.shape[1],), 'names': None}
    features |= {
        SOURCE_KEY: text,
        GOAL_POINT_KEY: text,
        CONTACT_KEY: {'dtype': 'int8', 'shape': (1,), 'names': None},
        TIME_KEY: {'dtype': 'float64', 'shape': (1,), 'names': None},
    }
    return features


def clip_rows(views: Mapping[str, InteractionClip], depth: bool = False) -> Iterator[dict]:
    """The frames of an episode as LeRobot's `add_frame` takes them."""
    shared = next(iter(views.values()))
    times = shared.source.get('frame_times', np.arange(len(shared)) / shared.fps)
    contact = np.full(len(shared), -1) if shared.contact is None else shared.contact
    point = shared.goal_point
    episode = {
        SOURCE_KEY: json.dumps({key: value for key, value in shared.source.items() if key != 'frame_times'}),
        GOAL_POINT_KEY: '' if point is None else json.dumps(np.asarray(point, dtype=float).tolist()),
        'task': shared.task,
    }
    for camera, clip in views.items():
        episode[GOAL_KEY.format(camera)] = '' if clip.goal is None else encode_masks(clip.goal)
        episode[CAMERA_KEY.format(camera)] = _encode_camera(clip.camera)
    for i in range(len(shared)):
        row = {
            **episode,
            CONTACT_KEY: np.array([contact[i]], dtype=np.int8),
            TIME_KEY: np.array([times[i]], dtype=np.float64),
        }
        for camera, clip in views.items():
            row[VIDEO_KEY.format(camera)] = clip.frames[i]
            if clip.labels is not None:
                row[MASKS_KEY.format(camera)] = encode_masks(clip.labels[i])
            if depth:
                row[DEPTH_KEY.format(camera)] = clip.depth[i, :, :, None]
        if shared.states is not None:
            row['observation.state'] = shared.states[i].astype(np.float32)
        if shared.actions is not None:
            row['action'] = shared.actions[i].astype(np.float32)
        yield row


def _encode_camera(camera: Camera | None) -> str:
    if camera is None:
        return ''
    pose = camera.cam_to_world
    return json.dumps(
        {
            'intrinsics': np.asarray(camera.intrinsics).tolist(),
            'cam_to_world': None if pose is None else np.asarray(pose).tolist(),
        }
    )


def is_filled(folder: Path) -> bool:
    """Whether there is something in it; an empty folder is as good as none."""
    return folder.exists() and any(folder.iterdir())


@contextlib.contextmanager
def locked(file: Path, told: str) -> Iterator[None]:
    """Hold the lock `file`. Raises BlockingIOError 'another process `told`' if another process does."""
    with open(file, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f'another process {told}') from None
        yield


class LeRobotClipWriter:
    """Writes clips as episodes of the dataset at `root`; appends if there is one.

    Use it as a context manager: leaving it normally commits. `commit` makes all episodes added so far part of
    the dataset at once; before that, and after any error or kill, the dataset is what it was. One writer a
    dataset at a time.

    Args:
        root: directory of the dataset; its siblings `.<name>.*` are used while writing.
        camera: name of the video, mask, goal and calibration columns of a clip that is given alone.
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
        self.root = Path(root).resolve()  # a link stays a link, and what it leads to is replaced
        self.camera, self.depth, self.robot_type = camera, depth, robot_type
        self._staging = self._sibling('staging')
        self._dataset, self._checked = None, False
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()  # until `close`
        self._lock.enter_context(locked(self._sibling('lock'), f'is writing {self.root}'))
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

    def add(self, clip: InteractionClip | Mapping[str, InteractionClip]) -> int:
        """Stage one episode; returns its index. An error drops all that was not committed.

        Args:
            clip: the clip of the one camera, or {camera: clip} of several that saw the same episode. What is
                not the camera's own (task, actions, states, contact, source) is taken from the first.
        """
        views = clip if isinstance(clip, Mapping) else {self.camera: clip}
        for camera, view in views.items():
            if self.depth and view.depth is None:
                raise ValueError(f'{camera}: expected depth, because this writer stores it; got None')
        lengths = {camera: len(view) for camera, view in views.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'expected cameras with equally many frames, got {lengths}')
        with self._discarding():
            if self._dataset is None:
                self._open(views)
            else:
                self._check(views)
            for row in clip_rows(views, self.depth):
                self._dataset.add_frame(row)
            self._dataset.save_episode()
            self._staged_frames += next(iter(lengths.values()))
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

    def _open(self, views: Mapping[str, InteractionClip]):
        from lerobot.configs import RGBEncoderConfig
        from lerobot.datasets import LeRobotDataset

        self._staged_frames = 0
        if is_filled(self.root):
            meta = load_metadata(self.root)
            self._check(views, meta)
            if not self._checked:
                check_files(meta)
            self._checked = True
            encoder = RGBEncoderConfig.from_video_info(
                meta.features[VIDEO_KEY.format(next(iter(views)))].get('info')
            )
            self._old_videos = set(self.root.glob('videos/**/*.mp4'))
            shutil.copytree(self.root, self._staging, copy_function=self._link_or_copy)
            depth_info = next((meta.features[key].get('info') for key in meta.depth_keys), None)
            self._dataset = LeRobotDataset.resume(
                self.root.name, root=self._staging, rgb_encoder=encoder, **writing_options(depth_info)
            )
        else:
            rate = next(iter(views.values())).fps
            fps = round(rate)
            if fps != rate:
                raise ValueError(f'clip.fps: LeRobot stores whole frames a second, got {rate}')
            self._old_videos = set()
            self._dataset = LeRobotDataset.create(
                self.root.name,
                fps=fps,
                features=clip_features(views, self.depth),
                root=self._staging,
                robot_type=self.robot_type,
                rgb_encoder=RGBEncoderConfig(crf=CRF),
                **writing_options(),
            )
        silence_encoders()

    def _link_or_copy(self, source: str, target: str):
        # LeRobot appends into new video and table files, but rewrites meta/*.json in place.
        if Path(source).relative_to(self.root).parts[0] in ('data', 'videos'):
            with contextlib.suppress(OSError):  # a file system without hard links
                return os.link(source, target)
        return shutil.copy2(source, target)

    def _check(self, views: Mapping[str, InteractionClip], meta=None):
        from lerobot.utils.constants import DEFAULT_FEATURES

        meta = meta or self._dataset.meta

        def comparable(features: dict) -> dict:
            return {
                key: (feature['dtype'], tuple(feature['shape']))
                for key, feature in features.items()
                if key not in DEFAULT_FEATURES
            }

        have = comparable(meta.features)
        want = comparable(clip_features(views, self.depth))
        problems = [f'{key}: dataset {have.get(key)}, clip {want.get(key)}' for key in sorted(have | want)
                    if have.get(key) != want.get(key)]  # fmt: skip
        problems += [
            f'fps: dataset {meta.fps}, clip {clip.fps}' for clip in views.values() if clip.fps != meta.fps
        ]
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
            code = system_error(error, self._staging)
            self._discard()
            if not isinstance(error, Exception) or isinstance(error, IncompatibleDataset):
                raise
            if code:
                raise OSError(code, f'{os.strerror(code)} (what was committed stays): {error}') from error
            raise

    def _discard(self):
        if self._dataset is not None:
            abandon(self._dataset)
            self._dataset = None
        self._recover()


def writing_options(depth_info: Mapping | None = None) -> dict:
    """How `LeRobotDataset.create` and `resume` write a dataset episode by episode.

    Args:
        depth_info: 'info' of the depth features that are there already: how metres became what a video holds.
    """
    from lerobot.configs import DepthEncoderConfig

    depth_encoder = DepthEncoderConfig.from_video_info(depth_info)
    options = depth_encoder.extra_options
    if 'x265-params' in options and 'log-level' not in options['x265-params']:  # ten lines a video
        depth_encoder.extra_options = {**options, 'x265-params': f'{options["x265-params"]}:log-level=none'}
    return {
        'video_backend': 'pyav',
        'streaming_encoding': True,
        'encoder_queue_maxsize': 0,  # no limit: LeRobot drops frames that its encoder is too slow for
        'depth_encoder': depth_encoder,
    }


def silence_encoders() -> None:
    """Call it after a dataset was opened for writing: LeRobot's loading code switches the bars on again."""
    import av
    import datasets

    datasets.disable_progress_bars()  # one bar an episode
    av.logging.set_libav_level(av.logging.ERROR)  # lines of the mp4 writer ...
    os.environ.setdefault('SVT_LOG', '1')  # ... and twenty an episode of the AV1 encoder


def abandon(dataset) -> None:
    """Stop a `LeRobotDataset` that is being written, such that nothing of it is written later."""
    with contextlib.suppress(Exception):
        dataset.writer.cancel_pending_videos()
    dataset.writer._finalized = dataset.meta._finalized = True  # else their __del__ writes files again


def system_error(error: BaseException | None, written: Path | None = None) -> int | None:
    """The errno behind an exception: PyAV, datasets and LeRobot's encoder threads wrap it in their own.

    Args:
        written: folder that was being written. If its disk is full that is the error: encoders do not say so.

    Returns:
        ENOSPC for a full quota too, and wherever in the chain it is; else the outermost; None without any.
    """
    if written is not None and written.exists() and shutil.disk_usage(written).free < 1 << 16:
        return errno.ENOSPC
    numbers = []
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            numbers.append(error.errno)
        elif found := re.search(r'\[Errno (\d+)\]', str(error)):
            numbers.append(int(found[1]))
        elif 'Not enough disk space' in str(error):  # datasets gives no number
            numbers.append(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    if {errno.ENOSPC, errno.EDQUOT} & set(numbers):
        return errno.ENOSPC
    return numbers[0] if numbers else None


def load_metadata(root: str | Path):
    """`LeRobotDatasetMetadata` of a local dataset.

    Raises:
        FileNotFoundError: `root` is not there.
        IncompatibleDataset: `root` is not a complete LeRobot v3 dataset. (LeRobot itself would ask the Hub.)
            For an older version, the message has the command that converts it.
    """
    from lerobot.datasets import LeRobotDatasetMetadata

    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'no such dataset', str(root))
    info = root / 'meta/info.json'
    try:
        version = json.loads(info.read_text())['codebase_version'] if info.is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise IncompatibleDataset(f'{info}: damaged ({error!r})') from error
    if version and not version.startswith('v3'):
        raise IncompatibleDataset(
            f'{root}: LeRobot dataset of version {version}, expected v3.0; convert it in place with: '
            f'python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={root.name} --root={root} '
            '--push-to-hub=false'
        )
    if not version or not any(root.glob('meta/episodes/**/*.parquet')):
        raise IncompatibleDataset(
            f'{root}: not a complete LeRobot v3 dataset (no meta/info.json or meta/episodes)'
        )
    try:
        return LeRobotDatasetMetadata(root.name, root=root)
    except Exception as error:
        raise IncompatibleDataset(f'{root}/meta: damaged ({error!r})') from error


def check_files(meta) -> None:
    """IncompatibleDataset if a table or video of the dataset is missing or cannot be opened."""
    import av
    import pyarrow.parquet as pq

    files = [('data', meta.data_path, pq.ParquetFile)]
    files += [
        (f'videos/{key}', meta.video_path.replace('{video_key}', key), av.open) for key in meta.video_keys
    ]
    paths = {}
    for prefix, pattern, opened in files:
        columns = [f'{prefix}/chunk_index', f'{prefix}/file_index']
        numbers = meta.episodes.select_columns(columns).to_pandas().drop_duplicates()
        for chunk, file in numbers.itertuples(index=False):
            paths[meta.root / pattern.format(chunk_index=chunk, file_index=file)] = opened
    for path, opened in paths.items():
        try:
            opened(str(path)).close()
        except Exception as error:
            raise IncompatibleDataset(f'{path}: missing or damaged ({error})') from error
