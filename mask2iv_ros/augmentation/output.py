"""The dataset that augmented episodes go into: it merges with its source, and says where all is from.

Each episode is first a LeRobot dataset of its own (`write_episode`); `join` makes one of them all. What
is known of its making (its record) is stored three times, because LeRobot's tools lose each in some case:
in per-episode columns of meta/episodes (lost by delete and split), in `annotation.source` of each frame
where the source has that column (never lost, but without looks), and in the file `SIDECAR` (lost by every
tool).
"""

from __future__ import annotations

import contextlib
import copy
import errno
import fnmatch
import io
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data import lerobot as lr
from mask2iv_ros.data.episodes import EpisodeReader
from mask2iv_ros.data.lerobot_reader import LeRobotReader
from mask2iv_ros.data.transfer import whole_rate

SIDECAR = 'meta/mask2iv_augmentation.json'

MODE_KEY = 'augmentation/mode'
SOURCE_EPISODE_KEY = 'augmentation/source_episode'
VARIANT_KEY = 'augmentation/variant'
RECORD_KEY = 'augmentation/record'

#: `record['mode']` of an episode that is copied from the source.
AS_RECORDED = 'recorded'

#: Datasets that are joined by one call: LeRobot rewrites the whole file for each that is appended to it, and
#: holds all open.
JOINED_AT_ONCE = 32

#: Counts changes of how parts are written, so that no job joins what an older version left.
PARTS_VERSION = 4

#: Of a part, the columns of statistics that `join` puts back.
STATISTICS = 'meta/mask2iv_statistics.parquet'

#: Columns whose statistics LeRobot's aggregation changes.
COUNTED_ANEW = ('index', 'episode_index', 'task_index')

#: What videos of one feature have in common after a merge, of those in its 'info'; for depth also how metres
#: became what the video holds.
CODING = (
    'video.codec',
    'video.pix_fmt',
    *(f'video.{name}' for name in ('depth_min', 'depth_max', 'shift', 'use_log')),
)

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}


@dataclass(frozen=True)
class OutputFormat:
    """What the datasets of a job look like: as their source, or as `mask2iv import` would write that.

    Attributes:
        fps, robot_type: as LeRobot has them.
        features: as in meta/info.json, those that LeRobot adds included.
        video_keys: camera name -> its feature.
        depth_keys: depth features, which an episode of the same motion takes as they are.
        recorded: columns of the source's tables that it takes as they are too.
        pixel_counts: image feature -> 'count' of its statistics for each frame. LeRobot counts frames or
            pixels, depending on how it wrote; it weighs datasets in a merge.
    """

    fps: int
    robot_type: str | None
    features: dict[str, dict]
    video_keys: dict[str, str]
    depth_keys: tuple[str, ...]
    recorded: tuple[str, ...]
    pixel_counts: dict[str, float]


