"""An SFT as a folder: writing it so that nobody sees half of it, and reading it with every check made first.

    sft.safetensors   "diff.gaps" and "diff.values": the supports and the values of all parameters, one after the
                      other in the order of the manifest, packed (`ltsft.sft.packing`); "head.<name>" and
                      "adapter.<name>": each parameter of the head and of an adapter, whole
    README.md         a card for people
    sft.json          the manifest, written last: a folder without it is not an SFT

The same SFT gives the same bytes: names are sorted and nothing says when or where the files were written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from ltsft.atomic import flush_folder, fresh_folder
from ltsft.config import LT_SFT
from ltsft.errors import SFTFileError
from ltsft.sft.card import write_card
from ltsft.sft.manifest import FORMAT_VERSION, DiffEntry, HeadEntry, Manifest, parse_manifest, seal_manifest
from ltsft.sft.packing import CHUNK, PackingError, gaps_to_indices, in_parallel, indices_to_gaps, pack, unpack
from ltsft.sft.sft import SFT, BaseRef, Diff

__all__ = [
    "CARD_FILE",
    "MANIFEST_FILE",
    "TENSOR_FILE",
    "StoredValues",
    "load_sft",
    "read_manifest",
    "save_sft",
]

TENSOR_FILE = "sft.safetensors"
MANIFEST_FILE = "sft.json"
CARD_FILE = "README.md"

_GAPS = "diff.gaps"
_VALUES = "diff.values"
_NOTHING = torch.zeros(0, dtype=torch.uint8)
_WHOLE = ("head", "adapter")
StoredValues = Literal["float32", "bfloat16"]
_HEAD_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_sft(sft: SFT, folder: str | Path, *, values: StoredValues = "float32", learnt_by: str = "") -> Path:
    """Write an SFT as a folder.

    All files are written beside the folder, flushed to the disk, and then put in place: by one rename where the folder
    is new; where it holds an older SFT, its manifest goes first and the new one comes last, so that a reader finds the
    old SFT, none, or the new one. Saving the same SFT twice changes nothing. Diffs are stored in the order of their
    names.

    Args:
        sft: The SFT. Diffs and head are checked as when loading.
        folder: The folder to write. Missing parents are made.
        values: The precision of the stored values: "float32" keeps every bit; "bfloat16" takes half the room, rounds,
            and is recorded in the manifest. Loading gives float32 either way.
        learnt_by: For the card: what the SFT's method stores, in words (`summary` of a method).

    Returns:
        The folder.

    Raises:
        SFTFileError: The SFT is not sound (a NaN, indices out of order, details that are not JSON), or the folder
            holds something that is not an SFT.

    Example:
        >>> save_sft(sft, "sfts/fo")
        PosixPath('sfts/fo')
    """
    folder = Path(folder)
    _refuse_unsound(sft, folder)
    if folder.exists() and not folder.is_dir():
        raise SFTFileError(f"{folder} is a file; an SFT is a folder: name another place")
    tensors, packing = _packed(sft, values, folder)
    manifest = _manifest(sft, tensors, packing, folder / MANIFEST_FILE)
    if _is_same(folder, manifest, tensors):
        return folder
    with fresh_folder(folder) as fresh:
        _write(fresh / TENSOR_FILE, tensors)
        _write(fresh / CARD_FILE, write_card(sft, learnt_by=learnt_by).encode())
        _write(fresh / MANIFEST_FILE, manifest)
        flush_folder(fresh)
        _put_in_place(fresh, folder)
    return folder


def load_sft(folder: str | Path) -> SFT:
    """Read an SFT folder, after checking everything that a reader relies on.

    Checked are: the manifest (there, parsed, of a known format, in agreement with itself), the size and the SHA-256 of
    the tensor file, which tensors it holds, their dtypes and shapes, that the diffs unpack to as many numbers as the
    manifest says, the range and strict order of the indices, and that all values are finite. Hashing and unpacking
    share the cores.

    Args:
        folder: The folder.

    Returns:
        The SFT, on the CPU, with `path` set to the folder.

    Raises:
        SFTFileError: Something is missing or wrong; the message names the file and, where there is one, the parameter.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    file = folder / TENSOR_FILE
    content = _read_tensors(file, manifest)
    hashing = ThreadPoolExecutor(1)  # beside the parsing, whose result is dropped where the hash does not fit
    digest = hashing.submit(lambda: hashlib.sha256(content).hexdigest())
    try:
        tensors = _checked_tensors(file, content, manifest)
        diffs = _unpacked(file, manifest, tensors)
        head, adapter = (_whole(file, section, getattr(manifest, section), tensors) for section in _WHOLE)
    except SFTFileError:
        _refuse_hash(file, digest.result(), manifest)
        raise
    finally:
        hashing.shutdown()
    _refuse_hash(file, digest.result(), manifest)
    sft = SFT(
        kind=manifest.kind,
        subject=manifest.subject,
        base=BaseRef(**manifest.base.model_dump()),
        diffs=diffs,
        head=head,
        adapter=adapter,
        labels=manifest.labels,
        maskable=manifest.maskable,
        source_languages=manifest.source_languages,
        method=manifest.method,
        details=manifest.details,
        path=str(folder),
    )
    _refuse_unsound(sft, file)
    return sft


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check the manifest alone, without the tensors: what an SFT is, at the cost of one small file.

    Args:
        folder: The SFT folder.

    Returns:
        The manifest as plain JSON values.

    Raises:
        SFTFileError: There is no manifest, or it is not valid.
    """
    content: dict[str, Any] = _read_manifest(Path(folder)).model_dump(mode="json", exclude_unset=True)
    return content


def _refuse_unsound(sft: SFT, place: Path) -> None:
    for name, diff in sft.diffs.items():
        problem = diff.problem()
        if problem:
            raise SFTFileError(f"{place}: diff of {name}: {problem}")
    for section in _WHOLE:
        for name, value in getattr(sft, section).items():
            if value.dtype not in _HEAD_DTYPES.values():
                allowed = ", ".join(_HEAD_DTYPES)
                raise SFTFileError(f"{place}: {section} {name} has dtype {value.dtype}; allowed are {allowed}")
            if not bool(torch.isfinite(value).all()):
                raise SFTFileError(f"{place}: {section} {name} holds values that are not finite")


def _packed(sft: SFT, values: StoredValues, folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Give the bytes of the tensor file, and how the diffs are packed in it.

    safetensors sorts by dtype and name, so the bytes depend on the SFT alone.
    """
    if values not in ("float32", "bfloat16"):
        raise SFTFileError(f"{folder}: values must be stored as float32 or bfloat16, got {values!r}")
    diffs = [sft.diffs[name] for name in sorted(sft.diffs)]
    gaps = pack(indices_to_gaps([diff.indices.numpy() for diff in diffs]))
    row = torch.cat([diff.values for diff in diffs]) if diffs else torch.zeros(0)
    if values == "bfloat16":
        row = row.bfloat16()
        if not bool(torch.isfinite(row).all()):
            raise SFTFileError(f"{folder}: a value is too large for bfloat16; store float32")
    packed = pack(row.numpy() if values == "float32" else row.view(torch.uint16).numpy())
    # clone: safetensors refuses tensors that share memory, and two names of a head may.
    whole = {
        f"{section}.{name}": value.detach().cpu().contiguous().clone()
        for section in _WHOLE
        for name, value in getattr(sft, section).items()
    }
    packing = {
        "codec": "pcodec",
        "chunk": CHUNK,
        "values": values,
        "gap_bytes": [len(stream) for stream in gaps],
        "value_bytes": [len(stream) for stream in packed],
    }
    return pack_tensors({_GAPS: _bytes(gaps), _VALUES: _bytes(packed), **whole}), packing


