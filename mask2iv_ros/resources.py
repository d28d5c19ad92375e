"""What the package finds around it: its files, and the environment its libraries read when imported."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

#: Nothing needs the network, but libraries would look for newer files. GNU OpenMP's threads spin some
#: milliseconds while they wait for each other, and on a busy machine stall; not to spin at all costs a third
#: more of a plan's time on an idle one.
ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_OFFLINE': '1', 'GOMP_SPINCOUNT': '10000'}


def set_environment():
    """Set what `ENVIRONMENT` says and the user does not; call it before torch is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def end_with_parent():
    """In a process of `multiprocessing`: end with the one that started it, also if that is killed."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def config_path(name: str) -> Path:
    """A file of the config folder: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    candidates = [package / 'config' / name, package.parent / 'config' / name]
    return next((path for path in candidates if path.is_file()), candidates[0])