def output_format(
    reader: EpisodeReader,
    first: int,
    cameras: Sequence[str],
    drop: Sequence[str] = (),
    same_motion: bool = True,
) -> OutputFormat:
    """The format of what is made of `reader`'s episodes.

    Args:
        first: an episode that can be read.
        cameras: that the output has.
        drop: names, with wildcards, of features of the source that it shall not have.
        same_motion: whether the output shows the recorded motions, so that all else that was recorded holds.

    Raises:
        ValueError: `drop` names what is not there or is needed; or the source has a feature that nobody can
            fill, and `drop` is the way out.
        IncompatibleDataset: its videos are coded in a way that cannot be written here.
    """
    if not isinstance(reader, LeRobotReader):
        views = {camera: reader.read(first, [0], camera) for camera in cameras}
        clip = next(iter(views.values()))
        video_keys = {camera: lr.VIDEO_KEY.format(camera) for camera in cameras}
        features = lr.clip_features(views)
        gone = _dropped(reader.path, features, drop, video_keys.values())
        return OutputFormat(
            fps=whole_rate(reader.episode(first).fps),
            robot_type=None,
            features={key: features[key] for key in features if key not in gone} | _default_features(),
            video_keys=video_keys,
            depth_keys=(),
            recorded=(),
            pixel_counts={lr.VIDEO_KEY.format(camera): clip.frames[0, ..., 0].size for camera in cameras},
        )
    meta = reader.meta
    video_keys = {camera: reader.video_keys[camera] for camera in cameras}
    gone = _dropped(reader.path, meta.features, drop, video_keys.values())
    for camera in set(reader.video_keys) - set(cameras):
        patterns = (lr.MASKS_KEY, lr.GOAL_KEY, lr.CAMERA_KEY)
        gone += [reader.video_keys[camera], *(pattern.format(camera) for pattern in patterns)]
        gone += {lr.DEPTH_KEY.format(camera)} & {*meta.depth_keys}  # not a colour camera of that name
    features = {key: feature for key, feature in meta.features.items() if key not in gone}
    depth_keys = tuple(
        key for key in features if key in meta.depth_keys and features[key]['dtype'] == 'video'
    )
    tables = [
        key
        for key, feature in features.items()
        if feature['dtype'] not in ('video', 'image', 'language') and key not in _default_features()
    ]
    nested = [key for key in tables if len(features[key]['shape']) > 1]
    if nested:  # LeRobot 0.6.1 fails when it merges them
        raise ValueError(
            f'{reader.path}: LeRobot joins no episodes with columns of several dimensions, such as '
            f'{", ".join(nested)}; drop them (--drop)'
        )
    known = {*tables, *_default_features(), *video_keys.values(), *depth_keys}
    if same_motion:
        unknown = set(features) - known
        recorded = tuple(key for key in tables if key != lr.SOURCE_KEY)
    else:
        clips = {camera: reader.read(first, [0], camera) for camera in cameras}
        unknown = set(features) - (known - {*tables, *depth_keys}) - set(lr.clip_features(clips))
        recorded = ()
    if unknown:
        raise ValueError(
            f'{reader.path}: what {", ".join(sorted(unknown))} would be in a generated episode is unknown; '
            'drop such features (--drop), here and in the source if the two shall merge'
        )
    weights = {}
    for key in (*video_keys.values(), *depth_keys):
        count = (meta.stats or {}).get(key, {}).get('count')
        weights[key] = 1.0 if count is None else float(np.ravel(count)[0]) / max(1, meta.total_frames)
    form = OutputFormat(
        meta.fps, meta.robot_type, copy.deepcopy(features), video_keys, depth_keys, recorded, weights
    )
    _writing_options(form)
    return form


def _dropped(
    path: Path, features: Mapping[str, dict], drop: Sequence[str], generated: Iterable[str]
) -> list[str]:
    """Which of `features` the wildcards of `drop` name. LeRobot's own columns are never among them."""
    own = _default_features()
    offered = [key for key in features if key not in own]
    gone = []
    for pattern in drop:
        if pattern in own:
            raise ValueError(f'--drop: {pattern} cannot be dropped: every LeRobot dataset has it')
        found = fnmatch.filter(offered, pattern)
        if not found:
            raise ValueError(f'--drop: {path} has no {pattern}; it has {", ".join(offered)}')
        gone += found
    if needed := sorted(set(generated) & set(gone)):
        raise ValueError(f'{path}: {", ".join(needed)} cannot be dropped: it is generated')
    return gone


def _video_info(feature: dict) -> dict:
    """What is known of a feature's videos; datasets of old have it under another name."""
    return feature.get('info') or feature.get('video_info') or {}


def _writing_options(form: OutputFormat) -> dict:
    """How `LeRobotDataset.create` writes videos like those of the source.

    Raises:
        IncompatibleDataset: LeRobot has one encoder for all pictures and one for all depth, and the source
            needs several, or one that is not here.
    """
    from lerobot.configs import RGBEncoderConfig

    shared = []
    for keys in (form.video_keys.values(), form.depth_keys):
        infos = {
            key: _video_info(form.features[key]) for key in keys if form.features[key]['dtype'] == 'video'
        }
        coded = {key: {name: info[name] for name in CODING if name in info} for key, info in infos.items()}
        if any(one != other for one, other in itertools.pairwise(coded.values())):
            raise lr.IncompatibleDataset(
                f'the cameras of the source are coded differently, {coded}, which LeRobot cannot write: '
                'generate those of one kind and drop the others (--cameras, --other-cameras drop)'
            )
        shared.append(next(iter(infos.values()), {}))
    rgb, depth = shared
    try:
        encoder = RGBEncoderConfig.from_video_info(rgb) if rgb else RGBEncoderConfig(crf=lr.CRF)
        return {'rgb_encoder': encoder, **lr.writing_options(depth)}
    except ValueError as error:
        raise lr.IncompatibleDataset(f'videos like those of the source cannot be written: {error}') from error


