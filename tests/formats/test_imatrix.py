"""Importance matrices: llama.cpp's file, and its quantizer with the same one."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import random_model

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import CheckpointError, DiskError, ModelError
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.formats.imatrix import read_imatrix
from qwen3q.models.config import read_config
from qwen3q.models.source import describe
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize.gguf import gguf_jobs, write_gguf
from qwen3q.quantize.run import QuantizeOptions, quantize_targets


@pytest.fixture(scope="module")
def small(tmp_path_factory, demo_folder) -> Path:
    """Two layers with four experts."""
    return random_model(
        tmp_path_factory.mktemp("small") / "moe",
        demo_folder,
        model_type="qwen3_moe",
        num_hidden_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )


def importance_file(
    path: Path,
    config,
    *,
    unseen: tuple[str, int] | None = None,
    text: str | None = "text",
    chunks: int = 5,
) -> Path:
    """An importance matrix as llama-imatrix lays it out; ``unseen`` expert has count 0."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [] if text is None else [text])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in plan_gguf("m", config, FILE_TYPES["F16"]).tensors:
        if "blk" not in tensor.name or "norm" in tensor.name or "gate_inp" in tensor.name:
            continue
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        sums = rng.gamma(0.3, 50, (experts, tensor.shape[-1])).astype(np.float32)
        counts = np.full((experts, 1), 2560, np.float32)
        if unseen is not None and tensor.name == unseen[0]:
            sums[unseen[1]], counts[unseen[1]] = 0, 0
        writer.add_tensor(tensor.name + ".in_sum2", sums)
        writer.add_tensor(tensor.name + ".counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_quantize(source: Path, target: Path, kind: str, imatrix: dict[str, np.ndarray]) -> None:
    import llama_cpp

    from qwen3q.llama.capi import collect_log

    collect_log()
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
    for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind].id, 2
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def test_blocks_equal_llamas_with_the_same_matrix(small, tmp_path):
    """IQ types and Q2_K_S, which llama.cpp writes only with a matrix, and a K-quant."""
    config = read_config(small)
    unseen = ("blk.1.ffn_up_exps.weight", 2)
    path = importance_file(tmp_path / "imatrix.gguf", config, unseen=unseen)
    imatrix = read_imatrix(path, config)
    raw = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    means = {}
    for name in raw:
        if name.endswith(".in_sum2"):
            base = name.removesuffix(".in_sum2")
            counts = raw[base + ".counts"]
            seen = np.where(counts > 0, raw[name] / np.maximum(counts, 1), 1)
            means[base] = np.ascontiguousarray(seen, np.float32)
    kinds = ["F32", "IQ2_XXS", "IQ3_XS", "Q2_K_S", "Q4_0", "Q4_K_M"]
    with Checkpoint(small) as checkpoint:
        jobs = gguf_jobs(
            small,
            config,
            Provenance("m"),
            [FILE_TYPES[kind] for kind in kinds],
            tmp_path / "ours",
            imatrix=imatrix,
        )
        write_gguf(checkpoint, jobs, threads=2, imatrix=imatrix)
    for kind, job in list(zip(kinds, jobs, strict=True))[1:]:
        theirs = tmp_path / f"{kind}.gguf"
        llama_quantize(jobs[0].target, theirs, kind, means)
        assert tensors(job.target) == tensors(theirs), kind
    fields = gguf.GGUFReader(jobs[-1].target).fields
    assert fields["quantize.imatrix.file"].contents() == "imatrix.gguf"
    assert fields["quantize.imatrix.chunks_count"].contents() == 5


@pytest.mark.peer
@pytest.mark.parametrize(
    ("older", "text", "chunks"), [(False, "wiki.txt", 5), (True, "wiki.txt", 5), (True, None, 0)]
)
def test_a_file_states_of_the_matrix_what_llama_quantize_does(
    small, tmp_path, llama_tools, older, text, chunks
):
    config = read_config(small)
    path = importance_file(tmp_path / "made.gguf", config, text=text, chunks=chunks)
    if older:
        path = older_file(tmp_path / "made.dat", path, text=text, chunks=chunks)
    jobs = {}
    for kind, imatrix in (("BF16", None), ("Q4_K_M", read_imatrix(path, config))):
        with Checkpoint(small) as checkpoint:
            [jobs[kind]] = gguf_jobs(
                small, config, Provenance("m"), [FILE_TYPES[kind]], tmp_path, imatrix=imatrix
            )
            write_gguf(checkpoint, [jobs[kind]], threads=2, imatrix=imatrix)
    call = ("--imatrix", path.name, jobs["BF16"].target, "theirs.gguf", "Q4_K_M", "2")
    subprocess.run([llama_tools / "llama-quantize", *call], cwd=tmp_path, check=True)

    def stated(file: Path) -> dict[str, tuple[object, object]]:
        fields = gguf.GGUFReader(file).fields
        return {
            name: (field.types, field.contents())
            for name, field in fields.items()
            if name.startswith("quantize.imatrix.")
        }

    theirs = stated(tmp_path / "theirs.gguf")
    assert stated(jobs["Q4_K_M"].target) == theirs
    assert len(theirs) == (4 if text else 2)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("text", ["/home/someone/wiki.txt", "C:\\Users\\someone\\wiki.txt"])
def test_nobodys_folders_get_into_a_file(small, tmp_path, text, older):
    path = importance_file(tmp_path / "i.gguf", read_config(small), text=text)
    if older:
        path = older_file(tmp_path / "i.dat", path, text=text)
    stated = read_imatrix(path, read_config(small)).metadata()
    assert stated["quantize.imatrix.dataset"].value == "wiki.txt"
    assert stated["quantize.imatrix.file"].value == path.name


