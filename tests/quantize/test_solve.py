"""Whole layers: what is promised of every linear, of folds, of experts and of exceptions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import UsageError
from qwen3q.models.config import read_config
from qwen3q.models.decoder import decoder_layer
from qwen3q.models.tensors import Role
from qwen3q.plan.schemes import Override, Scheme, parse_scheme
from qwen3q.quantize import arithmetic
from qwen3q.quantize.experts import choose_tokens
from qwen3q.quantize.folds import search_folds
from qwen3q.quantize.limits import SAMPLE_STRIDE
from qwen3q.quantize.solve import SolvedLayer, SolveOptions, solve_layer
from qwen3q.quantize.stage import LayerWork
from qwen3q.quantize.stream import StreamedLayer, run_quantized, short_name, stream_layers
from tests.conftest import random_model
from tests.quantize.problems import SMALL, SMALL_EXPERTS

ROWS = torch.randint(0, 8192, (16, 32), generator=torch.Generator().manual_seed(6)).tolist()
SCHEMES = ("gptq:int4", "gptq:int3", "awq:int4", "int4", "int8")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return random_model(tmp_path_factory.mktemp("solve") / "dense", demo_folder, **SMALL)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("solve") / "experts"
    return random_model(folder, demo_folder, **SMALL_EXPERTS)


def scheme_of(name: str, **changes: object) -> Scheme:
    if name != "int8":
        changes = {"group_size": 32, **changes}
    return parse_scheme(name, **changes)


def solve(
    folder: Path, scheme: Scheme, options: SolveOptions | None = None
) -> tuple[StreamedLayer, SolvedLayer]:
    """The first layer; its activations are gone when this returns."""
    with Checkpoint(folder) as checkpoint:
        stream = stream_layers(checkpoint, read_config(folder), ROWS, [scheme])
        layer = next(stream)
        return layer, solve_layer(layer, scheme, options)


@pytest.mark.parametrize("model", ["dense", "experts"])
@pytest.mark.parametrize("name", SCHEMES)
def test_every_linear_is_solved_better_than_by_rounding(
    model: str, name: str, request: pytest.FixtureRequest
) -> None:
    scheme = scheme_of(name)
    layer, solved = solve(request.getfixturevalue(model), scheme)
    expected = [spec for spec in layer.specs.values() if spec.is_linear]
    assert [row.name for row in solved.report] == [spec.name for spec in expected]
    for spec, row in zip(expected, solved.report, strict=True):
        linear = solved.linears[spec.name]
        assert linear.codes.shape == spec.shape
        assert linear.codes.dtype == linear.zeros.dtype == torch.uint8
        assert linear.scales.shape == (spec.shape[0], spec.shape[1] // linear.group_size)
        assert int(linear.codes.max()) < 2**scheme.bits
        assert int(linear.zeros.min()) >= scheme.min_zero
        assert row.algorithm == "gptq"
        assert row.fallback == ""
        assert 0 < row.error < row.rtn_error
    for name, value in solved.changed.items():
        assert torch.equal(value.to(layer.dtypes[short_name(name)]).float(), value)


@pytest.mark.parametrize("model", ["dense", "experts"])
@pytest.mark.parametrize(("algorithm", "smoothing"), [("awq", True), ("awq", False), ("rtn", True)])
def test_where_drift_is_left_alone_the_float_model_need_not_see_all_rows(
    model: str,
    algorithm: str,
    smoothing: bool,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same codes whether it runs on all rows, or on those that scales are searched on."""
    monkeypatch.setattr(arithmetic, "_TOKENS_ON_CORE", 64)
    monkeypatch.setattr(arithmetic, "_TOKENS_FOR_EXPERTS", 64)
    folder, scheme = request.getfixturevalue(model), scheme_of("awq:int4")
    options = SolveOptions(algorithm, smoothing=smoothing)
    searches = smoothing and algorithm == "awq"
    stride = options.float_stride(scheme)
    assert stride == (SAMPLE_STRIDE if searches else None)
    codes: list[dict[str, torch.Tensor]] = []
    for asked in (1, stride):
        with Checkpoint(folder) as checkpoint:
            config = read_config(folder)
            for layer in stream_layers(checkpoint, config, ROWS, [scheme], float_stride=asked):
                solved = solve_layer(layer, scheme, options)
                layer.keep(scheme, solved)
                assert bool(solved.changed) == searches
                codes.append({name: linear.codes for name, linear in solved.linears.items()})
    half = len(codes) // 2
    assert half == 2
    for with_all, with_some in zip(codes[:half], codes[half:], strict=True):
        assert all(torch.equal(with_all[name], with_some[name]) for name in with_all)


