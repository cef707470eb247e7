"""In what precision and portions a calibration stream runs its layers."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qwen3q.calibrate.statistics import Gram
from qwen3q.models.decoder import Linear
from qwen3q.models.products import product
from qwen3q.process_memory import peak_since_start, resident_bytes
from qwen3q.quantize.footprint import Workload
from qwen3q.quantize.team import Team
from qwen3q.threads import NARROW, worthwhile_threads

if TYPE_CHECKING:
    from qwen3q.formats.grid import QuantizedLinear
    from qwen3q.models.config import Qwen3Config
    from qwen3q.plan.schemes import Scheme
    from qwen3q.quantize.activations import ActivationStore
    from qwen3q.quantize.stream import StreamedLayer

_TOKENS_ON_CORE = 512
"""So few that what runs between two matrix products stays in a core's cache."""
_TOKENS_ON_ACCELERATOR = 16384
_TOKENS_FOR_EXPERTS = 2048
"""A portion is spread over the experts, and each expert's product needs its share of tokens."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a stream computes.

    Attributes:
        device: where layers run.
        dtype: of linears and attention; norms, router and the residual stream are float32.
        factors: what inputs are rounded to where their second moments are summed.
        rows: calibration rows that are run at a time.
        team: who runs portions side by side.
    """

    device: str
    dtype: torch.dtype
    factors: torch.dtype
    rows: int
    team: Team

    def portions(self, store: ActivationStore, stride: int = 1) -> Iterator[slice]:
        """All rows, a portion at a time; or every ``stride``-th of these portions."""
        for start in range(0, store.rows, self.rows * stride):
            yield slice(start, min(start + self.rows, store.rows))

    def each(self, store: ActivationStore, run: Callable[[slice], None]) -> None:
        """Calls ``run`` for every portion, several at a time."""
        self.team.map(run, self.portions(store))

    def gram(self, columns: int, weight: torch.Tensor | None = None, *, drift: bool) -> Gram:
        """Empty statistics of inputs, as ``Gram`` takes its arguments."""
        return Gram(columns, weight, drift=drift, device=self.device, factors=self.factors)

    def prepare(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A layer's weights by short name as the decoder takes them: linears in ``dtype``."""
        return {
            name: value.to(self.device, self.dtype if name.endswith("_proj") else torch.float32)
            for name, value in weights.items()
        }

    def quantized(
        self,
        layer: StreamedLayer,
        scheme: Scheme,
        linears: Mapping[str, QuantizedLinear],
        changed: Mapping[str, torch.Tensor],
    ) -> tuple[dict[str, torch.Tensor], Linear]:
        """A solved layer's weights, and its linears with activations as at inference.

        Args:
            linears, changed: of a ``SolvedLayer``, by checkpoint name.
        """
        prepared: dict[str, torch.Tensor] = {}
        for short, spec in layer.specs.items():
            if spec.name in linears:
                weight = linears[spec.name].dequantize()
            elif spec.name in changed:
                weight = changed[spec.name]
            else:
                weight = layer.weights[spec.name]
            prepared |= self.prepare({short: weight})
        rounded = {s for s, spec in layer.specs.items() if spec.name in linears}
        return prepared, self.linear(prepared, scheme, rounded)

    def linear(
        self, weights: Mapping[str, torch.Tensor], scheme: Scheme, rounded: set[str]
    ) -> Linear:
        """Linears whose inputs, where in ``rounded``, are rounded as the scheme does."""

        def run(name: str, x: torch.Tensor) -> torch.Tensor:
            if scheme.activation_bits is not None and name in rounded:
                x = round_activations(x, scheme.activation_bits)
            return product(x, weights[name])

        return run

    @contextmanager
    def products(self) -> Iterator[None]:
        """Within: float32 products may round their factors to bfloat16, never their sums.

        On processors that is for those with tiles; vectors gain by ``factors`` of bfloat16 alone.
        """
        before = torch.get_float32_matmul_precision()
        rounded = self.dtype is torch.bfloat16 and (self.device != "cpu" or _has("amx_tile"))
        torch.set_float32_matmul_precision("medium" if rounded else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def round_activations(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric rounding with one scale per token, as W8A8 engines do on the fly."""
    top = 2 ** (bits - 1) - 1
    scales = x.float().abs().amax(-1, keepdim=True).clamp_(min=1e-12) / top
    rounded: torch.Tensor = (x / scales).round_().clamp_(-top - 1, top).mul_(scales)
    return rounded.to(x.dtype)


def arithmetic_for(config: Qwen3Config, device: str, length: int) -> Arithmetic:
    """bfloat16 where the hardware multiplies it fast, else float32.

    Args:
        length: tokens of a calibration row.
    """
    kind = device.partition(":")[0]
    tokens = _TOKENS_FOR_EXPERTS if config.is_moe else _TOKENS_ON_CORE
    if kind != "cpu":
        tokens = _TOKENS_ON_ACCELERATOR
    dtype = _dtype(device)
    factors = dtype if kind == "cpu" and not _has("amx_tile") else torch.float32
    return Arithmetic(device, dtype, factors, max(1, tokens // length), _team_for(config, kind))


def _team_for(config: Qwen3Config, kind: str) -> Team:
    cores = torch.get_num_threads() if kind == "cpu" else 1
    width = config.hidden_size
    return Team(worthwhile_threads(cores, width), alone=width < NARROW)


def workload_of(config: Qwen3Config, device: str, rows: int, length: int) -> Workload:
    """What a calibration of so many rows runs, for the prediction of its memory."""
    arithmetic = arithmetic_for(config, device, length)
    return Workload(
        tokens=rows * length,
        at_once=arithmetic.rows * length,
        threads=arithmetic.team.size,
        product_bytes=arithmetic.dtype.itemsize,
        process=resident_bytes() or peak_since_start(),
    )


def arithmetic_name(device: str) -> str:
    """What computes and how, on which a solved layer's last bits depend:
    ``AMD EPYC, AVX512, bfloat16 products``."""
    return f"{_hardware(device)}, {str(_dtype(device)).removeprefix('torch.')} products"


def _hardware(device: str) -> str:
    kind = device.partition(":")[0]
    if kind == "cuda":
        return str(torch.cuda.get_device_name(device))
    if kind != "cpu":
        return device
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _dtype(device: str) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32."""
    kind = device.partition(":")[0]
    fast = torch.cuda.is_bf16_supported() if kind == "cuda" else kind == "cpu" and _fast_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16, in tiles or vectors; others emulate it."""
    return _has("amx_tile") or _has("avx512_bf16")


def _has(unit: str) -> bool:
    probe = getattr(torch.cpu, f"_is_{unit}_supported", None)
    return bool(probe and probe())