def test_resuming_takes_no_file_of_an_older_matrix_for_whole(small, tmp_path):
    """Made anew under the same name from other text, a matrix has the same counts."""
    path = importance_file(tmp_path / "imatrix.gguf", read_config(small))
    source, job = describe(str(small)), job_of(QuantizeRequest(("gguf:Q4_K_M",), imatrix=True))
    options = QuantizeOptions(imatrix=path)
    (made,) = quantize_targets(source, job, tmp_path, options)
    (kept,) = quantize_targets(source, job, tmp_path, options, resume=True)
    assert kept.path == made.path
    importance_file(path, read_config(small))
    with pytest.raises(DiskError, match="exists already"):
        quantize_targets(source, job, tmp_path, options, resume=True)


def test_unseen_expert_has_importance_one(small, tmp_path):
    config = read_config(small)
    path = importance_file(tmp_path / "i.gguf", config, unseen=("blk.0.ffn_gate_exps.weight", 3))
    values = read_imatrix(path, config).values
    assert (values["model.layers.0.mlp.experts.3.gate_proj.weight"] == 1).all()
    assert not (values["model.layers.0.mlp.experts.2.gate_proj.weight"] == 1).any()


def older_file(path: Path, matrix: Path, *, text: str | None = "text", chunks: int = 5) -> Path:
    """The same as llama.cpp's ``save_imatrix_legacy`` writes it (tools/imatrix/imatrix.cpp)."""
    stored = {t.name: t.data for t in gguf.GGUFReader(matrix).tensors}
    names = sorted(name.removesuffix(".counts") for name in stored if name.endswith(".counts"))
    data = struct.pack("<i", len(names))
    for name in names:
        counts = stored[f"{name}.counts"]
        calls = -(-int(counts.max()) // 512)
        seen = np.where(counts > 0, stored[f"{name}.in_sum2"] / np.maximum(counts, 1), 1)
        values = (seen * calls).astype("<f4")
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, values.size) + values.tobytes()
    if text is not None:
        data += struct.pack("<ii", chunks, len(text)) + text.encode()
    path.write_bytes(data)
    return path


def test_an_older_file_holds_the_same_matrix(small, tmp_path):
    config = read_config(small)
    unseen = ("blk.0.ffn_gate_exps.weight", 3)
    path = importance_file(tmp_path / "i.gguf", config, unseen=unseen)
    matrix = read_imatrix(path, config)
    older = read_imatrix(older_file(tmp_path / "imatrix.dat", path), config)
    assert (older.label, older.entries, older.chunks) == ("imatrix.dat", matrix.entries, 5)
    assert older.values.keys() == matrix.values.keys()
    for name, values in matrix.values.items():
        np.testing.assert_allclose(older.values[name], values, rtol=1e-6)
    with pytest.raises(ModelError, match=r"has importance of shape"):
        read_imatrix(tmp_path / "imatrix.dat", replace(config, hidden_size=512))


def test_a_damaged_older_file_is_refused(small, tmp_path):
    config = read_config(small)
    whole = older_file(tmp_path / "i.dat", importance_file(tmp_path / "i.gguf", config))
    data, path = whole.read_bytes(), tmp_path / "damaged.dat"
    whole_entries = len(data) - 12  # files of the first months end there
    cut = [data[:n] for n in (0, 3, 4, 7, 8, 30, 100, len(data) // 2, whole_entries - 1)]
    huge = [data[:at] + b"\xff\xff\xff\x7f" + data[at + 4 :] for at in (0, 4)]
    none = [b"{}", data[:4] + data[4:8] + b"\xff" + data[9:], b"\xff" * 64]
    for damaged in (*cut, *huge, *none):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged\.dat is no importance matrix"):
            read_imatrix(path, config)
    path.write_bytes(data[:whole_entries])
    assert read_imatrix(path, config).chunks is None
    for rest in (b"", b"\x04\0", b"\x09\0\0\0text", b"\xff\xff\xff\xfftext"):
        path.write_bytes(data[:whole_entries] + struct.pack("<i", 5) + rest)
        assert (read_imatrix(path, config).chunks, read_imatrix(path, config).dataset) == (5, None)


@pytest.mark.parametrize("damage", ["sums", "counts", "none"])
def test_a_damaged_matrix_is_refused_by_the_tensors_name(small, tmp_path, damage):
    name, path = "blk.1.ffn_down_exps.weight", tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    sums = np.ones((4, 256), np.float32)
    sums[2, 5] = np.nan if damage == "sums" else 1
    writer.add_tensor(f"{name}.in_sum2", sums)
    if damage != "none":
        counts = 3 if damage == "counts" else 4
        writer.add_tensor(f"{name}.counts", np.ones((counts, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=rf"{name}\.in_sum2 (is damaged|has no float32)"):
        read_imatrix(path, read_config(small))


def test_matrix_of_another_model_is_refused(small, tmp_path):
    config = read_config(small)
    path = importance_file(tmp_path / "i.gguf", config)
    other = replace(config, hidden_size=512)
    with pytest.raises(ModelError, match=r"has importance of shape"):
        read_imatrix(path, other)


def test_model_file_is_no_matrix(small, tmp_path):
    with Checkpoint(small) as checkpoint:
        jobs = gguf_jobs(small, read_config(small), Provenance("m"), [FILE_TYPES["Q8_0"]], tmp_path)
        write_gguf(checkpoint, jobs, threads=2)
    with pytest.raises(CheckpointError, match="no importance matrix"):
        read_imatrix(jobs[0].target, read_config(small))
