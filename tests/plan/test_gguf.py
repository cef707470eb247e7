"""The GGUF plan against llama.cpp's dry run and against files people published."""

from __future__ import annotations

import csv
import ctypes
import re
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from qwen3q.errors import UsageError
from qwen3q.formats.gguf_file import Value, ValueType, encode_header, encode_metadata
from qwen3q.formats.gguf_metadata import ARCHITECTURES, architecture_metadata
from qwen3q.models.catalog import catalog, find_release
from qwen3q.models.tensors import parameter_count
from qwen3q.plan.gguf import padded, plan_gguf, tensor_type
from qwen3q.plan.gguf_types import FILE_TYPES, GGML_TYPES, file_type

PUBLISHED = list(csv.DictReader((Path(__file__).parent / "published_gguf_sizes.csv").open()))
HEADER_BYTES = range(5_950_000, 5_985_000)
"""Header, tokenizer and padding of the published files: the rest beside the tensors."""


@pytest.mark.parametrize(
    "row", [r for r in PUBLISHED if not r["note"]], ids=lambda r: f"{r['repo']}-{r['file_type']}"
)
def test_published_files_to_the_byte(row):
    release = find_release(row["model"])
    plan = plan_gguf(
        release.title,
        release.config,
        FILE_TYPES[row["file_type"]],
        has_imatrix=row["imatrix"] == "yes",
    )
    published = int(row["file_bytes"])
    assert published - plan.tensor_bytes in HEADER_BYTES
    assert plan.file_bytes == pytest.approx(published, rel=2e-4)


def test_untied_output_explains_the_one_that_differs():
    """ggml-org's 1.7B stores the tied output.weight a second time, as Q6_K."""
    (row,) = (r for r in PUBLISHED if r["repo"] == "ggml-org/Qwen3-1.7B-GGUF")
    config = replace(find_release("qwen3-1.7b").config, tie_word_embeddings=False)
    plan = plan_gguf("m", config, FILE_TYPES["Q4_K_M"])
    assert int(row["file_bytes"]) - plan.tensor_bytes in HEADER_BYTES


def header_only_file(config, path: Path) -> Path:
    """A sparse BF16 GGUF with no vocabulary: enough for llama.cpp to plan a quantization."""
    plan = plan_gguf("m", config, FILE_TYPES["BF16"])
    metadata = {
        "general.architecture": Value(ValueType.STRING, ARCHITECTURES[config.model_type]),
        "tokenizer.ggml.model": Value(ValueType.STRING, "no_vocab"),
        **architecture_metadata(config),
    }
    offset, entries = 0, []
    for tensor in plan.tensors:
        entries.append((tensor.name, tensor_type(tensor), tensor.shape, offset))
        offset += padded(tensor.nbytes)
    header = encode_header(encode_metadata(metadata), len(metadata), entries)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)
    return path


def llama_types(source: Path, ftype: int, imatrix: bool) -> dict[str, str]:
    """Each tensor's type as llama.cpp's dry run logs it."""
    import llama_cpp

    from qwen3q.llama.capi import collect_log

    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def collect(level, text, data):
        lines.append(text.decode(errors="replace"))

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = ftype, True, 1
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * 1)()
    if imatrix:
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(str(source).encode(), b"unused", ctypes.byref(params))
    finally:
        collect_log()
    log = "".join(lines)
    assert code == 0, log[-400:]
    types = {}
    pattern = r"\] (\S+) +- \[.*?type = +(\w+), (?:warning.*?)?size = [^\n]*?(?:\((\w+)\))?\n"
    for name, before, after in re.findall(pattern, log):
        types[name] = (after or before).upper()
    return types


@pytest.mark.parametrize("release", catalog(), ids=lambda r: r.name)
def test_types_equal_llama_dry_run_for_every_release(release, tmp_path):
    """Every file type, with and without an importance matrix."""
    source = header_only_file(release.config, tmp_path / "m.gguf")
    for kind in FILE_TYPES.values():
        for imatrix in (False, True):
            plan = plan_gguf("m", release.config, kind, has_imatrix=imatrix)
            ours = {t.name: t.type for t in plan.tensors}
            theirs = llama_types(source, kind.id, imatrix)
            if kind.name == "F32":  # llama.cpp keeps F32 norms, converts the rest
                assert set(theirs.values()) <= {"F32", "BF16"}
                continue
            assert ours == theirs, (kind.name, imatrix)


def test_block_sizes_are_ggufs():
    for name, ours in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType[name]
        assert (ours.id, ours.block_size, ours.type_size) == (
            theirs.value,
            *gguf.GGML_QUANT_SIZES[theirs],
        )


def test_file_type_numbers_are_ggufs():
    for name, ours in FILE_TYPES.items():
        prefix = "ALL_" if name == "F32" else "MOSTLY_"
        assert gguf.LlamaFileType[prefix + name].value == ours.id


def test_tensor_names_are_ggufs():
    config = find_release("qwen3-30b-a3b").config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, config.num_hidden_layers)
    for tensor in plan_gguf("m", config, FILE_TYPES["Q8_0"]).tensors:
        source = re.sub(r"\.experts\.\d+\.", ".experts.", tensor.sources[0].name)
        assert names.get_name(source, try_suffixes=(".weight",)) == tensor.name


def test_parameters_are_counted_once():
    for release in catalog():
        plan = plan_gguf("m", release.config, FILE_TYPES["F16"])
        assert plan.parameters == parameter_count(release.config)


def test_unknown_type_suggests_one():
    with pytest.raises(UsageError, match="Q4_K_X") as caught:
        file_type("Q4_K_X")
    assert "Q4_K_" in caught.value.hint
