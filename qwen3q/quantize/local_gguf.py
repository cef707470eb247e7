"""From the name of a model to a GGUF file on disk, quantized once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from qwen3q import __version__
from qwen3q.errors import SourceError, UsageError
from qwen3q.files import sole_writer
from qwen3q.models.source import DEMO, GGUF_SUFFIX, ModelSource, describe, resolve
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FileType, file_type
from qwen3q.progress import ProgressFn, silent

DEMO_TYPE = "Q8_0"


def local_gguf(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: ProgressFn = silent,
) -> Path:
    """The GGUF file that ``name`` stands for; downloads and quantizes what is not there yet.

    Args:
        name: a ``.gguf`` file, ``MODEL:TYPE`` such as ``qwen3-8b:Q4_K_M``, or ``demo``.

    Raises:
        UsageError: no file type was given, llama.cpp has no such type, the model is quantized
            already, or the type needs an importance matrix.
        SourceError: no such file or model.
        Qwen3qError: what else can go wrong in a download or in quantizing.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.suffix == GGUF_SUFFIX:
        raise SourceError(f"There is no GGUF file at {path}.")
    if name == DEMO:
        name = f"{DEMO}:{DEMO_TYPE}"
    model, colon, type_name = name.rpartition(":")
    if not colon or "/" in type_name or "\\" in type_name:
        _check_float(name, describe(name, revision=revision, offline=offline))
        raise UsageError(
            f"{name} names no GGUF file.",
            f"Add a type, such as {name}:Q4_K_M, or give the path of a .gguf file.",
        )
    wanted = file_type(type_name)
    described = describe(model, revision=revision, offline=offline)
    _check_float(model, described)
    _check_needs_no_matrix(model, described, wanted)
    source = resolve(model, revision=revision, offline=offline, progress=progress)
    folder = cache_folder() / _key(source)
    with sole_writer(folder / f"{wanted.name}.gguf", wait=True):
        found = _made(folder, wanted)
        if found is not None:
            return found
        from qwen3q.quantize.run import quantize_gguf

        return quantize_gguf(source, [wanted], folder, progress=progress)[0].path


def cache_folder() -> Path:
    """Where quantized files are kept: ``QWEN3Q_CACHE``, or ``qwen3q`` in the user's cache."""
    chosen = os.environ.get("QWEN3Q_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3q" / "gguf"


def _check_float(name: str, source: ModelSource) -> None:
    """Refuses a model that no GGUF file can be made from."""
    if source.config.quant_method is not None:
        raise UsageError(
            f"{name} is quantized already ({source.config.quant_method}), and llama.cpp runs GGUF "
            "files.",
            "Give the float model that it was made from, as MODEL:Q4_K_M, or a .gguf file.",
        )


def _check_needs_no_matrix(name: str, source: ModelSource, wanted: FileType) -> None:
    """Refuses a type whose importance matrix only ``quantize`` makes."""
    if plan_gguf(source.title, source.config, wanted).needs_imatrix:
        raise UsageError(
            f"{name}:{wanted.name} needs an importance matrix: its weights come out broken without "
            "one.",
            f"`qwen3q quantize {name} --to gguf:{wanted.name} --calibration balanced` writes it "
            "with one; give that file, or another type, such as Q3_K_S.",
        )


def _made(folder: Path, wanted: FileType) -> Path | None:
    return next(folder.glob(f"*-{wanted.name}.gguf"), None)


def _key(source: ModelSource) -> str:
    """A folder name that changes with the model's files and with the quantizer."""
    assert source.folder is not None
    files = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(source.folder.iterdir())
        if path.is_file()
    ]
    origin = source.revision or [str(source.folder.resolve()), files]
    digest = hashlib.sha256(json.dumps([origin, __version__]).encode()).hexdigest()
    return f"{source.title.replace(' ', '-')}-{digest[:12]}"