def _bytes(streams: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(streams)), dtype=torch.uint8) if streams else _NOTHING.clone()


def _manifest(sft: SFT, tensors: bytes, packing: dict[str, Any], file: Path) -> bytes:
    subject = "language" if sft.kind == "language" else "target_task"
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": sft.kind,
        subject: sft.subject,
        **({} if sft.method == LT_SFT else {"method": sft.method}),
        "source_languages": list(sft.source_languages),
        "base": {
            **sft.base.identity,
            **({"golden": sft.base.golden} if sft.base.golden else {}),
        },
        "labels": list(sft.labels),
        "density": sft.density,
        "support_size": sft.support_size,
        "maskable": sft.maskable,
        "diffs": [
            {"name": name, "shape": list(diff.shape), "support_size": diff.support_size}
            for name, diff in sorted(sft.diffs.items())
        ],
        "head": _described(sft.head),
        **({"adapter": _described(sft.adapter)} if sft.adapter else {}),
        "packing": packing,
        "tensor_file": {"size_bytes": len(tensors), "sha256": hashlib.sha256(tensors).hexdigest()},
        "details": sft.details,
    }
    try:
        plain = json.loads(json.dumps(content, allow_nan=False))
        plain["seal"] = seal_manifest(plain)
        text = (json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise SFTFileError(
            f"{file}: names and details must be plain JSON values with finite numbers: {error}"
        ) from error
    parse_manifest(text, file)
    return text


def _described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in sorted(tensors.items())
    ]


