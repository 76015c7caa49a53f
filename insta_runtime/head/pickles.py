"""Safe reading of arrays from a pickle, without executing code from it.

FLAME is published as a Python 2 pickle of numpy, scipy and chumpy objects.  Unpickling normally calls any function that
the file names; here every name on a short list is replaced by a class that only stores its arguments, and all other
names are refused.  Neither scipy nor chumpy is required.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from insta_runtime.errors import UserError


def read_pickle(path: Path) -> dict[str, NDArray[Any]]:
    """Read the numeric arrays of a pickled dictionary, by name, without executing code; other entries are left out.

    chumpy variables become arrays of their value, sparse matrices (compressed columns) dense ones.  Raises UserError if
    the file is not a pickled dictionary, or refers to classes or functions other than those of such arrays.
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
    """Placeholder of a pickled object: stores its constructor arguments and its state."""

    def __new__(cls, *args: Any) -> _Stored:
        stored = super().__new__(cls)
        stored.args, stored.state = args, None
        return stored

    args: tuple[Any, ...]
    state: Any

    def __init__(self, *args: Any) -> None:
        """Does nothing: ``__new__`` stores the arguments, and a pickle may call it alone."""

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
    """Replacement of ``_codecs.encode``, by which Python 3 stores bytes in pickles of protocol 2."""
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
    """Unpickler that replaces known classes by `_Stored` placeholders and refuses all other names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.startswith("chumpy."):
            return _Chumpy
        raise UserError(f"refers to {module}.{name}, which is not allowed: a head model contains only arrays"[:200])


def _numbers(value: Any) -> NDArray[Any]:
    """Numeric array of a stored object.  Raises TypeError or ValueError if it is not one."""
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
    """Dense matrix from compressed sparse columns: ``data`` in rows ``indices``, column j from ``indptr[j]`` on."""
    rows, columns = (int(n) for n in state.get("_shape", state.get("shape")))
    data, indices, indptr = (_numbers(state[name]) for name in ("data", "indices", "indptr"))
    if len(indptr) != columns + 1 or len(data) != len(indices) or rows * columns > 1 << 24:
        raise ValueError("not a sparse matrix")
    matrix = np.zeros((rows, columns))
    np.add.at(matrix, (indices, np.repeat(np.arange(columns), np.diff(indptr))), data)
    return matrix
