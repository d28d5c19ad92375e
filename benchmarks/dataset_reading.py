"""How fast are clips with masks read, and does memory stay flat? Writes JSON.

    python benchmarks/dataset_reading.py DATASET [--clips 200] [--long 10000]

DATASET is a LeRobot v3 dataset with masks and one camera, because LeRobot always decodes all there are:
`mask2iv simulate D --size small && mask2iv import D/train DATASET --cameras front`. Rows: `LeRobotReader`
(frames, masks, actions, states), and LeRobot's own `LeRobotDataset` decoding the same frames without masks.
Then `--long` clips are read one after the other while the process's resident memory is watched.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from lerobot.datasets import LeRobotDataset
from tqdm import tqdm

from mask2iv_ros.data.lerobot import VIDEO_KEY
from mask2iv_ros.data.lerobot_reader import LeRobotReader

ROUNDS = 5


def plain_reader(reader: LeRobotReader):
    """A function that reads all frames of episode i through `LeRobotDataset`, without masks."""
    key = VIDEO_KEY.format(reader.episode(0).cameras[0])
    length = max(reader.episode(i).length for i in range(len(reader)))
    steps = [i / reader.meta.fps for i in range(length)]
    dataset = LeRobotDataset(
        reader.path.name,
        root=reader.path,
        video_backend='pyav',
        return_uint8=True,
        delta_timestamps={key: steps},
    )
    starts = reader.meta.episodes['dataset_from_index']
    return lambda i: dataset[starts[i]][key]


def clips_a_second(read, picks: list[int]) -> float:
    start = time.perf_counter()
    for i in picks:
        read(i)
    return len(picks) / (time.perf_counter() - start)


def resident_megabytes() -> float:
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('dataset', type=Path)
    parser.add_argument('--clips', type=int, default=200)
    parser.add_argument('--long', type=int, default=10_000)
    parser.add_argument(
        '--out', type=Path, default=Path(__file__).parent / 'results' / 'dataset_reading.json'
    )
    args = parser.parse_args()
    reader = LeRobotReader(args.dataset)
    if len(reader.meta.camera_keys) != 1:
        parser.error(f'{args.dataset}: expected one camera, got {reader.meta.camera_keys}')
    picks = np.random.default_rng(0).integers(0, len(reader), args.clips // ROUNDS).tolist()
    rows = {'LeRobotReader, with masks': reader.read, 'LeRobotDataset, without': plain_reader(reader)}
    for read in rows.values():
        read(0)
    speeds = {name: [] for name in rows}
    for _ in range(ROUNDS):  # in turns, so that other work on the machine meets both
        for name, read in rows.items():
            speeds[name].append(clips_a_second(read, picks))
    medians = {name: float(np.median(values)) for name, values in speeds.items()}
    memory = []
    for i in tqdm(range(args.long), desc='memory', unit='clip'):
        reader.read(i % len(reader))
        if (i + 1) % max(1, args.long // 20) == 0:
            memory.append(round(resident_megabytes(), 1))
    clip = reader.read(0)
    result = {
        'frames': list(clip.frames.shape),
        'clips_a_second': {name: round(value, 1) for name, value in medians.items()},
        'ratio': round(medians['LeRobotReader, with masks'] / medians['LeRobotDataset, without'], 2),
        'memory_pass_clips': args.long,
        'resident_megabytes': memory,
    }
    args.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