def _is_same(folder: Path, manifest: bytes, tensors: bytes) -> bool:
    """Say whether the folder already holds these very bytes (a manifest alone could stand beside a corrupt file)."""
    try:
        return (
            (folder / MANIFEST_FILE).read_bytes() == manifest
            and (folder / TENSOR_FILE).read_bytes() == tensors
            and (folder / CARD_FILE).is_file()
        )
    except OSError:
        return False


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _put_in_place(fresh: Path, folder: Path) -> None:
    entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if not entries:
        fresh.replace(folder)
    else:
        foreign = sorted(entries - {TENSOR_FILE, CARD_FILE, MANIFEST_FILE})
        if foreign and MANIFEST_FILE not in entries:
            raise SFTFileError(f"{folder} holds {foreign[0]} and is not an SFT; save to a new or an empty folder")
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        flush_folder(folder)
        for name in (TENSOR_FILE, CARD_FILE, MANIFEST_FILE):
            (fresh / name).replace(folder / name)
        flush_folder(folder)
    flush_folder(folder.parent)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST_FILE
    try:
        text = file.read_bytes()
    except OSError as error:
        reason = "there is no such folder" if not folder.is_dir() else f"it has no readable {MANIFEST_FILE}"
        raise SFTFileError(f"{folder} is not an SFT: {reason}; fetch or save the SFT again") from error
    return parse_manifest(text, file)


def _read_tensors(file: Path, manifest: Manifest) -> bytes:
    """Read the tensor file once, so that what is hashed is what is parsed."""
    expected = manifest.tensor_file
    try:
        size = file.stat().st_size
        if size != expected.size_bytes:
            raise SFTFileError(f"{file} has {size} bytes, the manifest says {expected.size_bytes}; fetch the SFT again")
        return file.read_bytes()
    except OSError as error:
        raise SFTFileError(f"{file} cannot be read ({error.strerror}); fetch the SFT again") from error


def _refuse_hash(file: Path, actual: str, manifest: Manifest) -> None:
    expected = manifest.tensor_file.sha256
    if actual != expected:
        raise SFTFileError(f"{file} is corrupt: SHA-256 is {actual}, the manifest says {expected}; fetch it again")


def _checked_tensors(file: Path, content: bytes, manifest: Manifest) -> dict[str, Tensor]:
    try:
        tensors = parse_tensors(content)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SFTFileError(f"{file} is not a safetensors file: {error}") from error
    names = {_GAPS, _VALUES, *(f"{section}.{entry.name}" for section in _WHOLE for entry in getattr(manifest, section))}
    for name in sorted(names ^ tensors.keys()):
        found = "missing" if name in names else "not in the manifest"
        raise SFTFileError(f"{file}: tensor {name} is {found}")
    return tensors


def _unpacked(file: Path, manifest: Manifest, tensors: dict[str, Tensor]) -> dict[str, Diff]:
    packing, count = manifest.packing, manifest.support_size
    is_whole = packing.values == "float32"
    work = []
    for name, sizes, dtype in (
        (_GAPS, packing.gap_bytes, np.uint32),
        (_VALUES, packing.value_bytes, np.float32 if is_whole else np.uint16),
    ):
        tensor = tensors[name]
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            raise SFTFileError(f"{file}: tensor {name} is {tensor.dtype}; packed numbers are one row of torch.uint8")
        try:
            work.append(unpack(tensor.numpy().data, sizes, count, dtype))
        except PackingError as error:
            raise SFTFileError(f"{file}: tensor {name} {error}") from error
    try:
        chunks = in_parallel([*work[0], *work[1]])
    except PackingError as error:
        raise SFTFileError(f"{file}: the diffs are corrupt: {error}") from error
    half = len(work[0])
    gaps = np.concatenate([np.zeros(0, np.uint32), *chunks[:half]])
    row = (
        torch.from_numpy(np.concatenate([np.zeros(0, chunks[half].dtype), *chunks[half:]])) if count else torch.zeros(0)
    )
    values = row if is_whole or not count else row.view(torch.bfloat16).float()
    return _placed(file, manifest, gaps, values)


def _placed(file: Path, manifest: Manifest, gaps: np.ndarray[Any, Any], values: Tensor) -> dict[str, Diff]:
    ends = list(accumulate(entry.support_size for entry in manifest.diffs))

    def place(entry: DiffEntry, end: int) -> Diff:
        start = end - entry.support_size
        try:
            indices = gaps_to_indices(gaps[start:end], prod(entry.shape))
        except PackingError as error:
            raise SFTFileError(f"{file}: diff of {entry.name}: {error} (shape {list(entry.shape)})") from error
        return Diff(indices=torch.from_numpy(indices), values=values[start:end], shape=entry.shape)

    work = [partial(place, entry, end) for entry, end in zip(manifest.diffs, ends, strict=True)]
    return {entry.name: diff for entry, diff in zip(manifest.diffs, in_parallel(work), strict=True)}


def _whole(file: Path, section: str, entries: tuple[HeadEntry, ...], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for entry in entries:
        value = tensors[f"{section}.{entry.name}"]
        if value.dtype != _HEAD_DTYPES[entry.dtype] or tuple(value.shape) != entry.shape:
            raise SFTFileError(
                f"{file}: {section} {entry.name} is {value.dtype} of shape {list(value.shape)}, "
                f"the manifest says {entry.dtype} of shape {list(entry.shape)}"
            )
        found[entry.name] = value
    return found
