"""Reading what `torch.save` wrote, without trusting it: a zip archive with a pickle and the bytes of each storage.

A pickle is a program. This one is read by an unpickler that knows the handful of names a file of tensors needs, builds
plain descriptions in place of the real objects, and refuses every other name; `torch.load` is not involved. The only
reader is `reference.py`: nothing that this project writes holds a pickle.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltsft.errors import SFTFileError

__all__ = ["StoredTensor", "TorchArchive"]

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}
_OPCODES = """
PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE
"""
_ALLOWED_OPCODES = frozenset(_OPCODES.split())
"""What a pickle of numbers, text, lists, dicts and tensors is made of. Anything else has no business in such a file."""


_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What reading a damaged zip archive may raise, beside OSError."""


@dataclass(frozen=True)
class StoredTensor:
    """What the pickle says of a tensor: where its elements lie in a storage of `storage_size` elements."""

    key: str
    dtype: torch.dtype
    storage_size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a tensor takes no state")

    def lies_inside(self) -> bool:
        """Say whether every element lies in the storage, and none is there only by repetition."""
        if len(self.shape) != len(self.stride) or min((0, self.offset, *self.shape, *self.stride)) < 0:
            return False
        if not prod(self.shape):
            return True
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        return last < self.storage_size and prod(self.shape) <= self.storage_size


class TorchArchive:
    """A file as torch.save writes it: a zip of one folder, nothing compressed, so that no entry outgrows the file.

    Use it in a `with` block. Anything out of place raises `SFTFileError`, naming the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> TorchArchive:
        try:
            self._zip = zipfile.ZipFile(self.file)
        except OSError as error:
            raise SFTFileError(f"{self.file} cannot be read: {error.strerror or error}") from error
        except _ZIP_ERRORS as error:
            raise SFTFileError(f"{self.file} is not a zip archive written by torch.save: {error}") from error
        try:
            self._sizes = self._checked_sizes()
        except BaseException:
            self._zip.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _checked_sizes(self) -> dict[str, int]:
        entries = self._zip.infolist()
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise SFTFileError(
                    f"{self.file}: {entry.filename} is compressed; torch.save stores its entries as they are"
                )
        sizes = {entry.filename: entry.file_size for entry in entries}
        if len(sizes) < len(entries) or sum(sizes.values()) > self.file.stat().st_size:
            raise SFTFileError(f"{self.file}: entries of the archive overlap or occur twice; the file is damaged")
        pickles = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise SFTFileError(f"{self.file} is not an archive written by torch.save: it holds {len(pickles)} data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in sizes and self._read(order) != b"little":
            raise SFTFileError(
                f"{self.file}: byte order {self._read(order)[:16]!r} is not supported; allowed is little"
            )
        return sizes

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (OSError, *_ZIP_ERRORS) as error:
            raise SFTFileError(f"{self.file}: {name} is damaged: {error}; fetch the file again") from error

    def content(self) -> object:
        """Return what the pickle describes: numbers, text, lists, dicts, and a `StoredTensor` for each tensor."""
        return _unpickled(self._read(f"{self._root}data.pkl"), self.file)

    def tensor(self, described: StoredTensor, name: str) -> Tensor:
        """Read a tensor, whole and contiguous, after checking that it lies inside its storage."""
        entry = f"{self._root}data/{described.key}"
        size_bytes = described.storage_size * described.dtype.itemsize
        if self._sizes.get(entry) != size_bytes:
            found = self._sizes.get(entry, "no")
            raise SFTFileError(f"{self.file}: {name}: storage {described.key} has {found} bytes, expected {size_bytes}")
        if not described.lies_inside():
            raise SFTFileError(f"{self.file}: {name}: the tensor reaches outside its storage")
        if not size_bytes or not prod(described.shape):
            return torch.zeros(described.shape, dtype=described.dtype)
        stored = torch.frombuffer(bytearray(self._read(entry)), dtype=described.dtype)
        return stored.as_strided(described.shape, described.stride, described.offset).clone(
            memory_format=torch.contiguous_format
        )


class _Stub:
    """A callable that stands for a name in the pickle; it takes no state and no attributes."""

    __slots__ = ("_build", "name")

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        self.name = name
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"{self.name} takes no state")


class _IntegerType:
    """Stands for a numpy integer type, such as `dtype('i8')`."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("i4", "i8"):
            raise pickle.UnpicklingError(f"numpy type {code!r} is not an index type; allowed are i4 and i8")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError(f"numpy byte order {state[1]!r} is not supported; allowed is '<'")

    def scalar(self, content: bytes) -> int:
        return int(np.frombuffer(content, dtype=f"<{self.code}", count=1)[0])


def _rebuilt_tensor(
    storage: tuple[str, torch.dtype, int], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> StoredTensor:
    key, dtype, size = storage
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int for number in numbers):
        raise pickle.UnpicklingError("a tensor's offset, shape and stride must be integers")
    return StoredTensor(
        key=key, dtype=dtype, storage_size=size, offset=offset, shape=tuple(shape), stride=tuple(stride)
    )


def _scalar(integer_type: _IntegerType, content: bytes) -> int:
    if not isinstance(integer_type, _IntegerType):
        raise pickle.UnpicklingError("a numpy scalar of an unknown type")
    return integer_type.scalar(content)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not supported; allowed is latin1")
    return text.encode("latin1")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "torch.Size": lambda sides: tuple(sides),
    "torch._utils._rebuild_tensor_v2": _rebuilt_tensor,
    "collections.OrderedDict": dict,
    "numpy.dtype": _IntegerType,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds descriptions from a pickle whose opcodes have been checked; knows no name outside `_ALLOWED`."""

    def __init__(self, content: bytes, file: Path) -> None:
        super().__init__(io.BytesIO(content))
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if full not in _ALLOWED:
            raise _refused_global(full, self._file)
        return _Stub(full, _ALLOWED[full])

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype, int]:
        kind, dtype, key, _location, size = pid
        sound = kind == "storage" and isinstance(dtype, torch.dtype) and isinstance(key, str) and key.isdecimal()
        if not sound or type(size) is not int or size < 0:
            raise pickle.UnpicklingError(f"storage {pid!r} is not understood")
        return key, dtype, size


def _refused_global(full: str, file: Path) -> SFTFileError:
    allowed = ", ".join(sorted([*_ALLOWED, *(f"torch.{name}" for name in _STORAGE_DTYPES)]))
    return SFTFileError(
        f"{file} names {full}, which a reference SFT does not need, so it is not read: unpickling it could run any "
        f"program; allowed are {allowed}"
    )


def _unpickled(content: bytes, file: Path) -> object:
    try:
        _check_opcodes(content, file)
        return _Unpickler(content, file).load()
    except SFTFileError:
        raise
    except Exception as error:  # a damaged pickle fails in any way there is
        raise SFTFileError(f"{file}: data.pkl is damaged or not a reference SFT: {error}") from error


def _check_opcodes(content: bytes, file: Path) -> None:
    """Look at every instruction before the first is carried out."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            if f"{module}.{name}" not in _ALLOWED and not (module == "torch" and name in _STORAGE_DTYPES):
                raise _refused_global(f"{module}.{name}", file)
        elif opcode.name not in _ALLOWED_OPCODES:
            raise SFTFileError(
                f"{file}: data.pkl uses {opcode.name}, which a file of tensors does not need; it is not read"
            )
        elif opcode.name == "LONG_BINPUT" and int(argument or 0) > len(content):
            raise SFTFileError(f"{file}: data.pkl is damaged: memo {argument} in {len(content)} bytes")
