"""Reads any local LeRobot v3 dataset, with or without masks, one episode and only the asked frames at a time.

`LeRobotDataset` loads, checks and indexes a whole dataset before its first frame; a damaged file anywhere
makes it unreadable, and asking for some frames of an episode means a new object. So tables are read here by
episode with pyarrow, and videos through LeRobot's own decoder.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import Camera, InteractionClip
from mask2iv_ros.data import lerobot as lr
from mask2iv_ros.data.episodes import BadEpisode, Episode, EpisodeReader, UnknownLayout, files_id

#: Frames. LeRobot's decoder decodes all from the first to the last that it is asked for, so wanted frames
#: that lie farther apart are asked for one by one; below it, decoding is cheaper than opening the file again.
MAX_DECODED_GAP = 8


class LeRobotReader(EpisodeReader):
    """Episodes of the LeRobot v3 dataset at `path`.

    A camera is named as its feature without 'observation.images.'. Actions and states are the columns
    'action' and 'observation.state'; what `LeRobotClipWriter` writes beside them is read where it is there.

    Attributes:
        meta: LeRobot's metadata of the dataset.
        video_keys: camera name -> its feature.

    Raises:
        FileNotFoundError, IncompatibleDataset: as `mask2iv_ros.data.lerobot.load_metadata`.
        UnknownLayout: the dataset has no camera.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.meta = lr.load_metadata(self.path)
        features = self.meta.features
        prefix = lr.VIDEO_KEY.format('')
        keys = [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]
        if not keys:
            raise UnknownLayout(f'{self.path}: no camera; features are {", ".join(features)}')
        self.video_keys = {key.removeprefix(prefix): key for key in keys}
        masked = [camera for camera in self.video_keys if lr.MASKS_KEY.format(camera) in features]
        self._masked = tuple(masked)
        self._cameras = (*masked, *(camera for camera in self.video_keys if camera not in masked))
        columns = ['length', 'tasks', 'data/chunk_index', 'data/file_index']
        for key in self.meta.video_keys:
            columns += [f'videos/{key}/{name}' for name in ('chunk_index', 'file_index', 'from_timestamp')]
        table = self.meta.episodes.select_columns(columns).with_format(None)
        self._episodes = {column: table[column][:] for column in columns}
        self._table: tuple[Path, object, list] | None = None  # the file that was read last, open

    def __len__(self) -> int:
        return len(self._episodes['length'])

    def _row(self, index: int) -> dict:
        """What the dataset tells of an episode."""
        return {column: values[index] for column, values in self._episodes.items()}

    def episode(self, index: int) -> Episode:
        row = self._row(index)
        return Episode(
            name=f'episode_{index:06d}',
            length=int(row['length']),
            fps=float(self.meta.fps),
            task=row['tasks'][0] if len(row['tasks']) else '',
            cameras=self._cameras,
            masked=self._masked,
        )

    def source(self, index: int) -> dict:
        """Provenance that was written with the episode, {} if none, without decoding a video."""
        if lr.SOURCE_KEY not in self.meta.features:
            return {}
        texts = self.rows(index, [lr.SOURCE_KEY])[lr.SOURCE_KEY]
        return json.loads(texts[0].as_py() or '{}')

    def split_group(self, index: int) -> str:
        """See `EpisodeReader`: lost where what was augmented was merged with what was not."""
        if lr.GROUP_KEY in self.meta.episodes.column_names:
            return self.meta.episodes[lr.GROUP_KEY][index] or ''
        if group := self.source(index).get('augmentation', {}).get(lr.GROUP_KEY):
            return group
        return super().split_group(index)

    def _read(self, index: int, episode: Episode, frames: np.ndarray, camera: str) -> InteractionClip:
        video_key, depth_key = self.video_keys[camera], lr.DEPTH_KEY.format(camera)
        masks_key, goal_key, camera_key = (
            key.format(camera) for key in (lr.MASKS_KEY, lr.GOAL_KEY, lr.CAMERA_KEY)
        )
        wanted = [masks_key, goal_key, camera_key, 'action', 'observation.state', lr.SOURCE_KEY]
        wanted += [lr.GOAL_POINT_KEY, lr.CONTACT_KEY, lr.TIME_KEY]
        if video_key in self.meta.image_keys:
            wanted.append(video_key)
        rows = self.rows(index, [key for key in wanted if key in self.meta.features])
        if len(rows) != episode.length:
            raise BadEpisode(
                f'{self.table_path(index)}: episode {index}: expected {episode.length} rows, got {len(rows)}'
            )
        if not np.array_equal(frames, np.arange(episode.length)):
            rows = rows.take(frames)

        def array(key: str) -> np.ndarray | None:
            if key not in rows.column_names:
                return None
            dtype = self.meta.features[key]['dtype']
            values = np.array(rows[key].to_pylist(), dtype=dtype)
            return values.reshape(len(frames), -1)

        def text(key: str) -> str:
            return (rows[key][0].as_py() if key in rows.column_names else '') or ''

        if video_key in self.meta.image_keys:
            images = np.stack([_picture(row.as_py()) for row in rows[video_key]])
        else:
            images = self._decode(index, video_key, frames)
        labels = self._labels(index, rows, masks_key, frames, images.shape[1:3])
        source = json.loads(text(lr.SOURCE_KEY) or '{}')
        times = array(lr.TIME_KEY)
        if times is not None and not np.array_equal(times[:, 0], frames / self.meta.fps):
            source['frame_times'] = times[:, 0].tolist()
        contact, goal, point = array(lr.CONTACT_KEY), text(goal_key), text(lr.GOAL_POINT_KEY)
        calibration = json.loads(text(camera_key) or 'null')
        has_depth = self.with_depth and depth_key in {*self.meta.depth_keys} & {*self.meta.video_keys}
        if calibration:
            pose = calibration['cam_to_world']
            calibration = Camera(
                np.array(calibration['intrinsics']), None if pose is None else np.array(pose)
            )
        return InteractionClip(
            frames=images,
            labels=labels,
            task=episode.task,
            goal=lr.decode_masks([goal])[0] if goal else None,
            goal_point=np.array(json.loads(point)) if point else None,
            contact=None if contact is None or (contact < 0).any() else contact[:, 0] > 0,
            actions=array('action'),
            states=array('observation.state'),
            depth=self.depth(index, depth_key, frames) if has_depth else None,
            camera=calibration,
            source=source,
        )

    def table_path(self, index: int) -> Path:
        """The file that has the rows of an episode."""
        row = self._row(index)
        return self.path / self.meta.data_path.format(
            chunk_index=row['data/chunk_index'], file_index=row['data/file_index']
        )

    def _video_path(self, index: int, key: str) -> Path:
        row = self._row(index)
        return self.path / self.meta.video_path.format(
            video_key=key,
            chunk_index=row[f'videos/{key}/chunk_index'],
            file_index=row[f'videos/{key}/file_index'],
        )

    def identity(self, index: int, camera: str) -> dict:
        """What changes where the frames of a camera in an episode do; JSON-serialisable."""
        key, paths = self.video_keys[camera], [self.table_path(index)]
        if key in self.meta.video_keys:
            paths.append(self._video_path(index, key))
        return {'row': self._row(index), 'files': [files_id(path) for path in paths]}

    def rows(self, index: int, columns: list[str]):
        """pyarrow table of an episode's rows, in order; BadEpisode if its file is damaged."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = self.table_path(index)
        try:
            if self._table is None or self._table[0] != path:
                file = pq.ParquetFile(path, memory_map=True)
                self._table = path, file, _episode_ranges(file)
            _, file, ranges = self._table
            groups = [group for group, (low, high) in enumerate(ranges) if low <= index <= high]
            rows = file.read_row_groups(groups, columns=[*columns, 'episode_index'], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            self._table = None
            raise BadEpisode(f'{path}: episode {index}: {error}') from error
        return rows.filter(pc.equal(rows['episode_index'], index))

    def _labels(self, index: int, rows, key: str, frames: np.ndarray, size: tuple) -> np.ndarray | None:
        if key not in rows.column_names:
            return None
        codes = rows[key].to_pylist()
        with contextlib.suppress(Exception):
            labels = lr.decode_masks(codes)
            if labels.shape[1:] == size:
                return labels
        for frame, code in zip(frames, codes, strict=True):  # to name the first bad one
            place = f'{self.table_path(index)}: episode {index}: frame {frame}: {key}'
            try:
                (image,) = lr.decode_masks([code])
            except Exception as error:
                raise BadEpisode(f'{place}: not a mask code ({error!r})') from error
            if image.shape != size:
                raise BadEpisode(f'{place}: expected frame size {size}, got {image.shape}')
        raise AssertionError(f'{self.table_path(index)}: episode {index}: masks are bad together only')

    def depth(self, index: int, key: str, frames: np.ndarray) -> np.ndarray:
        """(N, H, W) float32 metres, 0 where invalid, of an episode's depth video `key`."""
        from lerobot.configs.video import DepthEncoderConfig
        from lerobot.datasets.depth_utils import dequantize_depth

        how = DepthEncoderConfig.from_video_info(self.meta.features[key].get('info'))
        depth = dequantize_depth(
            self._decode(index, key, frames)[:, None],
            depth_min=how.depth_min,
            depth_max=how.depth_max,
            shift=how.shift,
            use_log=how.use_log,
            output_unit='m',
            output_tensor=False,
        )
        depth = np.asarray(depth, dtype=np.float32)[:, 0]
        return np.where(depth > 1.01 * lr.MIN_DEPTH, depth, 0)

    def _decode(self, index: int, key: str, frames: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 colours, or (N, H, W) uint16 codes of a depth video."""
        from lerobot.datasets.video_utils import decode_video_frames

        row, path = self._row(index), self._video_path(index, key)
        depth = key in self.meta.depth_keys
        order, place = np.unique(frames, return_inverse=True)
        runs = np.split(order, np.flatnonzero(np.diff(order) > MAX_DECODED_GAP) + 1)
        decoded = []
        for run in runs:
            start = float(row[f'videos/{key}/from_timestamp'])
            times = [start + float(frame) / self.meta.fps for frame in run]
            try:
                # pyav, because torchcodec needs FFmpeg libraries of the system, and says so at length
                images = decode_video_frames(
                    path, times, 0.4 / self.meta.fps, 'pyav', return_uint8=True, is_depth=depth
                )
            except Exception as error:
                message = str(error).strip().split('\n')[0] or repr(error)
                raise BadEpisode(
                    f'{path}: episode {index}: frames {run[0]} to {run[-1]}: {message}'
                ) from error
            decoded.append(images[:, 0].numpy() if depth else images.permute(0, 2, 3, 1).numpy())
        images = decoded[0] if len(decoded) == 1 else np.concatenate(decoded)
        return images if np.array_equal(order, frames) else images[place]


def _episode_ranges(file) -> list[tuple[float, float]]:
    """First and last episode in each row group; LeRobot writes one group an episode, others larger ones."""
    column = file.schema_arrow.get_field_index('episode_index')
    ranges = []
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(column).statistics
        is_known = known is not None and known.has_min_max
        ranges.append((known.min, known.max) if is_known else (-np.inf, np.inf))
    return ranges


def _picture(value: dict) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(value['bytes'])).convert('RGB'))
