"""The validated header and the reader, against safetensors' own files and hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3q.checkpoint.reader import INDEX_NAME, Checkpoint, check_finite
from qwen3q.checkpoint.safetensors import read_header
from qwen3q.errors import CheckpointError


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_wrote(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.integers(0, 9, (7,)).astype(np.int64),
        "c": rng.normal(size=(2, 2, 2)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.shapes == {k: v.shape for k, v in tensors.items()}
        for name, expected in tensors.items():
            np.testing.assert_array_equal(checkpoint.array(name), expected)
            checkpoint.release(name)
            np.testing.assert_array_equal(checkpoint.array(name), expected)


def test_a_file_that_goes_after_its_header_was_read_is_told(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"Can't read .*model.safetensors: No such file"):
            checkpoint.array("a")


def test_sharded_folder_is_one_checkpoint(demo_folder, tmp_path):
    whole = dict(Checkpoint(demo_folder).shapes)
    with Checkpoint(demo_folder) as source:
        names = sorted(whole)
        halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
        for shard, part in halves.items():
            save_file({n: np.array(source.array(n)) for n in part}, tmp_path / shard)
    index = {"weight_map": {n: shard for shard, part in halves.items() for n in part}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert Checkpoint(tmp_path).shapes == whole


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"not json", b"", "not JSON"),
        ([1], b"", "no object"),
        ({"a": {"dtype": "F32"}}, b"", "lacks"),
        ({"a": entry(0, 4, [1], "F99")}, bytes(4), "unknown dtype"),
        ({"a": entry(0, 4, [-1])}, bytes(4), "shape"),
        ({"a": entry(0, 4, [2**62, 2**62])}, bytes(4), "spans 4 bytes"),
        ({"a": entry(0, 8, [1])}, bytes(8), "spans 8 bytes"),
        ({"a": entry(4, 0, [1])}, bytes(4), "offsets"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "gap"),
        ({"a": entry(0, 400, [100])}, bytes(40), "truncated"),
        ({"a": entry(0, 4, [1])}, bytes(9), "does not describe"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        ({"a": entry(0, 4, [1], ["F32"])}, bytes(4), "unknown dtype"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "not JSON"),
    ],
)
def test_header_that_does_not_fit_is_refused(tmp_path, header, data, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(raw_file(tmp_path / "x.safetensors", header, data))
    assert caught.value.hint


def test_header_length_is_checked_before_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_every_truncation_of_a_file_is_refused(tmp_path):
    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "a\\b.safetensors", 7, "x.bin"]
)
def test_index_can_not_leave_its_folder(tmp_path, shard):
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="its own folder"):
        Checkpoint(tmp_path)


def test_missing_shard_is_named(tmp_path):
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "s-1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"s-1\.safetensors, which is missing"):
        Checkpoint(tmp_path)


def test_index_that_promises_too_much_is_refused(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "s.safetensors")
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"b": "s.safetensors"}}))
    with pytest.raises(CheckpointError, match="lacks it"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_is_told_to_get_them(tmp_path):
    with pytest.raises(CheckpointError, match="holds no safetensors file") as caught:
        Checkpoint(tmp_path)
    assert "fetch the model again" in caught.value.hint


def test_pickle_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickle"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_bf16_that_is_not_finite_is_refused(bits):
    values = np.array([0x3F80, bits, 0x7F7F], np.uint16)
    assert not np.isfinite((values.astype(np.uint32) << 16).view(np.float32)).all()
    with pytest.raises(CheckpointError, match="Tensor w holds NaN or Inf"):
        check_finite("w", values, "BF16")
    check_finite("w", np.array([0x3F80, 0x7F7F, 0xFF7F], np.uint16), "BF16")


@pytest.mark.parametrize(("name", "stored"), [("e4m3fn", "F8_E4M3"), ("e5m2", "F8_E5M2")])
def test_fp8_is_refused_where_torch_finds_it_not_finite(name, stored):
    torch = pytest.importorskip("torch")
    every = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(every).view(getattr(torch, f"float8_{name}")).float()
    finite = torch.isfinite(values).numpy()
    check_finite("w", every[finite], stored)
    for bits in every[~finite]:
        with pytest.raises(CheckpointError, match="Tensor w holds NaN or Inf"):
            check_finite("w", np.array([0, bits], np.uint8), stored)


def test_load_file_agrees_on_the_demo(demo_folder):
    assert set(Checkpoint(demo_folder).tensors) == set(load_keys(demo_folder / "model.safetensors"))


def load_keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return list(file.keys())
