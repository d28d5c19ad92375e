"""Where the embedded default model lies."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = 'mask2iv-sim'


def default_model_path() -> Path:
    """Folder of the embedded model: in the installed package, or beside it in a source checkout.

    Raises FileNotFoundError naming both places.
    """
    package = Path(__file__).parent
    candidates = [package / 'weights' / DEFAULT_MODEL, package.parent / 'weights' / DEFAULT_MODEL]
    for path in candidates:
        if (path / 'model_index.json').is_file():
            return path
    places = ' or '.join(str(path) for path in candidates)
    raise FileNotFoundError(f'The default model {DEFAULT_MODEL} was expected at {places}')
