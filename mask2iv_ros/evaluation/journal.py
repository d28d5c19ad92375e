"""Results a line, appended as they come, so that a run that is killed goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path


def read_lines(path: Path) -> list[dict]:
    """The JSON lines that are there, without a last one that is cut off or still being written."""
    return [json.loads(text) for text in path.read_text().split('\n')[:-1]] if path.exists() else []


def drop_cut_off_line(path: Path) -> None:
    """Cut off what a run that was killed left of a last line: the next would be appended to it."""
    text = path.read_bytes() if path.exists() else b''
    if text and not text.endswith(b'\n'):
        os.truncate(path, text.rfind(b'\n') + 1)
