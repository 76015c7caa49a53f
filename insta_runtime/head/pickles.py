"""Numbers out of a pickle without running it.

FLAME comes as a Python 2 pickle of numpy, scipy and chumpy objects.  Unpickling calls whatever the file names, so
here every name stands for a collector of our own that only stores what it is given; a name that is not on the
short list is refused.  Neither scipy nor chumpy need be installed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError


def read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a pickled dictionary, by name; entries that are not arrays of numbers are left out.

    chumpy variables give their value, sparse matrices (compressed by column) become dense.  Raises UserError for
    a file that names anything but such arrays, or is no pickled dictionary.
    """
    with path.open("rb") as file:
        try:
            content = _Collector(file, encoding="latin1").load()
        except UserError as error:
            raise UserError(f"{path} {error}") from None
        except Exception:  # a damaged or foreign pickle can fail in any way
            raise UserError(f"{path} is not a readable pickle; give a FLAME .pkl or .npz file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of arrays; give a FLAME .pkl or .npz file")
    arrays = {}
    for name, value in content.items():
        try:
            arrays[str(name)] = _numbers(value)
        except (TypeError, ValueError, KeyError, IndexError):
            continue
    return arrays


class _Stored:
    """An object of the pickle: the arguments and the state that it was to be built from."""

    def __new__(cls, *args: Any) -> _Stored:
        stored = super().__new__(cls)
        stored.args, stored.state = args, None
        return stored

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: Any) -> None:
        """All is done in ``__new__``, which a pickle may call alone."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __hash__(self) -> int:
        return id(self)


class _Array(_Stored):
    """numpy.ndarray: state is (version, shape, dtype, Fortran order, bytes)."""


class _Buffer(_Stored):
    """numpy's protocol-5 array: arguments are (bytes, dtype, shape, order)."""


class _DType(_Stored):
    """numpy.dtype: arguments start with a code such as ``f8``; state is (version, byte order, ...)."""


class _Sparse(_Stored):
    """scipy.sparse.csc_matrix: state is a dictionary."""


class _Chumpy(_Stored):
    """chumpy.ch.Ch and its relatives: state is a dictionary that holds the value as ``x``."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _reconstructor(cls: type, *_: Any) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, _Stored) else _Stored()


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a Python 2 pickle."""
    return text.encode("latin1") if encoding == "latin1" else b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("collections", "OrderedDict"): dict,
    **{(module, "object"): _Stored for module in ("__builtin__", "builtins")},
    **{(module, "set"): _Stored for module in ("__builtin__", "builtins")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Buffer for core in ("core", "_core")},
    **{(f"scipy.sparse.{module}", "csc_matrix"): _Sparse for module in ("csc", "_csc")},
}


class _Collector(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.startswith("chumpy."):
            return _Chumpy
        raise UserError(f"would run {module}.{name}: refused; a head model holds nothing but arrays"[:200])


def _numbers(value: Any) -> NDArray[Any]:
    """The array of numbers that a stored object stands for.  TypeError or ValueError if it is none."""
    if isinstance(value, _Chumpy):
        return _numbers(value.state["x"])
    if isinstance(value, _Sparse):
        return _dense(value.state)
    if isinstance(value, _Array):
        _, shape, dtype, fortran, data = value.state
        return _from_bytes(data, dtype, shape, "F" if fortran else "C")
    if isinstance(value, _Buffer):
        data, dtype, shape, order = value.args
        return _from_bytes(data, dtype, shape, order)
    raise TypeError("not an array")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _DType):
        raise TypeError("not a dtype")
    number = np.dtype(str(dtype.args[0]))
    if number.kind not in "fiu":
        raise TypeError("not numbers")
    if dtype.state is not None and dtype.state[1] in ("<", ">"):
        number = number.newbyteorder(dtype.state[1])
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2 wrote str
    array = np.frombuffer(raw, number).reshape(tuple(int(n) for n in shape), order="F" if order == "F" else "C")
    return array.astype(number.newbyteorder("="))


def _dense(state: Any) -> NDArray[Any]:
    """A matrix from its columns: entries ``data`` in rows ``indices``, column j from ``indptr[j]`` on."""
    rows, columns = (int(n) for n in state.get("_shape", state.get("shape")))
    data, indices, indptr = (_numbers(state[name]) for name in ("data", "indices", "indptr"))
    if len(indptr) != columns + 1 or len(data) != len(indices) or rows * columns > 1 << 24:
        raise ValueError("not a sparse matrix")
    matrix = np.zeros((rows, columns))
    np.add.at(matrix, (indices, np.repeat(np.arange(columns), np.diff(indptr))), data)
    return matrix
