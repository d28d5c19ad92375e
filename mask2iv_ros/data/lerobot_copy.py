"""A copy of a LeRobot v3 dataset with text columns added, and all else as it is: videos to the bit.

LeRobot's own `add_features` takes every table through pandas as a whole, and writes the features that it adds
itself anew (older datasets have "fps" in them), after which a merge with what was recorded is refused.
"""

from __future__ import annotations

import bisect
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.data.episodes import BadEpisode
from mask2iv_ros.data.lerobot_reader import LeRobotReader

TEXT = {'dtype': 'string', 'shape': [1], 'names': None}  #: the feature of a text column in meta/info.json

#: What of the statistics of 'index' and 'episode_index' moves with them.
MOVING = ('min', 'max', 'mean', 'q01', 'q10', 'q50', 'q90', 'q99')


def copy_with_texts(
    reader: LeRobotReader,
    root: Path,
    episodes: Sequence[int],
    texts: Callable[[int], Mapping[str, Sequence[str]]],
) -> None:
    """Copy a dataset, with text columns added or replaced. Tables are held one row group at a time.

    Args:
        root: new folder.
        episodes: which to copy, ascending, at least one. Those that follow a left-out one move up; its frames
            stay in the video files, where nothing points at them.
        texts: of an episode of the source, one text a frame by column; always the same columns.

    Raises:
        BadEpisode: a table is damaged.
        OSError: as reading and writing raise; then `root` is incomplete.
    """
    import pyarrow as pa

    _copy_files(reader.path, root)
    lengths = reader.meta.episodes['length'][:]
    known = reader.meta.episodes['dataset_from_index'][:]
    starts = [0, *accumulate(lengths[index] for index in episodes)]
    #: index -> how far the numbers of its episode and its frames move up
    shifts = {index: (index - new, known[index] - starts[new]) for new, index in enumerate(episodes)}
    for path in tqdm(dict.fromkeys(map(reader.table_path, episodes)), desc=f'{root.name}: tables'):
        target = root / path.relative_to(reader.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy_table(path, target, shifts, texts)
        except pa.ArrowException as error:
            raise BadEpisode(f'{path}: {error}') from error
    info = json.loads((root / 'meta/info.json').read_text())
    info['features'] |= dict.fromkeys(texts(episodes[0]), TEXT)
    if len(episodes) < len(reader):
        _leave_out(root, shifts)
        info |= {'total_episodes': len(episodes), 'total_frames': int(starts[-1])}
        for name, ends in (info.get('splits') or {}).items():
            ends = (bisect.bisect_left(episodes, int(end)) for end in ends.split(':'))
            info['splits'][name] = ':'.join(map(str, ends))
    (root / 'meta/info.json').write_text(json.dumps(info, indent=4, ensure_ascii=False))


def _copy_files(source: Path, root: Path) -> None:
    """Copy all but the tables of frames; what was read-only or a link becomes a plain file."""
    paths = []
    for parent, folders, names in os.walk(source, followlinks=True):
        if Path(parent) == source:  # hidden: what Git and the Hub's tools know of the source's own files
            folders[:] = [name for name in folders if name != 'data' and not name.startswith('.')]
        paths += [Path(parent, name) for name in names]
    for path in tqdm(sorted(paths), desc=f'{root.name}: other files'):
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _copy_table(
    path: Path,
    target: Path,
    shifts: Mapping[int, tuple[int, int]],
    texts: Callable[[int], Mapping[str, Sequence[str]]],
) -> None:
    """Copy a file of data/; each episode becomes a row group, as LeRobot writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, use_threads=False)
                owners = rows['episode_index'].to_numpy()
                edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(rows)]
                for start, stop in pairwise(edges):
                    if stop == start or int(owners[start]) not in shifts:
                        continue
                    index = int(owners[start])
                    part = rows.slice(start, stop - start)
                    for key, shift in zip(('episode_index', 'index'), shifts[index], strict=True):
                        moved = part[key].to_numpy() - shift
                        part = _with_column(part, key, pa.array(moved, part.schema.field(key).type))
                    frames = part['frame_index'].to_pylist()
                    for key, values in texts(index).items():
                        part = _with_column(part, key, pa.array([values[i] for i in frames], pa.string()))
                    if writer is None:
                        writer = pq.ParquetWriter(target, _with_features(part.schema))
                    writer.write_table(part, row_group_size=len(part))
    finally:
        if writer is not None:
            writer.close()


def _with_column(table, name: str, values):
    place = table.schema.get_field_index(name)
    return table.append_column(name, values) if place < 0 else table.set_column(place, name, values)


def _with_features(schema):
    """Let what `datasets` says of the columns of a file be true of the added ones too."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema).arrow_schema.metadata
    return schema.with_metadata({**(schema.metadata or {}), **features})


def _leave_out(root: Path, shifts: Mapping[int, tuple[int, int]]) -> None:
    """Reduce meta/episodes and meta/stats.json of a copy to the episodes that are in `shifts`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from lerobot.datasets import aggregate_stats
    from lerobot.datasets.io_utils import load_stats, write_stats

    statistics: list[dict[str, dict]] = []
    for path in sorted(root.glob('meta/episodes/**/*.parquet')):
        table = pq.read_table(path)
        table = table.filter(pc.is_in(table['episode_index'], pa.array(list(shifts))))
        moved = np.array([shifts[index] for index in table['episode_index'].to_pylist()]).reshape(-1, 2)
        columns = {'episode_index': moved[:, 0]}
        columns |= dict.fromkeys(('dataset_from_index', 'dataset_to_index'), moved[:, 1])
        for name, shift in (('episode_index', moved[:, 0]), ('index', moved[:, 1])):
            columns |= dict.fromkeys((f'stats/{name}/{statistic}' for statistic in MOVING), shift)
        for key, shift in columns.items():
            if key in table.column_names:
                values = [
                    np.subtract(*pair).tolist() for pair in zip(table[key].to_pylist(), shift, strict=True)
                ]
                table = _with_column(table, key, pa.array(values, table.schema.field(key).type))
        if not len(table):
            path.unlink()
            continue
        pq.write_table(table, path)
        for row in table.select([key for key in table.column_names if key.startswith('stats/')]).to_pylist():
            statistics.append({})
            for key, value in row.items():
                _, feature, statistic = key.split('/')
                if value is not None:
                    statistics[-1].setdefault(feature, {})[statistic] = np.array(value)
    if any(statistics):
        write_stats({**(load_stats(root) or {}), **aggregate_stats(statistics)}, root)
