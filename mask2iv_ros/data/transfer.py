"""`mask2iv import`: any dataset that a reader knows, with or without masks, becomes a LeRobot v3 dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mask2iv_ros.clip import InteractionClip
from mask2iv_ros.data.episodes import BadEpisode, EpisodeReader
from mask2iv_ros.data.lerobot import LeRobotClipWriter, is_filled
from mask2iv_ros.data.lerobot_reader import LeRobotReader

COMMIT_EVERY = 16  #: episodes; a killed run loses no more

#: Key of `InteractionClip.source` that says which episode of which dataset was copied.
ORIGIN = 'copied_from'


def whole_rate(fps: float) -> int:
    """The rate that LeRobot can store, in whole frames a second, for episodes of rate `fps`."""
    return max(1, round(fps))


def set_rate(clip: InteractionClip, fps: int) -> None:
    """Give a clip the dataset's rate; where it had another, its true times are kept in `source`."""
    if clip.fps != fps:
        clip.source.setdefault('frame_times', (np.arange(len(clip)) / clip.fps).tolist())
        clip.fps = float(fps)


def check_origin(out: Path, made: Mapping, wanted: Mapping) -> None:
    """ValueError if the copy `out` is of another 'dataset', or was made with other 'options', than wanted."""
    if made.get('dataset') != wanted['dataset']:
        found = f'one of {made["dataset"]}' if 'dataset' in made else 'something else'
        raise ValueError(f'{out}: expected a copy of {wanted["dataset"]}, found {found}')
    had, now = made.get('options', {}), wanted['options']
    if differing := sorted(key for key in now | had if now.get(key) != had.get(key)):
        had, now = ({key: values.get(key) for key in differing} for values in (had, now))
        raise ValueError(
            f'{out}: was made with other options, {had}, not {now}; repeat those, or write elsewhere'
        )


def check_order(out: Path, last: Mapping, reader: EpisodeReader) -> None:
    """ValueError if the episode that was copied last is not where it was: sources grow at their end."""
    if 'episode' not in last:  # a copy from before names were kept
        return
    place, there = last['index'], None
    if place < len(reader):
        there = reader.episode(place).name
    if there != last['episode']:
        raise ValueError(
            f'{out}: its last episode is {last["episode"]!r}, episode {place} of {reader.path}, which is now '
            f'{"missing" if there is None else repr(there)}; to go on, the source may only have more '
            'episodes at its end. Write elsewhere'
        )


def copy_episodes(
    reader: EpisodeReader,
    out: str | Path,
    cameras: Sequence[str] | None = None,
    depth: bool = False,
    task: str | None = None,
    change: Callable[[int, dict[str, InteractionClip]], dict[str, InteractionClip] | None] | None = None,
    skipped: list[BadEpisode] | None = None,
    options: Mapping[str, object] | None = None,
) -> int:
    """Write every episode of `reader`, whole, to the LeRobot dataset `out`; a stopped copy is continued.

    LeRobot has one whole number of frames a second for all episodes: that of the first, rounded. For others,
    the true time of each frame is kept in the column `annotation.frame_time`.

    Args:
        cameras: names; None for all that the first episode written has. Every episode must have them.
        depth: also write depth; every clip must have it.
        task: text for episodes that have none.
        change: given the episode's index and its clips by camera, returns what to write, or None to leave the
            episode out.
        skipped: if given, damaged episodes are appended here and passed over instead of raised.
        options: what else decides what is written, JSON-serialisable; a copy is continued with no others.

    Returns:
        Number of episodes in `out`.

    Raises:
        ValueError: `out` holds a copy of another dataset, or one made with other options, or episodes came
            or went in the source before its end.
        BadEpisode, IncompatibleDataset, OSError: as reading and writing raise; what was committed stays.
    """
    out = Path(out)
    first = 0
    reader.with_depth = depth
    options = json.loads(json.dumps(dict(options or {}, depth=depth, task=task, cameras=cameras)))
    job = {'dataset': str(reader.path.resolve()), 'options': options}
    with LeRobotClipWriter(out, depth=depth) as writer:
        written = LeRobotReader(out) if is_filled(out) else ()
        if len(written):
            origin = written.source(len(written) - 1).get(ORIGIN, {})
            check_origin(out, origin, job)
            check_order(out, origin, reader)
            first = origin['index'] + 1
        count = len(written)
        fps = written.meta.fps if count else None
        cameras = cameras or (written.episode(0).cameras if count else None)
        with tqdm(total=len(reader), initial=first, desc=str(out), unit='episode') as bar:
            for index in range(first, len(reader)):
                try:
                    names = cameras or reader.episode(index).cameras
                    views = {name: reader.read(index, camera=name) for name in names}
                    if change is not None:
                        views = change(index, views)
                except BadEpisode as error:
                    if skipped is None:
                        raise
                    skipped.append(error)
                    views = None
                if views is not None:
                    for clip in views.values():
                        fps = fps or whole_rate(clip.fps)
                        set_rate(clip, fps)
                        clip.task = clip.task or task or ''
                        clip.source[ORIGIN] = {**job, 'index': index, 'episode': reader.episode(index).name}
                    writer.add(views)
                    count += 1
                    cameras = cameras or tuple(views)
                    if count % COMMIT_EVERY == 0:
                        writer.commit()
                bar.update()
    return count
