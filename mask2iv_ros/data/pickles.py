"""Reading pickles of plain data and numpy arrays without running what else a pickle may name.

A pickle is a program: it may import and call anything. Here it can build numbers, texts, lists, tuples,
dicts and numpy arrays, and nothing else; numpy's own reconstruction code does not run either, because a
forged dtype state makes it read bytes as pointers. Memory stays within a few times the size of the file.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

MAX_BYTES = 64 << 20  #: larger files are refused; a trajectory's pickles have less than 1 MB


class RefusedPickle(ValueError):  # noqa: N818
    """A pickle that is damaged or holds more than plain data; the message names file and reason."""


def read_pickle(path: str | Path) -> Any:
    """Plain Python data and numpy arrays (writable; bool, integer, float or complex) of a pickle file.

    Reads protocols 0 to 5 of Python 2 and 3, written with numpy 1 or 2. An array of objects becomes the flat
    list of its items.

    Raises:
        RefusedPickle: the file names anything but numpy's arrays, dtypes and scalars, is damaged, claims more
            data than it has, or is larger than `MAX_BYTES`.
        OSError: it cannot be read.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RefusedPickle(f'{path}: {size} bytes, more than the {MAX_BYTES} that are accepted')
    data = path.read_bytes()
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding='latin1').load(), {})
    except RefusedPickle as error:
        raise RefusedPickle(f'{path}: {error}') from None
    except Exception as error:
        raise RefusedPickle(f'{path}: damaged pickle ({type(error).__name__}: {error})') from error


class _Unpickler(pickle._Unpickler):
    """Python's own in Python: the one in C reserves what a memo index or a length claims before it looks."""

    def find_class(self, module: str, name: str):
        try:
            return _ALLOWED[module.replace('numpy._core.', 'numpy.core.'), name]
        except KeyError:
            raise RefusedPickle(
                f'it names {module}.{name}; only plain data and numpy arrays are read, because a pickle can '
                'run any program'
            ) from None

    def load_bytearray8(self):
        self.append(self.read(int.from_bytes(self.read(8), 'little')))

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}


class _Dtype:
    """A dtype while the pickle is read: kind and size from its name, byte order from its state."""

    def __init__(self, name: str, *_):
        self.name, self.order = str(name), '='

    def __setstate__(self, state: tuple):
        _version, self.order, subarray, names, fields = state[:5]
        if subarray is not None or names is not None or fields is not None:
            raise RefusedPickle(f'a structured dtype ({names})')

    def get(self) -> np.dtype:
        dtype = np.dtype(self.name) if self.name[:1] in 'biufc' and self.name[1:].isdigit() else None
        if dtype is None or dtype.kind not in 'biufc':
            raise RefusedPickle(f'an array of dtype {self.name!r}; expected booleans or numbers')
        return dtype.newbyteorder(self.order) if self.order in '<>' else dtype


class _Array:
    """An array while the pickle is read; `value` is set by its state."""

    value: np.ndarray | list | None = None

    def __setstate__(self, state: tuple):
        _version, shape, dtype, fortran, data = state
        if dtype.name.startswith('O'):
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise RefusedPickle(f'an array of objects of shape {shape} whose items do not fit')
            self.value = data
        else:
            self.value = _from_bytes(data, dtype.get(), shape, 'F' if fortran else 'C')


def _from_bytes(data: bytes | str, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    data = data.encode('latin1') if isinstance(data, str) else data  # Python 2 wrote bytes as str
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise RefusedPickle(f'an array of {shape} {dtype} with {len(data)} bytes of data')
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder('='))


# What a pickle may name. Instances without attributes: a pickle can set attributes of what it gets.
class _MakeDtype:
    __slots__ = ()

    def __call__(self, *arguments):
        return _Dtype(*arguments)


class _MakeArray:
    __slots__ = ()

    def __call__(self, subtype, shape, code):
        if not isinstance(subtype, _NdArray):
            raise RefusedPickle(f'an array of type {subtype!r}')
        return _Array()


class _NdArray:
    __slots__ = ()


class _MakeScalar:
    __slots__ = ()

    def __call__(self, dtype, data=b''):
        return _from_bytes(data, dtype.get(), (), 'C')[()]


class _FromBuffer:
    __slots__ = ()

    def __call__(self, data, dtype, shape, order, axes=None):
        if axes is not None:
            raise RefusedPickle(f'an array whose axes are stored in the order {axes}')
        return _from_bytes(data, dtype.get(), shape, order)


class _Encode:
    """Protocols 0 to 2 of Python 3 write bytes as `_codecs.encode(text, 'latin1')`, and b'' as `bytes()`."""

    __slots__ = ()

    def __call__(self, text='', encoding='latin1'):
        if encoding not in ('latin1', 'latin-1'):
            raise RefusedPickle(f'bytes encoded as {encoding!r}')
        return text.encode('latin1')


_ALLOWED = {
    ('numpy', 'dtype'): _MakeDtype(),
    ('numpy', 'ndarray'): _NdArray(),
    ('numpy.core.multiarray', '_reconstruct'): _MakeArray(),
    ('numpy.core.multiarray', 'scalar'): _MakeScalar(),
    ('numpy.core.numeric', '_frombuffer'): _FromBuffer(),
    ('_codecs', 'encode'): _Encode(),
    ('__builtin__', 'bytes'): _Encode(),
    ('builtins', 'bytes'): _Encode(),
}


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Put arrays in the place of `_Array`s, each object once: a pickle can repeat one list many times."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        result = _plain(value.value, done)
    elif isinstance(value, list):
        done[id(value)] = result = value  # before its items, as a list may hold itself
        value[:] = [_plain(item, done) for item in value]
    elif isinstance(value, dict):
        done[id(value)] = result = value
        for key in value:
            if not isinstance(key, (str, bytes, int, float)):
                raise RefusedPickle(f'a dict with a {type(key).__name__} as key')
            value[key] = _plain(value[key], done)
    elif isinstance(value, tuple):
        result = tuple(_plain(item, done) for item in value)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.ndarray, np.generic)):
        return value
    else:
        raise RefusedPickle(f'a {type(value).__name__} where data was expected')
    done[id(value)] = result
    return result