@pytest.mark.parametrize("algorithm", ["awq", "rtn"])
def test_other_algorithms_beat_plain_rounding_too(dense: Path, algorithm: str) -> None:
    _, solved = solve(dense, scheme_of("awq:int4"), SolveOptions(algorithm=algorithm))
    for row in solved.report:
        assert row.algorithm == algorithm
        assert row.error < row.rtn_error
    assert bool(solved.changed) == (algorithm == "awq")


def test_unknown_algorithms_are_refused() -> None:
    with pytest.raises(UsageError, match="'best'") as told:
        SolveOptions(algorithm="best")
    assert "gptq, awq, rtn" in told.value.hint


@pytest.mark.parametrize("model", ["dense", "experts"])
def test_folded_float_layers_compute_the_same(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_fast_bfloat16", lambda: False)
    folder = request.getfixturevalue(model)
    scheme = scheme_of("gptq:int4")
    with Checkpoint(folder) as checkpoint:
        stream = stream_layers(checkpoint, read_config(folder), ROWS, [scheme])
        layer = next(stream)
        folds = search_folds(layer, scheme, SolveOptions())
        work = LayerWork(layer, scheme, SolveOptions(), folds)
        weights = {s: layer.weights[spec.name] for s, spec in layer.specs.items()}
        folded = {short: work.folded(short) for short in layer.specs}
    assert len(folds.norms) == 2
    assert "self_attn.o_proj" in folds.inputs
    hidden = torch.randn(2, 20, 96)
    rope = type(layer.rope)(layer.rope.cos[:20], layer.rope.sin[:20])
    before = decoder_layer(hidden, weights, layer.config, rope)
    after = decoder_layer(hidden, folded, layer.config, rope)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()), rtol=0)
    if model == "experts":
        logs = folds.inputs["mlp.gate"].log2()
        assert torch.equal(logs, logs.round())


@pytest.mark.parametrize("name", ["gptq:int4", "int8"])
@pytest.mark.parametrize("model", ["dense", "experts"])
def test_what_comes_out_is_what_a_reader_computes(
    model: str, name: str, request: pytest.FixtureRequest
) -> None:
    """``keep`` takes the solver's output, restoring runs the stored layer: the same to the bit."""
    scheme = scheme_of(name)
    folder = request.getfixturevalue(model)
    with Checkpoint(folder) as checkpoint:
        stream = stream_layers(checkpoint, read_config(folder), ROWS, [scheme])
        layer = next(stream)
        again = layer.store.new(layer.config.hidden_size)
        for part in layer.arithmetic.portions(layer.store):
            again.write(part, layer.own_hidden(scheme).read(part))
        solved = solve_layer(layer, scheme)
        run_quantized(layer, again, scheme, solved)
        layer.keep(scheme, solved)
        for part in layer.arithmetic.portions(layer.store):
            assert torch.equal(layer.own_hidden(scheme).read(part), again.read(part))


def test_exceptions_are_kept(dense: Path) -> None:
    overrides = (Override("*.k_proj", keep_float=True), Override("*.down_proj", bits=8))
    scheme = scheme_of("gptq:int4", overrides=overrides)
    layer, solved = solve(dense, scheme)
    names = {short_name(name) for name in solved.linears}
    assert "self_attn.k_proj" not in names
    assert len(names) == 6
    assert solved.linears[layer.specs["mlp.down_proj"].name].bits == 8
    assert {row.name: row.bits for row in solved.report}[layer.specs["mlp.down_proj"].name] == 8
    assert layer.specs["input_layernorm"].name not in solved.changed
    assert layer.specs["post_attention_layernorm"].name in solved.changed


def test_without_smoothing_no_float_tensor_changes(experts: Path) -> None:
    _, solved = solve(experts, scheme_of("gptq:int4"), SolveOptions(smoothing=False))
    assert solved.changed == {}
    assert solved.notes == ()


def test_the_router_is_never_quantized(experts: Path) -> None:
    layer, solved = solve(experts, scheme_of("gptq:int4"))
    linears = {spec.name for spec in layer.specs.values() if spec.is_linear}
    assert solved.linears.keys() == linears
    assert layer.specs["mlp.gate"].role is Role.ROUTER
    assert layer.specs["mlp.gate"].name not in solved.linears


