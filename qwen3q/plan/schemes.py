"""Schemes of the safetensors formats: what ``gptq:int4`` means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from enum import StrEnum

from qwen3q.errors import UsageError
from qwen3q.plan.gguf_types import FILE_TYPES

PER_CHANNEL = -1
"""A group size of -1: one scale per output channel, as GPTQ configs spell it."""

GROUP_SIZES = (32, 64, 128, PER_CHANNEL)
FP8_BLOCK = 128
NVFP4_GROUP = 16
NF4_BLOCK = 64


class Layout(StrEnum):
    """How a linear lies on disk; one file in ``qwen3q/formats/`` each."""

    GPTQ = "gptq"
    AWQ = "awq"
    PACK_QUANTIZED = "pack-quantized"
    INT_QUANTIZED = "int-quantized"
    BNB_NF4 = "bnb-nf4"
    BNB_INT8 = "bnb-int8"
    FP8 = "fp8"
    NVFP4 = "nvfp4"
    FLOAT = "float"


UNIFORM_LAYOUTS = frozenset({Layout.GPTQ, Layout.AWQ, Layout.PACK_QUANTIZED, Layout.INT_QUANTIZED})
"""Layouts that hold a ``QuantizedLinear``: integer codes on a grid, solved with calibration."""

GROUPED_LAYOUTS = UNIFORM_LAYOUTS - {Layout.INT_QUANTIZED}
"""Those with a scale per group of inputs."""


@dataclass(frozen=True, slots=True)
class Override:
    """What some linears get instead of the scheme's own numbers.

    Attributes:
        pattern: module name, where ``*`` stands for any text: ``model.layers.0.mlp.*``.
        keep_float: leave the linear as it is.
        bits, group_size, symmetric: replace the scheme's where not None.
    """

    pattern: str
    keep_float: bool = False
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None

    def matches(self, module: str) -> bool:
        """Whether this exception is about ``module``."""
        return re.fullmatch(self.regex, module) is not None

    @property
    def regex(self) -> str:
        """The pattern as a regular expression, for formats whose configs hold those."""
        return re.escape(self.pattern).replace(r"\*", ".*").replace(r"\?", ".") + "$"


@dataclass(frozen=True, slots=True)
class Scheme:
    """One target format with its numbers.

    Attributes:
        name: canonical, such as ``gptq:int4``.
        layout: how a linear lies on disk.
        bits: width of a weight.
        group_size: inputs that share a scale; ``PER_CHANNEL`` for one scale per output.
        symmetric: the zero point is the middle code.
        scale_dtype: dtype that scales are stored in; solvers round to it before they round codes.
        activation_bits: width of activations at inference, None for float activations.
        overrides: exceptions by module; the first pattern that matches counts.
    """

    name: str
    layout: Layout
    bits: int
    group_size: int = PER_CHANNEL
    symmetric: bool = True
    scale_dtype: str = "float16"
    activation_bits: int | None = None
    overrides: tuple[Override, ...] = ()

    @property
    def min_zero(self) -> int:
        """Smallest zero point the layout can store: GPTQ v1 holds zero - 1."""
        return 1 if self.layout is Layout.GPTQ else 0

    @property
    def is_uniform(self) -> bool:
        """Whether its linears are integer codes on a grid (``QuantizedLinear``)."""
        return self.layout in UNIFORM_LAYOUTS

    @property
    def is_plan_only(self) -> bool:
        """Whether it can be planned and read, but not written."""
        return self.layout is Layout.NVFP4

    @property
    def suffix(self) -> str:
        """What the Hub appends to a model's name: ``GPTQ-Int4``, ``AWQ``, ``W4A16``, ..."""
        suffix = _SUFFIXES[self.layout].format(bits=self.bits)
        default = _KNOWN[self.name]
        if self.group_size != default.group_size:
            suffix += "-channel" if self.group_size == PER_CHANNEL else f"-g{self.group_size}"
        if self.symmetric != default.symmetric:
            suffix += "-sym" if self.symmetric else "-asym"
        return suffix if self.layout is not Layout.FLOAT else self.name.upper()

    def group_of(self, in_features: int) -> int:
        """Inputs that share a scale in a linear with ``in_features`` inputs."""
        return in_features if self.group_size == PER_CHANNEL else self.group_size

    def at(self, name: str) -> Scheme | None:
        """The scheme of one linear (module or ``.weight`` name) after overrides; None: keep float.

        Of a scheme without quantization (``bf16``) it is None for every linear.
        """
        if self.layout is Layout.FLOAT:
            return None
        module = name.removesuffix(".weight")
        for override in self.overrides:
            if override.matches(module):
                return None if override.keep_float else self.with_override(override)
        return self

    def with_override(self, override: Override) -> Scheme:
        """This scheme with an override's numbers, without further overrides.

        Raises:
            UsageError: the layout has no such numbers.
        """
        return replace(_apply(self, override), overrides=())

    def describe(self) -> str:
        """``4 bits, groups of 128, symmetric``, for people."""
        if self.layout is Layout.FLOAT:
            return f"{self.name}, not quantized"
        if self.layout is Layout.FP8:
            return f"8-bit float, blocks of {FP8_BLOCK} x {FP8_BLOCK}"
        groups = (
            "one scale per output"
            if self.group_size == PER_CHANNEL
            else f"groups of {self.group_size}"
        )
        words = [f"{self.bits} bits", groups]
        if self.is_uniform:
            words.append("symmetric" if self.symmetric else "asymmetric")
        if self.activation_bits:
            words.append(f"activations {self.activation_bits} bits")
        return ", ".join(words)


