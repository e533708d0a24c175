"""What a training computes in: precision, threads, the processor's instructions and torch's version.

The bits of an SFT rest on these besides its key. A recipe asks for a precision; where the processor or the GPU has no
instructions for it and would emulate them, twenty times slower or worse, float32 is used in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ltsft.config import Precision

__all__ = [
    "DETAIL",
    "STRETCHES",
    "WORDS",
    "Numerics",
    "autocast",
    "describe_device",
    "is_native",
    "keep_threads",
    "numerics_of",
    "summarise",
    "usable_precision",
]

DETAIL = "numerics"
"""Where it stands among the details of an SFT."""
WORDS: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precisions as people call them."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_BFLOAT16_OF_CPU = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instructions that compute in bfloat16, by torch's names; `avx_ne_convert` only converts."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][\w .,+()/@:-]*$", max_length=100)]


class Numerics(BaseModel):
    """What a training, or a stretch of one between two starts, computed in.

    Attributes:
        device: "cpu", or the name of the GPU.
        precision: of the forward passes; weights and diffs are float32 in each.
        threads: of torch, in each process.
        instructions: the widest vector instructions that torch uses on the CPU, such as "AVX2"; of a GPU, its compute
            capability.
        torch: its version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: Name
    precision: Precision
    threads: Annotated[int, Field(ge=1, le=65536)]
    instructions: Name
    torch: Name

    @classmethod
    def of_device(cls, device: str, *, precision: Precision, threads: int) -> Numerics:
        """Say what is computed in on a device of this machine."""
        name, instructions = "cpu", str(torch.backends.cpu.get_cpu_capability())
        if torch.device(device).type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name = re.sub(r"[^\w .,+()/@:-]", "_", torch.cuda.get_device_name(device))
            instructions = f"sm_{major}{minor}"
        return cls(
            device=name, precision=precision, threads=threads, instructions=instructions, torch=str(torch.__version__)
        )


STRETCHES: TypeAdapter[tuple[Numerics, ...]] = TypeAdapter(Annotated[tuple[Numerics, ...], Field(max_length=1000)])


def numerics_of(details: Mapping[str, Any]) -> tuple[Numerics, ...]:
    """Give what an SFT was computed in, by its details: one for each stretch of its training, in their order.

    There is one unless the training went on elsewhere after an interruption, and none where nothing is on record.

    Raises:
        ValueError: what is on record is not of this form.
    """
    if DETAIL not in details:
        return ()
    try:
        return STRETCHES.validate_json(json.dumps(details[DETAIL]))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in (DETAIL, *problem["loc"]))
        raise ValueError(f"details.{place}: {problem['msg']}") from error


def is_native(precision: Precision, device: str) -> bool:
    """Whether a device computes in a precision by itself, and does not emulate it.

    For a CPU two things are asked: what the processor has, and what oneDNN, which does the work, may use of it
    (``ONEDNN_MAX_CPU_ISA``). Its answer alone is not enough: it is yes for AVX-512 without bfloat16, too. In float16
    nothing is trained on a CPU: Hugging Face's trainer does it on GPUs alone.
    """
    kind = torch.device(device).type
    if precision == "fp32":
        return True
    if kind == "cpu":
        has = torch.cpu.get_capabilities()
        is_there = precision == "bf16" and any(has.get(name, False) for name in _BFLOAT16_OF_CPU)
        return is_there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if kind == "cuda" and precision == "bf16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def usable_precision(precision: Precision, device: str) -> Precision:
    """Give the precision itself where a device has it, else float32."""
    return precision if is_native(precision, device) else "fp32"


def describe_device(device: str) -> str:
    """Name a device for people: what it is, and what it has."""
    found = Numerics.of_device(device, precision="fp32", threads=1)
    return f"this {'processor' if found.device == 'cpu' else found.device} ({found.instructions})"


def autocast(precision: Precision, device: str) -> AbstractContextManager[Any]:
    """Give the autocast context of a precision that the device has (`usable_precision`); float32 has none."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_DTYPES[precision])


@contextmanager
def keep_threads(threads: int) -> Iterator[None]:
    """Compute with so many threads inside the block."""
    before = torch.get_num_threads()
    if threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)


def summarise(stretches: Sequence[Numerics]) -> dict[str, str]:
    """Give each field in words: its values in the order of the stretches, each once in a row."""
    found = {}
    for name in Numerics.model_fields:
        values = [str(getattr(stretch, name)) for stretch in stretches]
        kept = [value for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
        found[name] = ", then ".join(kept)
    return found
