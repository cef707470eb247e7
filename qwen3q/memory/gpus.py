"""The GPU catalog: memory that a program can really use, bandwidth, compute, and the names.

``data/gpus.csv`` holds one part per line; a part sold with several memory sizes lists them with
slashes. ``memory_mib`` is what the driver reports where that is known, ``usable_mib`` what a
program was seen to get (context included), else 99 % of it; of unified memory, the share that the
driver hands out by default. ``uncertain`` names the columns that are not from a data sheet or a
measurement.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from itertools import combinations

from qwen3q.errors import UsageError

MIB = 1 << 20

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": MIB, "gib": 1 << 30}
_NOISE = frozenset(
    {
        "nvidia", "geforce", "amd", "ati", "radeon", "intel", "apple", "tesla", "quadro",
        "instinct", "graphics", "gpu", "generation", "edition", "workstation", "server", "design",
        "series", "r", "tm", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "gddr7", "ai",
    }
)  # fmt: skip
_OPTIONAL = frozenset(
    {"rtx", "gtx", "rx", "arc", "blackwell", "sxm", "pcie", "30core", "32core", "40core", "spark"}
)
_SIZE_WORD = re.compile(r"\d+(gb|gib)")
_NEAR_SIZE = 0.12
_MOST_BYTES = 1 << 60


class Family(StrEnum):
    """Parts whose memory and speed behave alike."""

    NVIDIA = "nvidia"
    PASCAL = "nvidia-pascal"
    NVIDIA_UNIFIED = "nvidia-unified"
    RADEON = "radeon"
    INSTINCT = "instinct"
    STRIX_HALO = "strix-halo"
    ARC = "arc"
    APPLE = "apple"
    CPU = "cpu"
    UNKNOWN = "unknown"


_BACKENDS = {
    Family.NVIDIA: "CUDA", Family.PASCAL: "CUDA", Family.NVIDIA_UNIFIED: "CUDA",
    Family.RADEON: "ROCm", Family.INSTINCT: "ROCm", Family.STRIX_HALO: "ROCm",
    Family.ARC: "SYCL", Family.APPLE: "Metal", Family.CPU: "CPU",
    Family.UNKNOWN: "GPU",
}  # fmt: skip


_NICKNAMES = {
    "GB10 (DGX Spark)": ("gb10", "dgxspark", "spark"),
    "Strix Halo Radeon 8060S 128GB": ("strixhalo", "8060s", "ryzenmax395"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One part with one memory size: a GPU, or a processor with the RAM of its machine.

    Attributes:
        memory_bytes: as the driver reports it; nominal where ``memory`` is uncertain.
        usable_bytes: what programs can allocate, their own context included.
        bandwidth: bytes per second; 0 where unknown.
        tflops: dense FP16 with FP32 accumulation; 0 where unknown.
        uncertain: values that are estimates: ``memory``, ``usable``, ``TFLOPS``, ``all``.
    """

    name: str
    kind: str
    family: Family
    memory_bytes: int
    usable_bytes: int
    bandwidth: float
    tflops: float
    uncertain: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """llama.cpp's name for such a device, without its number."""
        return _BACKENDS[self.family]

    @property
    def shares_host_memory(self) -> bool:
        return self.family in (Family.APPLE, Family.STRIX_HALO, Family.NVIDIA_UNIFIED)


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every part in every memory size, in the file's order."""
    text = (resources.files("qwen3q.data") / "gpus.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        sizes = row["memory_mib"].split("/")
        usable = row["usable_mib"].split("/")
        for size, use in zip(sizes, usable, strict=True):
            several = f" {int(size) // 1024}GB" if len(sizes) > 1 else ""
            found.append(
                Gpu(
                    name=row["name"] + several,
                    kind=row["class"],
                    family=Family(row["family"]),
                    memory_bytes=int(size) * MIB,
                    usable_bytes=int(use) * MIB,
                    bandwidth=float(row["bandwidth_gb_s"]) * 1e9,
                    tflops=float(row["fp16_tflops"]),
                    uncertain=tuple(row["uncertain"].split("; ")) if row["uncertain"] else (),
                )
            )
    return tuple(found)


def find_gpu(name: str) -> Gpu:
    """The part called ``name``: ``RTX 4090``, ``4090``, ``m4 max 64gb``, ``7900xtx``, ...

    A part sold with several memory sizes, named without one, is taken with its smallest.

    Raises:
        UsageError: no such part; the hint names the nearest.
    """
    found = match_gpu(name)
    if found is not None:
        return found
    raise UsageError(f"No GPU is called {name!r} in the catalog.", _suggestion(name))


def match_gpu(name: str) -> Gpu | None:
    """The part called ``name``, or None."""
    words = _words(name)
    found = _aliases().get("".join(words))
    sizes = [word for word in words if _SIZE_WORD.fullmatch(word)]
    if found is None and sizes:
        found = _aliases().get("".join(word for word in words if word not in sizes))
        nominal = float(re.sub(r"\D", "", sizes[0])) * (1 << 30)
        if found is not None and abs(found.memory_bytes / nominal - 1) > _NEAR_SIZE:
            return None
    return found


def other_sizes(name: str, gpu: Gpu) -> list[Gpu]:
    """The same part with other memory, where ``name`` did not say which."""
    if any(_SIZE_WORD.fullmatch(word) for word in _words(name)):
        return []
    base = _without_size(gpu)
    return [other for other in gpus() if other is not gpu and _without_size(other) == base]


def custom_gpu(memory_bytes: int, like: Gpu | None = None, amount: str = "") -> Gpu:
    """A part with just an amount of free memory; ``like`` gives the rest.

    Args:
        amount: the memory as it was typed, for the name.
    """
    if like is not None:
        return replace(like, memory_bytes=memory_bytes, usable_bytes=memory_bytes)
    label = amount or f"{memory_bytes / (1 << 30):.4g} GiB"
    return Gpu(f"{label} GPU", "custom", Family.UNKNOWN, memory_bytes, memory_bytes, 0.0, 0.0)


def parse_bytes(text: str) -> int:
    """Bytes of ``24GiB``, ``24GB``, ``24576MiB`` or a bare number of GiB.

    Raises:
        UsageError: not an amount of memory.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text.lower())
    suffix = (match[2] or "gib") if match else ""
    suffix = {"g": "gib", "m": "mib", "k": "kib"}.get(suffix, suffix)
    try:
        amount = float(match[1]) * _SIZES[suffix] if match else 0.0
    except (KeyError, ValueError):
        amount = 0.0
    if not 1 <= amount < _MOST_BYTES:
        raise UsageError(f"--vram {text!r} is no amount of memory.", "Write it like 24GiB or 24GB.")
    return round(amount)


def _without_size(gpu: Gpu) -> list[str]:
    return [word for word in _words(gpu.name) if not _SIZE_WORD.fullmatch(word)]


def _suggestion(name: str) -> str:
    if "".join(_words(name)) in ("cpu", "none"):
        return "A run on the processor alone is --gpu none, without another GPU or a count."
    aliases = _aliases()
    near = difflib.get_close_matches("".join(_words(name)), aliases, n=6, cutoff=0.55)
    names = list(dict.fromkeys(aliases[key].name for key in near))[:3]
    by_memory = "For any other card give its memory: --vram 24GiB."
    return f"Did you mean {', '.join(names)}? {by_memory}" if names else by_memory


def _words(name: str) -> list[str]:
    """A name's telling words: ``NVIDIA GeForce RTX 4060 Ti (16 GB)`` is rtx, 4060, ti, 16gb."""
    text = re.sub(r"[^a-z0-9]+", " ", name.lower())
    text = re.sub(r"\b(\d+) ?(gb|gib|g)\b", r"\1gb", text)
    text = re.sub(r"\b(\d+) ?core\b", r"\1core", text)
    text = re.sub(r"\bsxm\d?\b", "sxm", text).replace("mobile", "laptop")
    return [word for word in text.split() if word not in _NOISE]


@cache
def _aliases() -> dict[str, Gpu]:
    """Every way to write a part: its words with any of the optional ones left out.

    Where parts share one, the one that left out least has it, then the smallest: what fits
    there fits its larger siblings.
    """
    ranked: dict[str, tuple[tuple[float, ...], Gpu]] = {}
    for gpu in gpus():
        words = _words(gpu.name)
        optional = [w for w in words if w in _OPTIONAL or _SIZE_WORD.fullmatch(w)]
        for count in range(len(optional) + 1):
            for left_out in combinations(optional, count):
                alias = "".join(word for word in words if word not in left_out)
                rank = (count, gpu.memory_bytes, -gpu.bandwidth)
                if alias and (alias not in ranked or rank < ranked[alias][0]):
                    ranked[alias] = (rank, gpu)
    aliases = {alias: gpu for alias, (_, gpu) in ranked.items()}
    for part, others in _NICKNAMES.items():
        for other in others:
            aliases[other] = aliases["".join(_words(part))]
    return aliases
