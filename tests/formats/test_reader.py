"""Folders are recognised from their tensors alone and read back as the weights they stand for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import EXPERTS, tiny_model

from qwen3q.checkpoint.safetensors import TensorInfo
from qwen3q.checkpoint.shards import DTYPES
from qwen3q.errors import CheckpointError
from qwen3q.formats import bits, gptq
from qwen3q.formats.agreement import disagreement
from qwen3q.formats.folder import pack_linear, pack_weight, quantization_config
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.formats.reader import QuantizedFolder
from qwen3q.formats.recognise import Storage, recognise
from qwen3q.models.config import read_config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.schemes import PER_CHANNEL, Override, Scheme, parse_scheme

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SCHEMES = [
    (parse_scheme("gptq:int4", group_size=64), Storage.GPTQ),
    (parse_scheme("gptq:int3", group_size=32, symmetric=False), Storage.GPTQ),
    (parse_scheme("gptq:int8", group_size=PER_CHANNEL), Storage.GPTQ),
    (parse_scheme("awq:int4", group_size=32), Storage.AWQ),
    (parse_scheme("int4", group_size=64, symmetric=False), Storage.PACK_QUANTIZED),
    (parse_scheme("w8a16", group_size=PER_CHANNEL), Storage.PACK_QUANTIZED),
    (parse_scheme("int8"), Storage.INT_QUANTIZED),
    (parse_scheme("bnb:nf4"), Storage.BNB_4BIT),
    (parse_scheme("bnb:int8"), Storage.BNB_INT8),
    (parse_scheme("fp8"), Storage.FP8_BLOCKS),
]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "dense", demo_folder, **SIZES)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "experts"
    experts = EXPERTS | {"num_experts": 3, "moe_intermediate_size": 128}
    return tiny_model(folder, demo_folder, **SIZES, **experts)


def nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedLinear:
    """Round-to-nearest on the range of each group, written here for the tests alone."""
    group = scheme.group_of(weight.shape[1])
    grouped = weight.float().view(weight.shape[0], -1, group)
    top = (1 << scheme.bits) - 1
    dtype = getattr(torch, scheme.scale_dtype)
    if scheme.symmetric:
        scales = grouped.abs().amax(-1) / (top // 2)
        zeros = torch.full_like(scales, 1 << (scheme.bits - 1))
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = (high - low) / top
        zeros = (-low / scales).round().clamp(1, top)
    scales = scales.to(dtype).float()
    codes = (grouped / scales.unsqueeze(-1)).round() + zeros.unsqueeze(-1)
    codes = codes.clamp(0, top).to(torch.uint8).view(weight.shape)
    return QuantizedLinear(
        codes, scales, zeros.to(torch.uint8), scheme.bits, group, scheme.symmetric
    )


def write_folder(folder: Path, model: Path, scheme: Scheme) -> dict[str, torch.Tensor]:
    """Stores a model in ``scheme``; returns the weights that stand for it."""
    folder.mkdir()
    config = read_config(model)
    raw = json.loads((model / "config.json").read_text())
    raw["quantization_config"] = quantization_config(scheme, config)
    (folder / "config.json").write_text(json.dumps(raw))
    source = load_file(model / "model.safetensors")
    stored, expected = {}, {}
    for spec in model_tensors(config):
        weight = source[spec.name]
        if not spec.is_linear:
            stored[spec.name] = weight
            expected[spec.name] = weight.float()
            continue
        if scheme.is_uniform:
            linear = nearest(weight, scheme)
            parts = pack_linear(scheme, linear)
            expected[spec.name] = linear.dequantize()
        else:
            parts = pack_weight(scheme, weight)
        module = spec.name.removesuffix(".weight")
        stored |= {f"{module}.{suffix}": tensor for suffix, tensor in parts.items()}
    save_file(stored, folder / "model.safetensors")
    return expected


@pytest.mark.parametrize(
    ("scheme", "storage"), SCHEMES, ids=[f"{s.name}-{s.group_size}" for s, _ in SCHEMES]
)
@pytest.mark.parametrize("model", ["dense", "experts"])
def test_every_layout_is_read_back(
    scheme: Scheme, storage: Storage, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(model)
    expected = write_folder(tmp_path / "q", source, scheme)
    floats = load_file(source / "model.safetensors")
    with QuantizedFolder(tmp_path / "q") as folder:
        assert disagreement(folder.quantization, folder.weights.values()) == ""
        assert folder.activation_bits == (8 if scheme.name == "int8" else None)
        for name, stored in folder.weights.items():
            assert stored.storage is (storage if stored.spec.is_linear else Storage.FLOAT)
            weight = folder.weight(name)
            assert weight.dtype == torch.float32
            if name in expected:
                assert torch.equal(weight, expected[name]), name
            else:
                error = (weight - floats[name].float()).norm() / floats[name].float().norm()
                assert error < 0.16, name


EXCEPTIONS = (
    Override("model.layers.0.*", keep_float=True),
    Override("*.down_proj", bits=8, group_size=32),
)


@pytest.mark.parametrize("name", ["gptq:int4", "int4"])
def test_exceptions_are_no_disagreement(name: str, dense: Path, tmp_path: Path) -> None:
    scheme = parse_scheme(name, overrides=EXCEPTIONS)
    config = read_config(dense)
    stated = quantization_config(scheme, config)
    assert stated is not None
    tensors = {
        tensor.name: TensorInfo(
            tensor.name, tmp_path, DTYPES[tensor.type][0], tensor.shape, 0, tensor.nbytes
        )
        for tensor in plan_folder("dense", config, scheme).tensors
    }
    found = recognise(config, tensors, "dense").values()
    assert {weight.bits for weight in found} == {4, 8, 16}
    assert disagreement(stated, found) == ""


@pytest.mark.parametrize(
    ("scheme", "change", "said"),
    [
        ("gptq:int4", {"bits": 8}, "says 8 bits, but {first} has 4."),
        ("gptq:int4", {"group_size": 32}, "says group_size 32, but {first} has groups of 128."),
        ("gptq:int4", {"quant_method": "awq"}, "says awq, but {first} is stored as gptq."),
        ("awq:int4", {"quant_method": "gptq"}, "says gptq, but {first} is stored as awq."),
        ("fp8", {"quant_method": "compressed-tensors"}, ""),
        ("bnb:nf4", {"load_in_4bit": False}, "says bnb-int8, but {first} is stored as bnb-4bit."),
        ("gptq:int4", {"quant_method": "of-tomorrow", "bits": 8}, ""),
        ("bf16", {"quant_method": "gptq"}, "says gptq, but every tensor is float."),
        ("gptq:int4", None, "says nothing, but {first} is stored as gptq."),
    ],
)
def test_a_config_that_is_not_of_the_tensors(
    scheme: str, change: dict[str, object] | None, said: str, dense: Path, tmp_path: Path
) -> None:
    if scheme == "bf16":
        shutil.copytree(dense, tmp_path / "q")
    else:
        write_folder(tmp_path / "q", dense, parse_scheme(scheme))
    path = tmp_path / "q" / "config.json"
    raw = json.loads(path.read_text())
    stated = {} if change is None else (raw.get("quantization_config") or {}) | change
    path.write_text(json.dumps(raw | {"quantization_config": stated}))
    with QuantizedFolder(tmp_path / "q") as folder:
        found = disagreement(folder.quantization, folder.weights.values())
        first = next(w.spec.name for w in folder.weights.values() if w.spec.is_linear)
    assert found == (f"config.json {said.format(first=first)}" if said else "")


@pytest.mark.parametrize("dense_layers", [(), (1,)])
def test_awq_loaders_leave_the_routers_alone(dense_layers: tuple[int, ...], experts: Path) -> None:
    """vLLM looks for the names in a module's full name, AutoAWQ in its name within the layer."""
    config = replace(read_config(experts), mlp_only_layers=dense_layers)
    quantization = quantization_config(parse_scheme("awq:int4"), config)
    assert quantization is not None
    keys = quantization["modules_to_not_convert"]
    modules = [spec.name.removesuffix(".weight") for spec in model_tensors(config)]
    linears = {name for name in modules if name.endswith(("_proj", "mlp.gate"))}
    routers = {name for name in linears if name.endswith("mlp.gate")}
    assert {name for name in linears if any(key in name for key in keys)} == routers
    if not dense_layers:  # AutoAWQ has no name for one layer's router
        local = {name.split(".", 3)[3] for name in linears}
        assert {name for name in local if any(key in name for key in keys)} == {"mlp.gate"}