_SUFFIXES = {
    Layout.GPTQ: "GPTQ-Int{bits}",
    Layout.AWQ: "AWQ",
    Layout.PACK_QUANTIZED: "W{bits}A16",
    Layout.INT_QUANTIZED: "W8A8",
    Layout.BNB_NF4: "bnb-nf4",
    Layout.BNB_INT8: "bnb-int8",
    Layout.FP8: "FP8",
    Layout.NVFP4: "NVFP4",
    Layout.FLOAT: "",
}

_KNOWN = {
    s.name: s
    for s in (
        Scheme("gptq:int2", Layout.GPTQ, 2, 32),
        Scheme("gptq:int3", Layout.GPTQ, 3, 128),
        Scheme("gptq:int4", Layout.GPTQ, 4, 128),
        Scheme("gptq:int8", Layout.GPTQ, 8, 128),
        Scheme("awq:int4", Layout.AWQ, 4, 128, symmetric=False),
        Scheme("int4", Layout.PACK_QUANTIZED, 4, 128, scale_dtype="bfloat16"),
        Scheme("w8a16", Layout.PACK_QUANTIZED, 8, 128, scale_dtype="bfloat16"),
        Scheme("int8", Layout.INT_QUANTIZED, 8, scale_dtype="bfloat16", activation_bits=8),
        Scheme("bnb:nf4", Layout.BNB_NF4, 4, NF4_BLOCK, scale_dtype="float32"),
        Scheme("bnb:int8", Layout.BNB_INT8, 8, scale_dtype="float32"),
        Scheme("fp8", Layout.FP8, 8, FP8_BLOCK, scale_dtype="bfloat16", activation_bits=8),
        Scheme("nvfp4", Layout.NVFP4, 4, NVFP4_GROUP, scale_dtype="float8_e4m3fn"),
        Scheme("bf16", Layout.FLOAT, 16),
        Scheme("fp16", Layout.FLOAT, 16),
    )
}

_ALIASES = {
    "gptq": "gptq:int4",
    "gptq-int4": "gptq:int4",
    "gptq-int8": "gptq:int8",
    "awq": "awq:int4",
    "w8a8": "int8",
    "w4a16": "int4",
    "nf4": "bnb:nf4",
    "bnb": "bnb:nf4",
    "bnb-nf4": "bnb:nf4",
    "bnb-int8": "bnb:int8",
    "bfloat16": "bf16",
    "float16": "fp16",
}

_BITS = {
    Layout.GPTQ: (2, 3, 4, 8),
    Layout.AWQ: (4,),
    Layout.PACK_QUANTIZED: (4, 8),
    Layout.INT_QUANTIZED: (8,),
}


def scheme_names() -> list[str]:
    """Every scheme of a safetensors folder, in the order that help shows them."""
    return list(_KNOWN)


