"""Files that come with the package."""

from __future__ import annotations

from pathlib import Path


def config_path(name: str) -> Path:
    """A file of the config folder: in the installed package, or beside it in a source checkout."""
    package = Path(__file__).parent
    candidates = [package / 'config' / name, package.parent / 'config' / name]
    return next((path for path in candidates if path.is_file()), candidates[0])