def test_rare_experts_are_topped_up_and_told(experts: Path) -> None:
    tokens = 16 * 32
    _, solved = solve(experts, scheme_of("gptq:int4"), SolveOptions(min_expert_tokens=tokens))
    rows = [row for row in solved.report if "experts" in row.name]
    assert all(row.tokens + row.forced_tokens == tokens for row in rows)
    assert any(row.forced_tokens for row in rows)
    assert sum(row.tokens for row in rows if "up_proj" in row.name) == 2 * tokens
    assert any("topped up" in note for note in solved.notes)
    weak = [row for row in rows if row.fallback]
    assert all(row.algorithm == "rtn" for row in weak)
    assert all(f"only {row.tokens} calibration tokens" in row.fallback for row in weak)
    assert {row.name for row in weak} == {row.name for row in rows if row.tokens * 4 < tokens}


def test_no_scales_are_fitted_to_experts_that_hardly_any_token_reaches(experts: Path) -> None:
    """Their up_proj keeps its rows' sizes; experts that tokens reach get scales there."""
    ratios: dict[int, float] = {}
    for least in (1, 1 << 20):
        options = SolveOptions(min_expert_tokens=least)
        layer, solved = solve(experts, scheme_of("gptq:int8"), options)
        name = layer.specs["mlp.experts.0.up_proj"].name
        norm = layer.specs["post_attention_layernorm"].name
        folded = solved.changed.get(norm, layer.weights[norm]) / layer.weights[norm]
        after = solved.linears[name].dequantize() * folded
        sizes = after.norm(dim=1) / layer.weights[name].norm(dim=1)
        ratios[least] = float(sizes.max() / sizes.min())
    assert ratios[1] > 1.3
    assert ratios[1 << 20] < 1.05


def test_scales_behind_a_router_are_the_same_whichever_expert_comes_first(
    experts: Path, tmp_path: Path
) -> None:
    """AWQ's importance is that of all tokens; here the first expert sees none, then many."""
    original = load_file(experts / "model.safetensors")
    prefix, order = "model.layers.0.mlp.", [3, 1, 2, 0]
    router = original[f"{prefix}gate.weight"]
    router[0] = -8 * router[1:].sum(0)
    original["model.embed_tokens.weight"] += 0.5 * router[1:].sum(0)
    original["model.layers.0.post_attention_layernorm.weight"][::7] *= 8
    moved = dict(original)
    for name in original:
        if name.startswith(f"{prefix}experts."):
            expert, rest = name.removeprefix(f"{prefix}experts.").split(".", 1)
            moved[name] = original[f"{prefix}experts.{order[int(expert)]}.{rest}"]
    moved[f"{prefix}gate.weight"] = router[order]
    norms, first_sees = [], []
    for number, tensors in enumerate((original, moved)):
        folder = Path(shutil.copytree(experts, tmp_path / str(number)))
        save_file(tensors, folder / "model.safetensors")
        layer, solved = solve(folder, scheme_of("awq:int4"), SolveOptions("awq"))
        norms.append(solved.changed[layer.specs["post_attention_layernorm"].name])
        name = layer.specs["mlp.experts.0.gate_proj"].name
        first_sees.append(layer.sampled_moments[name].tokens)
    assert first_sees[0] < 4 < first_sees[1]
    assert torch.equal(*norms)


def test_tokens_are_forced_where_the_router_nearly_sent_them() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 4, generator=generator) + torch.tensor([2.0, 1.0, 0.0, -4.0])
    probabilities = logits.softmax(-1)
    chosen = choose_tokens(probabilities, 2, 40)
    natural = probabilities.topk(2).indices
    for expert, tokens in enumerate(chosen):
        own = (natural == expert).any(1).nonzero()[:, 0]
        assert set(own.tolist()) <= set(tokens.index.tolist())
        assert tokens.forced == max(40 - len(own), 0)
        assert bool(tokens.weak) == (len(own) < 10)
        assert tokens.index.tolist() == sorted(set(tokens.index.tolist()))
    rare = chosen[3]
    forced = set(rare.index.tolist()) - set((natural == 3).any(1).nonzero()[:, 0].tolist())
    left_out = set(range(200)) - set(rare.index.tolist())
    lowest = min(float(probabilities[i, 3]) for i in forced)
    assert lowest >= max(float(probabilities[i, 3]) for i in left_out)
