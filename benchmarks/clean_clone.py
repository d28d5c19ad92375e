"""What a new user sees: clone, `make demo`, `make test`, with an empty home; seconds and sizes as JSON.

    python3 benchmarks/clean_clone.py [--without-tests]

Needs git, make and Python only. Downloaded bytes are those of all network interfaces but loopback meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

from machine import processor_name

ROOT = Path(__file__).resolve().parents[1]


def received_bytes() -> int:
    lines = Path('/proc/net/dev').read_text().splitlines()[2:]
    return sum(int(line.split(':')[1].split()[0]) for line in lines if not line.strip().startswith('lo:'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--without-tests', action='store_true')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'clean_clone.json')
    args = parser.parse_args()
    if args.out.is_dir():
        parser.error(f'--out {args.out} is a folder, expected a file')
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix='clean_clone_') as folder:
        clone, home = Path(folder) / 'mask2iv_ros', Path(folder) / 'home'
        home.mkdir()
        private = ('VIRTUAL_ENV', 'PYTHONPATH', 'LD_LIBRARY_PATH', 'AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH')
        environment = {key: value for key, value in os.environ.items() if key not in private}
        environment |= {'HOME': str(home), 'XDG_CACHE_HOME': str(home / '.cache')}
        subprocess.run(['git', 'clone', '-q', ROOT, clone], check=True)
        commit = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=clone, text=True).strip()

        def make(target: str, name: str) -> None:
            start = time.monotonic()
            subprocess.run(['make', target], cwd=clone, env=environment, check=True)
            seconds[name] = round(time.monotonic() - start, 1)

        before = received_bytes()
        make('setup', 'set-up')
        downloaded = received_bytes() - before
        make('setup', 'second set-up')
        make('demo', 'demo after set-up')
        if not args.without_tests:
            make('test', 'tests after set-up')
        size = int(subprocess.check_output(['du', '-sk', clone], text=True).split()[0]) * 1024
    result = {
        'commit': commit,
        'system': platform.freedesktop_os_release()['PRETTY_NAME'],
        'processor': f'{len(os.sched_getaffinity(0))} cores of {processor_name()}',
        'seconds': seconds,
        'downloaded_gb': round(downloaded / 1e9, 2),
        'installed_gb': round(size / 1e9, 2),
    }
    args.out.write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