def parse_scheme(
    name: str,
    *,
    group_size: int | None = None,
    bits: int | None = None,
    symmetric: bool | None = None,
    overrides: tuple[Override, ...] = (),
) -> Scheme:
    """The scheme called ``name``, in any case, with its numbers replaced where not None.

    Args:
        group_size: 32, 64, 128, or ``PER_CHANNEL`` for one scale per output channel.
        bits: for the layouts that have several: GPTQ 2, 3, 4, 8; compressed-tensors 4, 8.
        overrides: exceptions by module name.

    Raises:
        UsageError: an unknown name, a ``gguf:`` name (those are planned by ``qwen3q.plan.gguf``),
            or a number that the layout can't hold.
    """
    key = name.strip().lower()
    if key.startswith("gguf"):
        raise UsageError(
            f"{name!r} is a GGUF file type, not a scheme of a safetensors folder.",
            "It is written by llama.cpp's quantizers: see qwen3q.plan.gguf.plan_gguf.",
        )
    scheme = _KNOWN.get(_ALIASES.get(key, key))
    if scheme is None:
        raise UsageError(f"{name!r} is no format that qwen3q writes.", _suggest(key))
    change = Override("*", bits=bits, group_size=group_size, symmetric=symmetric)
    scheme = replace(_apply(scheme, change), overrides=overrides)
    for override in overrides:
        if not override.keep_float:
            _check_override(scheme, override)
    return scheme


def codes_per_pack(bits: int) -> int:
    """Values after which packed codes end on a word of 32 bits."""
    return 32 if bits == 3 else 32 // bits


def group_size_name(size: int) -> str:
    """A group size as options and errors spell it."""
    return "-1 (per channel)" if size == PER_CHANNEL else str(size)


def _apply(scheme: Scheme, change: Override) -> Scheme:
    bits = scheme.bits if change.bits is None else change.bits
    group_size = scheme.group_size if change.group_size is None else change.group_size
    symmetric = scheme.symmetric if change.symmetric is None else change.symmetric
    if (bits, group_size, symmetric) == (scheme.bits, scheme.group_size, scheme.symmetric):
        return scheme
    if not scheme.is_uniform:
        raise UsageError(f"{scheme.name} has no options: bits and groups are fixed.")
    if bits not in _BITS[scheme.layout]:
        raise UsageError(
            f"{scheme.name} can't have {bits} bits.",
            f"The layout has {', '.join(map(str, _BITS[scheme.layout]))}.",
        )
    if scheme.layout is Layout.INT_QUANTIZED and (group_size != PER_CHANNEL or not symmetric):
        raise UsageError(
            f"{scheme.name} has one symmetric scale per output channel and no groups.",
            "Leave --group-size and --asym away, or take gptq:int8.",
        )
    if group_size not in GROUP_SIZES:
        raise UsageError(
            f"{group_size} is no group size.",
            f"Known: {', '.join(map(group_size_name, GROUP_SIZES))}.",
        )
    name = scheme.name
    if scheme.layout is Layout.GPTQ:
        name = f"gptq:int{bits}"
    elif scheme.layout is Layout.PACK_QUANTIZED:
        name = "int4" if bits == 4 else "w8a16"
    return replace(scheme, name=name, bits=bits, group_size=group_size, symmetric=symmetric)


def _check_override(scheme: Scheme, override: Override) -> None:
    changed = _apply(scheme, override)
    if changed is not scheme and scheme.layout is Layout.AWQ:
        raise UsageError(
            f"AWQ has one group size for all linears, so {override.pattern!r} can't have its own.",
            "It can be kept in float; bits and groups by tensor are for gptq and int4.",
        )


def _suggest(key: str) -> str:
    gguf = {name.lower(): f"gguf:{name}" for name in FILE_TYPES}
    if key in gguf:
        return f"Did you mean {gguf[key]}?"
    known = {
        name: f"{name} (only estimated)" if scheme.is_plan_only else name
        for name, scheme in _KNOWN.items()
    }
    names = gguf | known | _ALIASES
    near = difflib.get_close_matches(key, names, n=4, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(dict.fromkeys(names[name] for name in near))}?"
    return f"Known: {', '.join(known.values())}, gguf:Q4_K_M and other GGUF types."
