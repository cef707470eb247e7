"""The GGUF container against gguf-py, and against broken files."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwen3q.errors import CheckpointError
from qwen3q.formats.gguf_file import (
    Value,
    ValueType,
    encode_header,
    encode_metadata,
    read_header,
    split_paths,
)

METADATA = {
    "general.architecture": Value(ValueType.STRING, "qwen3"),
    "a.u32": Value(ValueType.U32, 7),
    "a.i64": Value(ValueType.I64, -(2**40)),
    "a.f32": Value(ValueType.F32, 0.5),
    "a.bool": Value(ValueType.BOOL, True),
    "a.texts": Value(ValueType.ARRAY, ["x", "ü", ""], ValueType.STRING),
    "a.ints": Value(ValueType.ARRAY, [1, -2, 3], ValueType.I32),
}


def our_file(path: Path) -> Path:
    data = np.arange(64, dtype=np.float32).reshape(2, 32)
    header = encode_header(encode_metadata(METADATA), len(METADATA), [("t", 0, (2, 32), 0)])
    path.write_bytes(header + data.tobytes())
    return path


def test_gguf_py_reads_what_we_wrote(tmp_path):
    reader = gguf.GGUFReader(our_file(tmp_path / "m.gguf"))
    for key, value in METADATA.items():
        assert reader.fields[key].contents() == value.value
    (tensor,) = reader.tensors
    np.testing.assert_array_equal(tensor.data, np.arange(64, dtype=np.float32).reshape(2, 32))


def test_we_read_what_gguf_py_wrote(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_uint32("a.u32", 7)
    writer.add_array("a.texts", ["x", "ü"])
    writer.add_array("a.floats", [0.5, 1.5])
    writer.add_tensor("t", np.zeros((3, 64), np.float16))
    writer.add_tensor("q", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "m.gguf")
    assert header.metadata["a.texts"] == ["x", "ü"]
    assert header.metadata["a.floats"] == [0.5, 1.5]
    assert header.tensors["t"].shape == (3, 64)
    assert header.tensors["t"].type == "F16"
    assert header.tensors["q"].shape == (4, 32)
    assert header.tensors["q"].nbytes == 4 * 34


def test_every_truncation_is_refused(tmp_path):
    whole = our_file(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            read_header(path)
        assert caught.value.hint


@pytest.mark.parametrize("at", [8, 16])
def test_huge_counts_are_refused_before_allocation(tmp_path, at):
    whole = bytearray(our_file(tmp_path / "m.gguf").read_bytes())
    whole[at : at + 8] = struct.pack("<Q", 2**62)
    path = tmp_path / "big.gguf"
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="claims"):
        read_header(path)


@pytest.mark.parametrize("alignment", [0, 33])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path, alignment):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_uint32("general.alignment", alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=f"general.alignment is {alignment}"):
        read_header(tmp_path / "m.gguf")


def test_every_flipped_byte_is_read_or_refused(tmp_path):
    """No byte of the header can cause anything but a sentence."""
    whole = our_file(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "flipped.gguf"
    for at in range(len(whole) - 256):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        path.write_bytes(flipped)
        with contextlib.suppress(CheckpointError):
            read_header(path)


def test_what_is_no_gguf_is_told_how_to_get_one(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match=r"m\.gguf is no GGUF file") as caught:
        read_header(path)
    assert "qwen3q quantize MODEL --to gguf:Q4_K_M" in caught.value.hint


def test_split_parts_are_found(tmp_path):
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").touch()
    assert len(split_paths(tmp_path / "m-00001-of-00002.gguf")) == 2
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf is missing"):
        split_paths(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00003-of-00002.gguf", "m.gguf"])
def test_a_name_that_is_no_part_is_a_whole_file(tmp_path, name):
    assert split_paths(tmp_path / name) == [tmp_path / name]


def test_nothing_is_there_twice(tmp_path):
    """llama.cpp refuses such a file; a sum over its tensors would be too small."""
    key = encode_metadata({"general.name": Value(ValueType.STRING, "m")})
    path = tmp_path / "m.gguf"
    for metadata, tensors, says in (
        (key + key, ["a"], "metadata key general.name twice"),
        (key, ["a", "b", "a"], "tensor a twice"),
    ):
        entries = [(name, 0, (1,), 32 * i) for i, name in enumerate(tensors)]
        header = encode_header(metadata, len(metadata) // len(key), entries)
        path.write_bytes(header + bytes(32 * len(tensors)))
        with pytest.raises(CheckpointError, match=says):
            read_header(path)