def has_actions(features: Iterable[str]) -> bool:
    """Whether features of these names say what the robot was told to do."""
    return any(key.split('.')[0] == 'action' for key in features)


def recorded_columns(reader: EpisodeReader, index: int, form: OutputFormat) -> dict[str, list]:
    """What the variants of an episode take from it as it is, by column, as `add_frame` wants it."""
    if not (form.recorded or form.depth_keys):
        return {}
    rows = reader.rows(index, [*form.recorded, 'task_index'])
    tasks = dict(zip(reader.meta.tasks['task_index'], reader.meta.tasks.index, strict=True))
    columns = {'task': [tasks[number] for number in rows['task_index'].to_pylist()]}
    for key in form.recorded:
        values = rows[key].to_pylist()
        if (dtype := form.features[key]['dtype']) != 'string':
            values = list(np.array(values, dtype).reshape(len(values), *form.features[key]['shape']))
        columns[key] = values
    for key in form.depth_keys:
        depth = reader.depth(index, key, np.arange(len(rows)))[..., None]
        if _video_info(form.features[key]).get('depth_unit') == 'mm':
            depth = (depth * 1000).round().astype(np.uint16)
        columns[key] = list(depth)
    return columns


def write_episode(
    root: Path,
    form: OutputFormat,
    views: Mapping[str, InteractionClip],
    columns: Mapping[str, list],
    record: dict,
) -> None:
    """Write a LeRobot dataset of one episode at `root`, which must not be there.

    Args:
        views: the episode by camera; what is not the camera's own is taken from the first.
        columns: values of each frame that stand in place of what `views` says; see `recorded_columns`.
        record: how the episode was made; JSON-serialisable.

    Raises:
        IncompatibleDataset: the video encoder made something that would not merge with the source.
        OSError: also where LeRobot's encoder lost frames.
        ValueError: the episode has one frame, of which LeRobot makes no statistics; or values do not fit.
    """
    from lerobot.datasets import LeRobotDataset

    root = Path(root)
    own = {key: feature for key, feature in form.features.items() if key not in _default_features()}
    length = len(next(iter(views.values())))
    if length < 2:
        raise ValueError(f'expected at least 2 frames, got {length}')
    dataset = None
    try:
        dataset = LeRobotDataset.create(
            root.name,
            fps=form.fps,
            features=copy.deepcopy(own),
            root=root,
            robot_type=form.robot_type,
            **_writing_options(form),
        )
        lr.silence_encoders()
        for row in _rows(form, views, columns):
            dataset.add_frame({key: value for key, value in row.items() if key in own or key == 'task'})
        dataset.save_episode()
        dataset.finalize()
        _check_videos(root, form, dataset.meta, length)
        _finish_episode_table(root, record)
        (root / SIDECAR).write_text(json.dumps(record, indent=2) + '\n')
    except BaseException as error:
        code = lr.system_error(error, root)
        if dataset is not None:
            lr.abandon(dataset)
        shutil.rmtree(root, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        if code == errno.ENOSPC and not (isinstance(error, OSError) and error.errno == code):
            raise OSError(code, f'no space left on device: {error}') from error
        raise


def _rows(form: OutputFormat, views: Mapping[str, InteractionClip], columns: Mapping[str, list]) -> Iterator:
    # Coding masks takes longer than writing them, and most are the source's own.
    coded = {
        camera: replace(clip, labels=None) if lr.MASKS_KEY.format(camera) in columns else clip
        for camera, clip in views.items()
    }
    videos = {*form.video_keys.values(), *form.depth_keys}
    for i, row in enumerate(lr.clip_rows(coded)):
        for camera, key in form.video_keys.items():
            row[key] = views[camera].frames[i]
        for key, value in row.items():
            if isinstance(value, np.ndarray) and key in form.features and key not in videos:
                row[key] = _as_feature(value, form.features[key])
        for key, values in columns.items():
            row[key] = values[i]
        yield row


def _as_feature(value: np.ndarray, feature: dict) -> np.ndarray:
    """Numbers of a clip in the type and shape of the source's column."""
    dtype = np.dtype(feature['dtype'])
    if value.dtype.kind == 'f' and dtype.kind != 'f':
        value = np.rint(value)
    return value.astype(dtype).reshape(feature['shape'])


def _check_videos(root: Path, form: OutputFormat, meta, length: int) -> None:
    """LeRobot logs some encoder errors and carries on, so count frames; and see that a merge will work."""
    import av

    for key in meta.video_keys:
        for path in sorted((root / 'videos' / key).glob('**/*.mp4')):
            with av.open(str(path)) as video:
                if (frames := video.streams.video[0].frames) != length:
                    raise OSError(errno.EIO, f'{key}: {length} frames went in, {frames} arrived')
        have, want = meta.features[key]['info'], _video_info(form.features[key])
        for name in ('video.height', 'video.width', *CODING):
            if name in want and want[name] != have.get(name):
                raise lr.IncompatibleDataset(
                    f'{key}: {name} of the source is {want[name]}, the encoder here makes {have.get(name)}'
                )


def _finish_episode_table(root: Path, record: dict) -> None:
    """Add the record to the table of a one-episode dataset, and set its statistics aside for `join`.

    LeRobot has no way to write more of an episode than it knows (its issue 2999). Its statistics are some 100
    columns, and opening a table takes `datasets` a time that grows with the square of the number of columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = root.glob('meta/episodes/**/*.parquet')
    table = pq.read_table(path)
    for key, value in {
        lr.GROUP_KEY: record['split_group'],
        MODE_KEY: record['mode'],
        SOURCE_EPISODE_KEY: record['source_episode'],
        VARIANT_KEY: record['variant'],
        RECORD_KEY: json.dumps(record),
    }.items():
        table = table.append_column(key, pa.array([value] * len(table)))
    aside = [
        name
        for name in table.column_names
        if name.startswith('stats/') and name.split('/')[1] not in COUNTED_ANEW
    ]
    pq.write_table(table.select(aside), root / STATISTICS)
    pq.write_table(table.drop_columns(aside), path)


def _put_statistics_back(root: Path, parts: Sequence[Path]) -> None:
    """Give the table of a joined dataset the columns that its parts' tables did without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    statistics, first = pa.concat_tables(pq.read_table(part / STATISTICS) for part in parts), 0
    for path in sorted(root.glob('meta/episodes/**/*.parquet')):
        table = pq.read_table(path)
        rows = statistics.slice(first, len(table))
        for name in rows.column_names:
            table = table.append_column(name, rows[name])
        pq.write_table(table, path)
        first += len(rows)


def join(parts: Sequence[Path], form: OutputFormat, scratch: Path) -> Path:
    """Join datasets in their order by LeRobot's own aggregation, with features and statistics put right.

    Args:
        scratch: folder for what is made on the way, and for the result.

    Returns:
        The folder of the joined dataset, inside `scratch`.
    """
    from lerobot.datasets import aggregate_datasets

    lr.silence_encoders()
    scratch.mkdir(parents=True, exist_ok=True)
    level, depth = list(parts), 0
    with tables_cached_in(scratch / 'cache'), contextlib.redirect_stderr(io.StringIO()):  # two bars a call
        while depth == 0 or len(level) > 1:
            groups = [level[i : i + JOINED_AT_ONCE] for i in range(0, len(level), JOINED_AT_ONCE)]
            joined = [scratch / f'{depth}_{i}' for i in range(len(groups))]
            for group, target in zip(groups, joined, strict=True):
                names = [part.name for part in group]
                aggregate_datasets(names, target.name, roots=group, aggr_root=target)
                for part in group if depth else ():
                    shutil.rmtree(part)
            level, depth = joined, depth + 1
        (root,) = level
        _put_statistics_back(root, parts)
        _conform(root, form)
    return root


@contextlib.contextmanager
def tables_cached_in(folder: Path) -> Iterator[None]:
    """Where LeRobot puts a copy of each table that it opens; else in the user's cache, for ever."""
    import datasets

    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = cache
        shutil.rmtree(folder, ignore_errors=True)


def _conform(root: Path, form: OutputFormat) -> None:
    """Give the joined dataset the source's features to the letter, and right statistics.

    LeRobot's writer and its merge replace the features that they add themselves (an older dataset has "fps"
    in them) and what they know of a video; a merge wants all but the encoder's settings equal.
    """
    from lerobot.configs import VIDEO_ENCODER_INFO_KEYS
    from lerobot.datasets import LeRobotDatasetMetadata
    from lerobot.datasets.io_utils import write_info, write_stats

    meta = LeRobotDatasetMetadata(root.name, root=root)
    features = {}
    for key, feature in form.features.items():
        features[key] = copy.deepcopy(feature)
        made = meta.features[key].get('info')
        if feature['dtype'] == 'video' and 'video_info' not in feature:
            info = feature.get('info') or made
            settings = {name: made[name] for name in VIDEO_ENCODER_INFO_KEYS if name in made}
            features[key]['info'] = {**info, **settings}
    meta.info.features = features
    write_info(meta.info, root)
    write_stats(joined_stats(root, form), root)


def joined_stats(root: str | Path, form: OutputFormat) -> dict[str, dict[str, np.ndarray]]:
    """meta/stats.json of a joined dataset, over all its frames.

    Of numbers in tables: exact. Of images: mean, standard deviation and range are exact over the pixels that
    LeRobot sampled of each episode; quantiles are those of the mixture of the episodes' distributions, each
    taken as straight between its known quantiles. (LeRobot 0.6.1 takes the mean of the episodes' quantiles.)
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stats = {}
    tables = sorted(Path(root).glob('data/**/*.parquet'))
    for key, feature in form.features.items():
        if feature['dtype'] in ('string', 'language', 'video', 'image'):
            continue
        batches = (batch for path in tables for batch in pq.ParquetFile(path).iter_batches(columns=[key]))
        values = np.concatenate([_numbers(batch[key]) for batch in batches])
        values = values.reshape(-1, *feature['shape'])
        stats[key] = {
            'min': values.min(axis=0),
            'max': values.max(axis=0),
            'mean': values.mean(axis=0),
            'std': values.std(axis=0),
            'count': np.array([len(values)]),
            **dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True)),
        }
    episodes = pa.concat_tables(
        pq.read_table(path) for path in sorted(Path(root).glob('meta/episodes/**/*.parquet'))
    )
    lengths = np.array(episodes['length'].to_pylist(), np.float64)
    for key, weight in form.pixel_counts.items():
        names = ('min', *QUANTILES, 'max', 'mean', 'std')
        known = {name: np.array(episodes[f'stats/{key}/{name}'].to_pylist(), np.float64) for name in names}
        share = (lengths / lengths.sum()).reshape(-1, *[1] * (known['mean'].ndim - 1))
        mean = (known['mean'] * share).sum(axis=0)
        points = np.stack([known[name] for name in ('min', *QUANTILES, 'max')], axis=-1)
        stats[key] = {
            'min': known['min'].min(axis=0),
            'max': known['max'].max(axis=0),
            'mean': mean,
            'std': np.sqrt(((known['std'] ** 2 + (known['mean'] - mean) ** 2) * share).sum(axis=0)),
            'count': np.array([max(1, round(weight * lengths.sum()))]),
            **_mixture_quantiles(points, share.ravel()),
        }
    return stats


def _numbers(column) -> np.ndarray:
    """(N,) float64 of an arrow column of numbers, or of lists of them one after the other."""
    if hasattr(column, 'flatten'):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def _mixture_quantiles(points: np.ndarray, share: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles of a mixture, of (N, ..., 7) known points of its N parts: least, `QUANTILES`, greatest."""
    shape, flat = points.shape[1:-1], points.reshape(len(points), -1, points.shape[-1])
    levels = np.array((0, *QUANTILES.values(), 1))
    found = np.empty((len(QUANTILES), flat.shape[1]))
    for channel in range(flat.shape[1]):
        values = np.maximum.accumulate(flat[:, channel], axis=-1)
        grid = np.linspace(values.min(), values.max(), 4001)
        parts = (np.interp(grid, row, levels, left=0, right=1) for row in values)
        total = sum(weight * part for weight, part in zip(share, parts, strict=True))
        found[:, channel] = np.interp(list(QUANTILES.values()), total, grid)
    return {name: row.reshape(shape) for name, row in zip(QUANTILES, found, strict=True)}


def _default_features() -> dict[str, dict]:
    from lerobot.utils.constants import DEFAULT_FEATURES

    return copy.deepcopy(DEFAULT_FEATURES)


# --- Splits that do not leak


def safe_eval_split(tasks: Sequence[str], held_out: Iterable[bool]) -> float:
    """The greatest `--dataset.eval_split` with which LeRobot evaluates on held-out episodes alone.

    LeRobot takes the last ceil(episodes x split) episodes of each task. Held-out episodes are the last of
    their task and have no variants, so nothing of what is evaluated on was seen in training.

    Args:
        tasks: of each episode.
        held_out: of each episode.

    Returns:
        Rounded down to four digits; 0 where a task has no held-out episode.
    """
    counts: dict[str, list[int]] = {}
    for task, out in zip(tasks, held_out, strict=True):
        count = counts.setdefault(task, [0, 0])
        count[0] += 1
        count[1] += out
    split = math.floor(1e4 * min(held / total for total, held in counts.values()))
    # ceil(100 * 0.07) is 8.
    while split > 0 and any(math.ceil(total * (split / 1e4)) > held for total, held in counts.values()):
        split -= 1
    return split / 1e4


def last_groups(tasks: Iterable[str], groups: Iterable[str], fraction: float) -> set[str]:
    """The last `fraction` of each task's groups, rounded up, but never all of them.

    Args:
        tasks, groups: of each episode. A group is of the task of its first episode.
    """
    by_task: dict[str, dict[str, None]] = {}
    seen: set[str] = set()
    for task, group in zip(tasks, groups, strict=True):
        if group not in seen:
            by_task.setdefault(task, {})[group] = None
            seen.add(group)
    held = set()
    for names in map(list, by_task.values()):
        count = min(math.ceil(len(names) * fraction), len(names) - 1)
        held.update(names[len(names) - count :])
    return held


def grouped_split(root: str | Path, fraction: float) -> dict[str, list[int]]:
    """Episodes for training and validation, with each recorded demonstration and its variants on one side.

    The last `fraction` of each task's groups, rounded up, are for validation; a task of one group is for
    training alone. The result is what `lerobot.datasets.split_dataset` and `lerobot-edit-dataset
    --operation.type split` take as splits, and `lerobot-train --dataset.episodes` as episodes.

    Returns:
        {'train': episode indices, 'val': episode indices}.

    Raises:
        ValueError: `fraction` is not between 0 and 1; each task has one group, so that nothing can be held
            out; or an episode is of no group: it was merged in, or a tool of LeRobot dropped the column.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'fraction: expected a number between 0 and 1, got {fraction}')
    episodes = lr.load_metadata(root).episodes
    groups = episodes[lr.GROUP_KEY][:] if lr.GROUP_KEY in episodes.column_names else [None] * len(episodes)
    if missing := [i for i, group in enumerate(groups) if not group]:
        raise ValueError(
            f'{root}: episodes {missing[0]} to {missing[-1]} have no {lr.GROUP_KEY}; augment with '
            '--include-source TIMES instead of merging, and split before other tools of LeRobot change it'
        )
    held = last_groups([tasks[0] if tasks else '' for tasks in episodes['tasks'][:]], groups, fraction)
    if not held:
        raise ValueError(f'{root}: expected a task with two demonstrations or more, got one of each')
    sides = {'train': [], 'val': []}
    for index, group in enumerate(groups):
        sides['val' if group in held else 'train'].append(index)
    return sides