def test_version_2_zeros(dense: Path, tmp_path: Path) -> None:
    """GPTQModel's own layout stores the zero itself, and says so in the config."""
    scheme = parse_scheme("gptq:int4", symmetric=False)
    expected = write_folder(tmp_path / "q", dense, scheme)
    path = tmp_path / "q" / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"]["checkpoint_format"] = "gptq_v2"
    path.write_text(json.dumps(raw))
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    for name in tensors:
        if name.endswith(".qzeros"):
            tensors[name] = bits.pack(bits.unpack(tensors[name], 4) + 1, 4)
    save_file(tensors, tmp_path / "q" / "model.safetensors")
    with QuantizedFolder(tmp_path / "q") as folder:
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(folder.weight(name), expected[name])


def damage(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.mlp.up_proj"
    match change:
        case "missing":
            del tensors[f"{module}.scales"]
        case "shape":
            tensors[f"{module}.scales"] = tensors[f"{module}.scales"][:, :-8].contiguous()
        case "extra":
            tensors["model.layers.99.mlp.up_proj.qweight"] = torch.zeros(1)
        case "g_idx":
            tensors[f"{module}.g_idx"] += 7
        case "gone":
            tensors = {n: t for n, t in tensors.items() if not n.startswith(module)}
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "a layout that is not known"),
        ("shape", "should be"),
        ("extra", "belongs to nothing"),
        ("gone", "has nothing stored for model.layers.0.mlp.up_proj"),
    ],
)
def test_damage_is_named(change: str, message: str, dense: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "q", dense, parse_scheme("gptq:int4"))
    damage(tmp_path / "q", change)
    with pytest.raises(CheckpointError, match=message):
        QuantizedFolder(tmp_path / "q")


