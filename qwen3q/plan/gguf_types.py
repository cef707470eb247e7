"""GGML tensor types and llama.cpp file types: names, numbers, block sizes.

Numbers are those of ``enum ggml_type`` (ggml.h) and ``enum llama_ftype`` (llama.h).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from qwen3q.errors import UsageError

GGUF_PREFIX = "gguf:"
"""Before a file type's name, where any format can stand."""


@dataclass(frozen=True, slots=True)
class GgmlType:
    """How one tensor is stored: ``block_size`` weights in ``type_size`` bytes."""

    name: str
    id: int
    block_size: int
    type_size: int

    @property
    def is_quantized(self) -> bool:
        return self.block_size > 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` weights (``ggml_row_size``)."""
        return columns // self.block_size * self.type_size


GGML_TYPES = {
    t.name: t
    for t in (
        GgmlType("F32", 0, 1, 4),
        GgmlType("F16", 1, 1, 2),
        GgmlType("Q4_0", 2, 32, 18),
        GgmlType("Q4_1", 3, 32, 20),
        GgmlType("Q5_0", 6, 32, 22),
        GgmlType("Q5_1", 7, 32, 24),
        GgmlType("Q8_0", 8, 32, 34),
        GgmlType("Q2_K", 10, 256, 84),
        GgmlType("Q3_K", 11, 256, 110),
        GgmlType("Q4_K", 12, 256, 144),
        GgmlType("Q5_K", 13, 256, 176),
        GgmlType("Q6_K", 14, 256, 210),
        GgmlType("IQ2_XXS", 16, 256, 66),
        GgmlType("IQ2_XS", 17, 256, 74),
        GgmlType("IQ3_XXS", 18, 256, 98),
        GgmlType("IQ1_S", 19, 256, 50),
        GgmlType("IQ4_NL", 20, 32, 18),
        GgmlType("IQ3_S", 21, 256, 110),
        GgmlType("IQ2_S", 22, 256, 82),
        GgmlType("IQ4_XS", 23, 256, 136),
        GgmlType("I8", 24, 1, 1),
        GgmlType("I16", 25, 1, 2),
        GgmlType("I32", 26, 1, 4),
        GgmlType("I64", 27, 1, 8),
        GgmlType("F64", 28, 1, 8),
        GgmlType("IQ1_M", 29, 256, 56),
        GgmlType("BF16", 30, 1, 2),
        GgmlType("TQ1_0", 34, 256, 54),
        GgmlType("TQ2_0", 35, 256, 66),
        GgmlType("MXFP4", 39, 32, 17),
        GgmlType("NVFP4", 40, 64, 36),
    )
}
GGML_TYPES_BY_ID = {t.id: t for t in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class FileType:
    """A named mix of tensor types, such as Q4_K_M.

    Attributes:
        default: the type that most tensors get.
        needs_imatrix: llama.cpp refuses to write it without an importance matrix.
    """

    name: str
    id: int
    default: GgmlType
    needs_imatrix: bool = False


FILE_TYPES = {
    f.name: f
    for f in (
        FileType("F32", 0, GGML_TYPES["F32"]),
        FileType("F16", 1, GGML_TYPES["F16"]),
        FileType("BF16", 32, GGML_TYPES["BF16"]),
        FileType("Q8_0", 7, GGML_TYPES["Q8_0"]),
        FileType("Q4_0", 2, GGML_TYPES["Q4_0"]),
        FileType("Q4_1", 3, GGML_TYPES["Q4_1"]),
        FileType("Q5_0", 8, GGML_TYPES["Q5_0"]),
        FileType("Q5_1", 9, GGML_TYPES["Q5_1"]),
        FileType("Q2_K", 10, GGML_TYPES["Q2_K"]),
        FileType("Q2_K_S", 21, GGML_TYPES["Q2_K"], needs_imatrix=True),
        FileType("Q3_K_S", 11, GGML_TYPES["Q3_K"]),
        FileType("Q3_K_M", 12, GGML_TYPES["Q3_K"]),
        FileType("Q3_K_L", 13, GGML_TYPES["Q3_K"]),
        FileType("Q4_K_S", 14, GGML_TYPES["Q4_K"]),
        FileType("Q4_K_M", 15, GGML_TYPES["Q4_K"]),
        FileType("Q5_K_S", 16, GGML_TYPES["Q5_K"]),
        FileType("Q5_K_M", 17, GGML_TYPES["Q5_K"]),
        FileType("Q6_K", 18, GGML_TYPES["Q6_K"]),
        FileType("IQ4_NL", 25, GGML_TYPES["IQ4_NL"]),
        FileType("IQ4_XS", 30, GGML_TYPES["IQ4_XS"]),
        FileType("MXFP4_MOE", 38, GGML_TYPES["MXFP4"]),
        FileType("IQ1_S", 24, GGML_TYPES["IQ1_S"], needs_imatrix=True),
        FileType("IQ1_M", 31, GGML_TYPES["IQ1_M"], needs_imatrix=True),
        FileType("IQ2_XXS", 19, GGML_TYPES["IQ2_XXS"], needs_imatrix=True),
        FileType("IQ2_XS", 20, GGML_TYPES["IQ2_XS"], needs_imatrix=True),
        FileType("IQ2_S", 28, GGML_TYPES["IQ2_XS"], needs_imatrix=True),
        FileType("IQ2_M", 29, GGML_TYPES["IQ2_S"], needs_imatrix=True),
        FileType("IQ3_XXS", 23, GGML_TYPES["IQ3_XXS"], needs_imatrix=True),
        FileType("IQ3_XS", 22, GGML_TYPES["IQ3_S"], needs_imatrix=True),
        FileType("IQ3_S", 26, GGML_TYPES["IQ3_S"]),
        FileType("IQ3_M", 27, GGML_TYPES["IQ3_S"]),
    )
}


def gguf_format(number: object) -> str:
    """``gguf:Q4_K_M`` of a file's ``general.file_type``; ``gguf:unknown`` of what is none."""
    name = next((kind.name for kind in FILE_TYPES.values() if kind.id == number), "unknown")
    return GGUF_PREFIX + name


def file_type(name: str) -> FileType:
    """The file type called ``name``, in any case.

    Raises:
        UsageError: llama.cpp has no such file type; suggests the nearest.
    """
    found = FILE_TYPES.get(name.upper())
    if found is None:
        near = difflib.get_close_matches(name.upper(), FILE_TYPES, n=3, cutoff=0.4)
        raise UsageError(
            f"{name!r} is no GGUF file type.",
            f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(FILE_TYPES)}.",
        )
    return found
