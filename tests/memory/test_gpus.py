"""The catalog, its names, and this machine's GPUs."""

from __future__ import annotations

import pytest

from qwen3q.errors import UsageError
from qwen3q.memory.detect import parse_metal, parse_nvidia_smi, parse_rocm_smi
from qwen3q.memory.gpus import Family, find_gpu, gpus, other_sizes, parse_bytes


def test_every_part_is_named_apart_and_makes_sense() -> None:
    parts = gpus()
    assert len({gpu.name for gpu in parts}) == len(parts) >= 120
    for gpu in parts:
        assert 0.5 < gpu.usable_bytes / gpu.memory_bytes < 1.0
        assert 60e9 < gpu.bandwidth < 9e12
        assert find_gpu(gpu.name) == gpu


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("rtx3060", "GeForce RTX 3060 12GB"),
        ("RTX 3060 12GB", "GeForce RTX 3060 12GB"),
        ("4060 ti 16 GB", "GeForce RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "RTX 4070 Laptop"),
        ("7900xtx", "Radeon RX 7900 XTX"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell"),
        ("Apple M4 Max 64GB", "Apple M4 Max 40-core 64GB"),
        ("dgx spark", "GB10 (DGX Spark)"),
        ("strix halo", "Strix Halo Radeon 8060S 128GB"),
    ],
)
def test_aliases(name: str, part: str) -> None:
    assert find_gpu(name).name == part


def test_a_size_that_is_not_said_is_the_smallest_and_a_wrong_one_is_refused() -> None:
    assert find_gpu("4060 Ti").name == "GeForce RTX 4060 Ti 8GB"
    others = other_sizes("4060 Ti", find_gpu("4060 Ti"))
    assert [gpu.name for gpu in others] == ["GeForce RTX 4060 Ti 16GB"]
    assert other_sizes("4060 Ti 8GB", find_gpu("4060 Ti")) == []
    with pytest.raises(UsageError, match="24gb"):
        find_gpu("rtx 3060 24gb")


def test_an_unknown_part_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu("RTX 4091")
    assert "RTX 4090" in caught.value.hint
    assert "--vram" in caught.value.hint
    assert caught.value.exit_code == 2


def test_amounts_of_memory() -> None:
    assert parse_bytes("24GiB") == parse_bytes("24") == parse_bytes("24g") == 24 << 30
    assert parse_bytes("24GB") == 24_000_000_000
    assert parse_bytes("24576 MiB") == 24 << 30
    for text in ("", "much", "24XB", "0", "-3GiB", "1.2.3", "9" * 400):
        with pytest.raises(UsageError):
            parse_bytes(text)


def test_what_nvidia_smi_prints() -> None:
    text = "NVIDIA GeForce RTX 3090, 24576, 23300\nSome New Card, 40000, 39000\n\nN/A\n"
    known, unknown = parse_nvidia_smi(text)
    assert known.gpu.family is Family.NVIDIA
    assert known.gpu.bandwidth == find_gpu("3090").bandwidth
    assert known.free_bytes == 23300 << 20
    assert unknown.gpu.bandwidth == 0.0
    assert unknown.gpu.memory_bytes == 40000 << 20


def test_what_rocm_smi_prints() -> None:
    text = (
        '{"card0": {"Card series": "Radeon RX 7900 XTX", '
        '"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "1000000000"}}'
    )
    [found] = parse_rocm_smi(text)
    assert found.gpu.family is Family.RADEON
    assert found.free_bytes == 24753026560
    assert parse_rocm_smi("no cards") == []


def test_what_a_mac_says() -> None:
    [small] = parse_metal("Apple M2", 24 << 30)
    [large] = parse_metal("Apple M3 Max", 64 << 30)
    assert small.free_bytes == 16 << 30
    assert large.free_bytes == 48 << 30
    assert small.gpu.family is Family.APPLE