def test_groups_outside_are_refused(dense: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "q", dense, parse_scheme("gptq:int4"))
    damage(tmp_path / "q", "g_idx")
    with (
        QuantizedFolder(tmp_path / "q") as folder,
        pytest.raises(CheckpointError, match="outside the 1 groups"),
    ):
        folder.weight("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(("stated", "bits"), [({}, 8), ({"num_bits": 4}, 4), (None, None)])
def test_inputs_are_rounded_as_the_config_says(
    stated: dict[str, int] | None, bits: int | None, dense: Path, tmp_path: Path
) -> None:
    write_folder(tmp_path / "q", dense, parse_scheme("int8"))
    path = tmp_path / "q" / "config.json"
    raw = json.loads(path.read_text())
    inputs = stated if stated is None else {"dynamic": True, **stated}
    raw["quantization_config"]["config_groups"]["group_0"]["input_activations"] = inputs
    path.write_text(json.dumps(raw))
    with QuantizedFolder(tmp_path / "q") as folder:
        assert folder.activation_bits == bits


@pytest.mark.parametrize("scale", ["row", "column", "one"])
def test_float_quantized_channels(scale: str, dense: Path, tmp_path: Path) -> None:
    """llm-compressor's FP8: one scale per output channel, or for all (``weight * scale``)."""
    shutil.copytree(dense, tmp_path / "q")
    path = tmp_path / "q" / "model.safetensors"
    tensors, expected = load_file(path), {}
    for name, weight in load_file(path).items():
        if name.endswith("_proj.weight"):
            tops = weight.float().abs().amax(1, keepdim=True)
            scales = (tops if scale != "one" else tops.max()) / 448
            codes = (weight.float() / scales).to(torch.float8_e4m3fn)
            expected[name] = codes.float() * scales
            tensors[name] = codes
            stored = scales if scale == "column" else scales.reshape(-1)
            tensors[name.replace(".weight", ".weight_scale")] = stored.clone()
    save_file(tensors, path)
    with QuantizedFolder(tmp_path / "q") as folder:
        for name, weight in expected.items():
            assert folder.weights[name].storage is Storage.FP8_CHANNELS
            assert torch.equal(folder.weight(name), weight), name


def test_nvfp4_is_recognised_and_not_read(dense: Path, tmp_path: Path) -> None:
    """compressed-tensors' nvfp4-pack-quantized: two codes a byte, an FP8 scale per 16 inputs."""
    shutil.copytree(dense, tmp_path / "q")
    path = tmp_path / "q" / "model.safetensors"
    tensors = load_file(path)
    for name, weight in load_file(path).items():
        if name.endswith("_proj.weight"):
            (out, columns), module = weight.shape, name.removesuffix(".weight")
            del tensors[name]
            tensors[f"{module}.weight_packed"] = torch.zeros(out, columns // 2, dtype=torch.uint8)
            scales = torch.ones(out, columns // 16).to(torch.float8_e4m3fn)
            tensors[f"{module}.weight_scale"] = scales
            tensors[f"{module}.weight_global_scale"] = torch.ones(1)
    save_file(tensors, path)
    with QuantizedFolder(tmp_path / "q") as folder:
        name = "model.layers.1.mlp.down_proj.weight"
        found = folder.weights[name]
        assert (found.storage, found.bits, found.group_size) == (Storage.NVFP4, 4, 16)
        with pytest.raises(CheckpointError, match="NVFP4, which is recognised but not read"):
            folder.weight(name)


def test_float_folder_is_read_too(dense: Path) -> None:
    with QuantizedFolder(dense) as folder:
        assert {stored.storage for stored in folder.weights.values()} == {Storage.FLOAT}


def test_gptq_zero_of_zero_is_refused_by_name() -> None:
    linear = nearest(torch.randn(32, 64), parse_scheme("gptq:int4", group_size=32))
    linear.zeros[0, 0] = 0
    with pytest.raises(CheckpointError, match="zero point of 0"):
        gptq.pack(linear)
