"""The embedded default model: where it lies, and how its weights are packed.

In the repository and in an installed package each safetensors file is xz-compressed, which together with
rounding to 8 significant bits takes a third off its size. The first use unpacks them into the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np

DEFAULT_MODEL = 'mask2iv-sim'
REPORT = 'report.json'  #: of a training or a conversion, beside its weights
PACKED = '.xz'

#: LZMA2 with contexts for two-byte values.
_FILTERS = [{'id': lzma.FILTER_LZMA2, 'preset': 6, 'lc': 3, 'lp': 1, 'pb': 1}]


def default_model_path() -> Path:
    """Folder of the embedded model, unpacked: from the installed package or a source checkout.

    Raises FileNotFoundError naming both places.
    """
    package = Path(__file__).parent
    candidates = [package / 'weights' / DEFAULT_MODEL, package.parent / 'weights' / DEFAULT_MODEL]
    for path in candidates:
        if (path / 'model_index.json').is_file():
            return unpack(path)
    places = ' or '.join(str(path) for path in candidates)
    raise FileNotFoundError(f'The default model {DEFAULT_MODEL} was expected at {places}')


def unpack(model: Path) -> Path:
    """`model` itself if its weights are plain, else a folder in the user's cache with them unpacked.

    The cache is $XDG_CACHE_HOME or ~/.cache; the folder's name holds a hash of the packed files.

    Raises:
        ValueError: a packed file is corrupt.
        OSError: the cache cannot be written.
    """
    packed = sorted(model.rglob(f'*{PACKED}'))
    if not packed:
        return model
    digest = hashlib.sha256()
    for path in sorted(path for path in model.rglob('*') if path.is_file()):
        digest.update(str(path.relative_to(model)).encode() + path.read_bytes())
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mask2iv_ros'
    folder = cache / f'{model.name}-{digest.hexdigest()[:16]}'
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        fresh = Path(temporary) / model.name
        shutil.copytree(model, fresh, ignore=shutil.ignore_patterns(f'*{PACKED}'))
        for path in packed:
            try:
                content = lzma.decompress(path.read_bytes())
            except lzma.LZMAError as error:
                raise ValueError(f'{path} is corrupt: {error}') from error
            (fresh / path.relative_to(model)).with_suffix('').write_bytes(content)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was not faster
                raise
    return folder


def hash_weights(model: str | Path) -> str:
    """SHA-256 of a model folder's weight and configuration files, in hexadecimal.

    Of a pipeline's folder these are all below it; of a network's its own, beside which its training may lie.
    """
    model = Path(model).expanduser()
    digest = hashlib.sha256()
    files = model.rglob('*') if (model / 'model_index.json').is_file() else model.glob('*')
    for path in sorted(files):
        if path.suffix == '.safetensors' or (path.suffix == '.json' and path.name != REPORT):
            digest.update(str(path.relative_to(model)).encode() + path.read_bytes())
    return digest.hexdigest()


def pack(model: Path, out: Path) -> None:
    """Write a packed copy of a float16 model folder to `out`: what the repository holds.

    Raises ValueError for weights that are not float16.
    """
    shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns('*.safetensors'))
    for path in sorted(model.rglob('*.safetensors')):
        content = path.read_bytes()
        (header,) = struct.unpack('<Q', content[:8])
        tensors = json.loads(content[8 : 8 + header])
        tensors.pop('__metadata__', None)
        if others := {tensor['dtype'] for tensor in tensors.values()} - {'F16'}:
            raise ValueError(f'{path}: expected float16 weights (F16) only, got {", ".join(sorted(others))}')
        values = np.frombuffer(content, np.uint16, offset=8 + header).astype(np.uint32)
        rounded = ((values + 4) & 0xFFF8).astype(np.uint16)  # 7 of 10 mantissa bits; ties away from zero
        target = out / path.relative_to(model)
        compressed = lzma.compress(content[: 8 + header] + rounded.tobytes(), filters=_FILTERS)
        target.with_name(target.name + PACKED).write_bytes(compressed)


if __name__ == '__main__':
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
