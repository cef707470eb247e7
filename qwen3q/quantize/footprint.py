"""The largest resident size of a quantizing process: predicted from the plan, and measured.

The prediction follows the run: one stage of one decoder layer is at work at a time (q/k/v, o,
gate/up, down), and holds what ``stage.LayerWork`` and ``linears.solve`` hold. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, TensorSpec, layer_tensors
from qwen3q.quantize.limits import (
    EXPERT_TOKENS,
    FEWEST_OUTPUTS,
    FITTED_OUTPUTS,
    SOLVED_AT_ONCE,
    experts_at_once,
)

_SOLVE_COPIES = 16
"""Float32 copies of those weights that error feedback and refinement hold at most."""
_FIT_COPIES = 4
"""Copies of the weights that scales are fitted on."""
_INPUT_COPIES = 6
"""Float32 copies of a linear's inputs, for the tokens at work."""
_EXPERT_KERNELS, _SCHEME_KERNELS = 80_000_000, 40_000_000
"""Kernels that torch's libraries compile for the many numbers of tokens that experts are given, and
for those that each scheme's own routing brings."""
_SLACK_BYTES = 130_000_000
_SLACK_SHARE = 0.03
"""What the allocator and torch's kernels keep beside what is asked for, as runs have shown."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run.

    Attributes:
        tokens: of calibration, in all.
        at_once: tokens of one portion.
        threads: portions that run side by side.
        product_bytes: bytes of a value in a matrix product: 2 where it is bfloat16, else 4.
        process: resident bytes before anything is loaded: interpreter and libraries.
    """

    tokens: int
    at_once: int
    threads: int
    product_bytes: int
    process: int = 270_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes at the moment when they are most.

    Attributes:
        process: interpreter and libraries, and what these compile.
        activations: hidden states of all calibration rows, and those at work.
        weights: of the layer, in float32 or as products take them.
        statistics: Hessian and drift of the linears at work, the Hessian's factor included.
        workspace: what the solver or the search for scales needs.
        output: codes that wait for the layer to be complete.
        file: pages of the checkpoint in memory while the largest tensor is copied.
        stage: which moment that is.
    """

    process: int
    activations: int
    weights: int = 0
    statistics: int = 0
    workspace: int = 0
    output: int = 0
    file: int = 0
    stage: str = ""

    @property
    def slack(self) -> int:
        """What the allocator keeps of freed memory, and kernels for themselves."""
        return _SLACK_BYTES + round(_SLACK_SHARE * (self._asked_for - self.process))

    @property
    def total(self) -> int:
        return self._asked_for + self.slack

    @property
    def _asked_for(self) -> int:
        return sum(value for value in asdict(self).values() if isinstance(value, int))


def predict_peak(config: Qwen3Config, schemes: int, work: Workload, memory_bytes: int) -> Footprint:
    """The moment of a run on a processor at which its memory is largest.

    Args:
        schemes: how many are solved with calibration.
        memory_bytes: what activations may take; beyond it they lie in files.
    """
    if config.is_moe:
        kernels = _EXPERT_KERNELS + schemes * _SCHEME_KERNELS
        work = replace(work, process=work.process + kernels)
    kept = min(_kept_activations(config, schemes, work), memory_bytes)
    moments = [_outside(config, work)]
    for index in {config.is_moe_layer(i): i for i in range(config.num_hidden_layers)}.values():
        linears = [spec for spec in layer_tensors(config, index) if spec.is_linear]
        moments.append(_float_pass(linears, work, kept))
        if schemes:
            moments += _solving(config, linears, work, kept)
    return max(moments, key=lambda moment: moment.total)


def layer_float_bytes(config: Qwen3Config) -> int:
    """One decoder layer in float32: the unit that the peak is held against."""
    return 4 * max(_count(layer_tensors(config, i)) for i in range(config.num_hidden_layers))


def _kept_activations(config: Qwen3Config, schemes: int, work: Workload) -> int:
    """Of all rows: the stream's, and those of the one scheme that is at work."""
    if not schemes:
        return work.tokens * 4 * 2 * config.hidden_size
    residual = (5 + schemes) * 4 * config.hidden_size
    between = 2 * work.product_bytes * config.q_size
    if config.is_moe:
        between += 2 * work.product_bytes * config.hidden_size
    if not all(config.is_moe_layer(i) for i in range(config.num_hidden_layers)):
        between += 2 * work.product_bytes * config.intermediate_size
    return work.tokens * (residual + between)


