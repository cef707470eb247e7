"""The stream against plain forward passes, and resumed against uninterrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import UsageError
from qwen3q.models.config import read_config
from qwen3q.models.decoder import decoder_layer, rope_table
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize import arithmetic
from qwen3q.quantize.solve import SolvedLayer, SolveOptions, solve_layer
from qwen3q.quantize.stream import StreamOptions, stream_layers
from tests.conftest import random_model
from tests.quantize.problems import SMALL, SMALL_EXPERTS

ROWS = torch.randint(0, 8192, (12, 24), generator=torch.Generator().manual_seed(5)).tolist()
OPTIONS = SolveOptions(min_expert_tokens=64, sweeps=1)


@pytest.fixture(scope="module", params=["dense", "experts"])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> Path:
    config = SMALL_EXPERTS if request.param == "experts" else SMALL
    return random_model(tmp_path_factory.mktemp("stream") / request.param, demo_folder, **config)


def test_moments_are_the_float_models_mean_squares(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_fast_bfloat16", lambda: False)
    config = read_config(folder)
    with Checkpoint(folder) as checkpoint:
        layers = [
            ({name: layer.weights[name] for name in layer.weights}, layer.moments)
            for layer in stream_layers(checkpoint, config, ROWS, importance=True)
        ]
        hidden = torch.from_numpy(checkpoint.array("model.embed_tokens.weight").copy())[
            torch.tensor(ROWS)
        ]
    assert len(layers) == 2
    rope = rope_table(config, 24)
    for index, (weights, moments) in enumerate(layers):
        seen: dict[str, list[torch.Tensor]] = {}
        short = {name.split(".", 3)[3].removesuffix(".weight"): w for name, w in weights.items()}

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            seen.setdefault(name, []).append(x.flatten(0, -2))  # noqa: B023
            return torch.nn.functional.linear(x, short[name])  # noqa: B023

        hidden = decoder_layer(hidden, short, config, rope, linear)
        linears = {name for name in short if name.endswith("_proj")}
        assert {f"model.layers.{index}.{name}.weight" for name in linears} == set(moments)
        for name in linears:
            found = moments[f"model.layers.{index}.{name}.weight"]
            inputs = torch.cat(seen[name]).double()
            assert found.tokens == len(inputs)
            expected = inputs.square().mean(0).float()
            assert torch.allclose(found.mean_squares, expected, rtol=1e-4, atol=1e-9)


def solve_all(
    folder: Path, stream: StreamOptions, names: tuple[str, ...], start: int, solved: list[dict]
) -> list[dict[str, SolvedLayer]]:
    """All layers from ``start`` on in all schemes; earlier ones are restored from ``solved``."""
    schemes = [parse_scheme(name, group_size=32) for name in names]
    out = list(solved[:start])

    def restore(layer: int, scheme: object) -> SolvedLayer:
        kept = solved[layer][schemes.index(scheme)]
        return SolvedLayer(kept.linears, kept.changed, ())

    with Checkpoint(folder) as checkpoint:
        config = read_config(folder)
        for layer in stream_layers(
            checkpoint, config, ROWS, schemes, stream, start=start, restore=restore
        ):
            out.append([])
            for scheme in schemes:
                made = solve_layer(layer, scheme, OPTIONS)
                layer.keep(scheme, made)
                out[-1].append(made)
    return out


def test_resumed_or_spilled_runs_equal_an_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    names = ("gptq:int4", "awq:int4")
    whole = solve_all(folder, StreamOptions(), names, 0, [])
    on_disk = solve_all(folder, StreamOptions(memory_bytes=0, work_folder=tmp_path), names, 0, [])
    assert list(tmp_path.iterdir()) == []
    resumed = solve_all(folder, StreamOptions(), names, 1, whole)
    for other in (on_disk, resumed):
        assert len(other) == 2
        for mine, theirs in zip(whole, other, strict=True):
            for one, two in zip(mine, theirs, strict=True):
                assert one.linears.keys() == two.linears.keys()
                for name, linear in one.linears.items():
                    assert torch.equal(linear.codes, two.linears[name].codes)
                    assert torch.equal(linear.scales, two.linears[name].scales)
                    assert torch.equal(linear.zeros, two.linears[name].zeros)
                assert one.changed.keys() == two.changed.keys()
                for name, value in one.changed.items():
                    assert torch.equal(value, two.changed[name])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no calibration tokens"),
        ([[]], "no calibration tokens"),
        ([[1, 2], [3]], "2 different lengths"),
        ([[1, 8192]], "token 8192"),
        ([[1, -1]], "token -1"),
    ],
)
def test_bad_rows_are_refused(folder: Path, rows: list[list[int]], said: str) -> None:
    with Checkpoint(folder) as checkpoint, pytest.raises(UsageError, match=said):
        next(stream_layers(checkpoint, read_config(folder), rows))


def test_a_layer_that_was_not_kept_is_told(folder: Path) -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    with Checkpoint(folder) as checkpoint:
        stream = stream_layers(checkpoint, read_config(folder), ROWS, [scheme])
        next(stream)
        with pytest.raises(UsageError, match="Layer 0"):
            next(stream)
