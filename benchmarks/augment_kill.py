"""Does a killed `mask2iv augment` lose or repeat anything? Kills it -9 at random moments; writes JSON.

    mask2iv simulate D --size tiny --episodes 4 --height 48 --width 64 && python test/tiny_model.py tiny/
    python benchmarks/augment_kill.py D/train tiny/ [--kills 20]

Any small LeRobot v3 dataset with masks will do. The job is killed and started again, each time after a
random time, until it ends; then the next one begins. Counted as lost or repeated is each part that was
finished before a kill and is gone or newer afterwards. Each result is compared with that of a run that
nobody killed: records, all columns, decoded frames, statistics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import lerobot.datasets  # noqa: F401 - before the forks, so that each takes no time to start

import mask2iv_ros.augmentation.method
import mask2iv_ros.pipelines.loading  # noqa: F401
from mask2iv_ros.augmentation.output import SIDECAR
from mask2iv_ros.cli import main as mask2iv
from mask2iv_ros.data.episodes import open_dataset


def start(function, *arguments) -> int:
    """Call a function in a process of its own; returns its id. This one stays fit to be forked."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(function(*arguments) or 0)
    return pid


def wait(pid: int, seconds: float = float('inf')) -> int | None:
    """The exit status, or None where the process still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def content(root: Path) -> dict:
    """All that two runs must agree in."""
    told = root.with_suffix('.json')
    assert wait(start(write_content, root, told)) == 0
    return json.loads(told.read_text())


def write_content(root: Path, out: Path) -> None:
    reader, digest = open_dataset(root), hashlib.sha256()
    for index in range(len(reader)):
        for camera in reader.video_keys:
            digest.update(reader.read(index, camera=camera).frames.tobytes())
        keys = [key for key in reader.meta.features if key not in reader.meta.camera_keys]
        digest.update(repr(reader.rows(index, keys).to_pydict()).encode())
    account = json.loads((root / SIDECAR).read_text())
    stats = json.loads((root / 'meta/stats.json').read_text())
    told = {'episodes': account['episodes'], 'data': digest.hexdigest(), 'stats': stats}
    out.write_text(json.dumps(told))


def finished(parts: Path) -> dict[str, int]:
    """Finished parts, and when each was."""
    times = {}
    for path in parts.glob('episode_*'):
        times[path.name] = path.stat().st_mtime_ns
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('model', type=Path)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('-o', '--out', type=Path, default=Path('benchmarks/results/augment_kill.json'))
    args = parser.parse_args()
    rng, kills, runs = random.Random(args.seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = ['--model', str(args.model), '--device', 'cpu', '--variants', '2', '--include-source']
        command += ['--keep', 'background']
        command += ['--other-cameras', 'keep']

        def job(name: str) -> list[str]:
            return ['augment', str(args.source), str(folder / name), '--ungated', *command]

        begin = time.monotonic()
        assert wait(start(mask2iv, job('whole'))) == 0
        seconds = time.monotonic() - begin
        want = content(folder / 'whole')
        while len(kills) < args.kills:
            name = f'killed_{len(runs)}'
            parts, lost = folder / f'{name}.parts', 0
            known: dict[str, int] = {}
            status = None
            while status is None:
                pid = start(mask2iv, job(name))
                enough = len(kills) >= args.kills
                status = wait(pid, float('inf') if enough else rng.uniform(0, seconds / 2))
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    is_joining = (parts / 'joined').exists()
                    if parts.exists() and not (folder / name).exists():
                        now = finished(parts)
                        lost += sum(now.get(part) != stamp for part, stamp in known.items())
                        known = now
                    kills.append({'run': len(runs), 'finished_parts': len(known), 'joining': is_joining})
                    print(kills[-1], flush=True)
            same = status == 0 and content(folder / name) == want
            leftovers = sorted(path.name for path in folder.glob(f'*{name}*') if path.is_dir())
            runs.append({'equal': same, 'lost_or_repeated': lost, 'left': leftovers})
            print(runs[-1], flush=True)
            result = {
                'seconds_of_an_uninterrupted_run': round(seconds, 1),
                'episodes': len(want['episodes']),
                'frames': want['stats']['index']['count'][0],
                'kills': kills,
                'runs': runs,
            }
            args.out.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