def _outside(config: Qwen3Config, work: Workload) -> Footprint:
    """Embedding or lm_head on its way from file to file; activations are not there yet."""
    size = config.vocab_size * config.hidden_size * (4 if config.dtype == "float32" else 2)
    return Footprint(work.process, 0, file=size, stage="embedding")


def _float_pass(linears: Sequence[TensorSpec], work: Workload, kept: int) -> Footprint:
    weights = work.product_bytes * _count(linears) + 4 * max(spec.numel for spec in linears)
    widest = max(max(spec.shape) for spec in linears)
    running = kept + work.threads * work.at_once * 4 * _INPUT_COPIES * widest
    return Footprint(work.process, running, weights, stage="float pass")


def _solving(
    config: Qwen3Config, linears: Sequence[TensorSpec], work: Workload, kept: int
) -> list[Footprint]:
    """Every stage of one layer in one scheme; schemes take their turns."""
    moments = []
    done = 0
    for roles in ((Role.Q, Role.K, Role.V), (Role.O,), (Role.GATE, Role.UP), (Role.DOWN,)):
        found = [spec for spec in linears if spec.role in roles]
        batch = 1
        if found[0].expert is not None:
            batch = experts_at_once(config)
            found = [spec for spec in found if spec.expert is not None and spec.expert < batch]
        entry = [spec for spec in found if spec.expert == found[0].expert]
        moments += _stage(roles[-1].value, entry, batch, work, kept, done)
        done += _count(spec for spec in linears if spec.role in roles)
    return moments


def _stage(
    name: str,
    linears: Sequence[TensorSpec],
    batch: int,
    work: Workload,
    kept: int,
    done: int,
) -> list[Footprint]:
    """The search for scales, the collection of statistics, and the solution of one stage.

    Args:
        linears: that share an input, of one expert if there are several.
        batch: experts at once.
        done: weights of the layer that are solved already.
    """
    columns = linears[0].shape[1]
    outputs = sum(spec.shape[0] for spec in linears)
    cross = min(outputs, columns)
    size = outputs * columns
    hessian = 4 * batch * columns * columns
    statistics = hessian + 4 * batch * columns * cross
    copies = 2 if batch > 1 else 1
    output = done + batch * size
    at_once = work.at_once if linears[0].expert is None else min(EXPERT_TOKENS, work.tokens)
    running = kept + work.threads * at_once * 4 * (_INPUT_COPIES * columns + cross)
    running_with = done if linears[0].expert is not None else min(done, 2 * size)
    ready = work.product_bytes * running_with
    after = ready if linears[0].expert is not None else 0
    fitted = 4 * _FIT_COPIES * min(outputs, FITTED_OUTPUTS) * columns
    narrow = work.product_bytes * batch * size if outputs < columns else 0
    part = max(SOLVED_AT_ONCE, FEWEST_OUTPUTS * batch * columns)
    solved = 4 * _SOLVE_COPIES * min(batch * size, work.threads * part)
    return [
        Footprint(work.process, kept, 4 * max(s.numel for s in linears), hessian // batch, fitted,
                  stage=f"scales of {name}"),
        Footprint(work.process, running, ready + narrow, statistics, 0, output,
                  stage=f"statistics of {name}"),
        Footprint(work.process, kept, after + 4 * batch * size, statistics * copies, solved,
                  output + batch * size, stage=f"solving {name}"),
    ]  # fmt: skip


def _count(linears: Iterable[TensorSpec]) -> int:
    return sum(spec.numel for spec in linears)
