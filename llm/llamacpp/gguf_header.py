"""Read the metadata of a GGUF file, without its weights and without the `gguf` package."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
# Vocabularies have 50,000 entries and more, which are not needed here.
_LONGEST_ARRAY = 64
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS of ggml

# Others that are not decoders (BERT, diffusion language models) have `attention.causal` false.
_NOT_DECODERS = ("", "clip", "t5", "t5encoder")

# llama.cpp's llama_ftype, the value of `general.file_type`.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
}


class GgufError(ValueError):
    """The file is not a GGUF file that llama.cpp can read; the message says why."""


@dataclass(frozen=True)
class Header:
    """The metadata of one GGUF file.

    Attributes:
        metadata: key to value; arrays of more than 64 entries are None.
        parameters: number of weights in all tensors.
    """

    metadata: dict[str, Any] = field(repr=False)
    parameters: int

    @property
    def architecture(self) -> str:
        """Such as "llama", or "clip" for a projector; "" if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_length(self) -> int:
        """The context in tokens that the model was trained for; 0 if the file does not say."""
        value = self.metadata.get(f"{self.architecture}.context_length")
        return int(value) if isinstance(value, (int, float)) and 0 < value < 2**32 else 0

    @property
    def chat_template(self) -> str:
        """The Jinja template of the model's chat; "" if there is none."""
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else ""

    @property
    def can_chat(self) -> bool:
        """Whether it is a decoder with a chat template, not a text encoder or diffusion model."""
        return (
            bool(self.chat_template)
            and self.architecture not in _NOT_DECODERS
            and f"{self.architecture}.pooling_type" not in self.metadata
            and self.metadata.get(f"{self.architecture}.attention.causal", True) is not False
        )

    @property
    def quantization(self) -> str:
        """Such as "Q8_0"; "unknown" if the file does not say."""
        value = self.metadata.get("general.file_type")
        return _FILE_TYPES.get(value, "unknown") if isinstance(value, int) else "unknown"


def read_header(path: Path) -> Header:
    """Return the header of the GGUF file at `path`.

    Raises:
        GgufError: the file is not a GGUF file, or ends within its header.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise GgufError("it does not begin with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header()
            except (struct.error, OverflowError):  # OverflowError: an offset beyond 64 bits
                raise GgufError("it ends within its header") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(_MAGIC)

    def header(self) -> Header:
        version = self._scalar(_U32)
        if version not in _VERSIONS:
            raise GgufError(f"its GGUF version is {version}; 2 and 3 can be read")
        tensors, keys = self._scalar(_U64), self._scalar(_U64)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            metadata[key] = self._value(self._scalar(_U32))
        return Header(metadata, sum(self._tensor_elements() for _ in range(tensors)))

    def _scalar(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self._data, self._at)
        self._at += kind.size
        return value

    def _skip(self, size: int) -> int:
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise struct.error
        self._at = end
        return start

    def _string(self) -> str:
        start = self._skip(self._scalar(_U64))
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise GgufError(f"its header holds a value of the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any] | None:
        kind, count = self._scalar(_U32), self._scalar(_U64)
        if kind == _ARRAY:
            raise GgufError("its header holds an array of arrays")
        if count <= _LONGEST_ARRAY:
            return [self._value(kind) for _ in range(count)]
        if kind in _SCALARS:
            self._skip(count * _SCALARS[kind].size)
            return None
        if kind != _STRING:
            raise GgufError(f"its header holds an array of the unknown type {kind}")
        self._skip_strings(count)
        return None

    def _skip_strings(self, count: int) -> None:
        # Inlined, which halves the time of a header: vocabulary and merges are 300,000 strings.
        data, at, unpack = self._data, self._at, _U64.unpack_from
        for _ in range(count):
            at += _U64.size + unpack(data, at)[0]
        self._at = at
        self._skip(0)

    def _tensor_elements(self) -> int:
        self._string()
        dimensions = self._scalar(_U32)
        if dimensions > _MAX_DIMENSIONS:
            raise GgufError(f"it has a tensor of {dimensions} dimensions")
        shape = [self._scalar(_U64) for _ in range(dimensions)]
        self._skip(_U32.size + _U64.size)  # type and offset
        return math.prod(shape)
