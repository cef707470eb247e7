"""The folder plan: published sizes, the stored forms, headers to the byte, tensor parallelism."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from qwen3q.checkpoint.shards import lay_out_shards
from qwen3q.checkpoint.writer import ShardWriter
from qwen3q.models.catalog import find_release
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.schemes import parse_scheme, scheme_names
from qwen3q.plan.tensor_parallel import suggest_group_size, tensor_parallel_legality

PUBLISHED = list(
    csv.DictReader((Path(__file__).parent / "published_folder_sizes.csv").read_text().splitlines())
)


def config_of(name: str) -> Qwen3Config:
    release = find_release(name)
    assert release is not None
    return release.config


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda r: f"{r['release']}-{r['scheme']}")
def test_bytes_are_those_engines_report(row: dict[str, str]) -> None:
    plan = plan_folder("m", config_of(row["release"]), parse_scheme(row["scheme"]))
    assert plan.tensor_bytes / 2**30 == pytest.approx(
        float(row["gib"]), rel=float(row["tolerance"])
    )


def test_gptq_of_one_linear() -> None:
    plan = plan_folder("m", config_of("qwen3-8b"), parse_scheme("gptq:int4"))
    down = {
        t.name.rsplit(".", 1)[1]: (t.type, t.shape, t.nbytes)
        for t in plan.tensors
        if t.name.startswith("model.layers.7.mlp.down_proj.")
    }
    assert down == {
        "qweight": ("int32", (12288 // 8, 4096), 12288 * 4096 // 2),
        "qzeros": ("int32", (96, 512), 96 * 512 * 4),
        "scales": ("float16", (96, 4096), 96 * 4096 * 2),
        "g_idx": ("int32", (12288,), 12288 * 4),
    }
    assert {t.type for t in plan.tensors if "norm" in t.name} == {"bfloat16"}


@pytest.mark.parametrize("name", scheme_names())
def test_every_checkpoint_tensor_has_its_place(name: str) -> None:
    config = replace(config_of("qwen3-30b-a3b"), num_hidden_layers=3)
    plan = plan_folder("m", config, parse_scheme(name))
    sources = Counter(spec.name for t in plan.tensors for spec in t.sources)
    assert sources.keys() == {spec.name for spec in model_tensors(config)}
    kept = {t.name for t in plan.tensors if ".weight" in t.name and "mlp.gate." in t.name}
    assert len(kept) == 3
    assert len({t.name for t in plan.tensors}) == len(plan.tensors)


def test_another_librarys_reader_takes_the_headers(tmp_path: Path) -> None:
    """Shards at full size, cut small, all zero: the names, dtypes and shapes are those planned."""
    config = config_of("qwen3-0.6b")
    plan = plan_folder("m", config, parse_scheme("bnb:nf4"))
    shards = lay_out_shards(plan.tensors, 200_000_000)
    assert len(shards) > 2
    with ShardWriter(tmp_path, shards):
        pass
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    planned = {t.name: t for t in plan.tensors}
    assert index["weight_map"].keys() == planned.keys()
    assert index["metadata"]["total_size"] == plan.tensor_bytes
    for shard in shards:
        with safe_open(tmp_path / shard.filename, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                assert tuple(piece.get_shape()) == planned[name].shape
                assert index["weight_map"][name] == shard.filename


def test_tensors_start_where_their_dtype_wants() -> None:
    plan = plan_folder("m", config_of("qwen3-0.6b"), parse_scheme("bnb:nf4"))
    widths = {"float32": 4, "bfloat16": 2, "uint8": 1}
    for shard in lay_out_shards(plan.tensors):
        for tensor in plan.tensors:
            if tensor.name in shard.offsets:
                assert shard.offsets[tensor.name] % widths[tensor.type] == 0


def test_tensor_parallelism_of_experts() -> None:
    """The published trap: 768 inputs in groups of 128 can't be split over 4 or 8 GPUs."""
    config = config_of("qwen3-30b-a3b")
    splits = {s.size: s for s in tensor_parallel_legality(config, parse_scheme("gptq:int4"))}
    assert [splits[n].is_legal for n in (1, 2, 4, 8)] == [True, True, False, False]
    assert "192 of 768 inputs" in splits[4].reason
    assert suggest_group_size(config, parse_scheme("gptq:int4"), 4) == 64
    assert suggest_group_size(config, parse_scheme("gptq:int4"), 8) == 32
    narrow = tensor_parallel_legality(config, parse_scheme("gptq:int4", group_size=32))
    assert all(split.is_legal for split in narrow)


def test_tensor_parallelism_of_dense_models() -> None:
    for name in ("qwen3-8b", "qwen3-14b", "qwen3-32b"):
        legal = tensor_parallel_legality(config_of(name), parse_scheme("awq:int4"))
        assert [split.is_legal for split in legal[:3]] == [True, True, True], name
    reason = tensor_parallel_legality(config_of("qwen3-8b"), parse_scheme("awq:int4"), (3,))
    assert "attention heads" in reason[0].reason
