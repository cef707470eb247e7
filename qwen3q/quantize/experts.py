"""The experts of one layer: which tokens calibrate each, and their solution side by side.

An expert is calibrated on the tokens that the quantized prefix routes to it. If fewer than
``SolveOptions.min_expert_tokens`` are, it also gets those unrouted tokens for which its router
probability is highest, up to that number. If not even a quarter of the number are its own, error
feedback would fit inputs it never sees, so it is rounded to nearest, weighted by their squares.
Nor are scales fitted to so few (``folds``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3q.counts import counted
from qwen3q.models.decoder import ROUTER, expert_names, gated, mlp, plain_linear, rms_norm
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.activations import Activations
from qwen3q.quantize.folds import MLP_NORM
from qwen3q.quantize.limits import EXPERT_TOKENS, experts_at_once, too_few
from qwen3q.quantize.stage import LayerWork


@dataclass(frozen=True, slots=True)
class ExpertTokens:
    """The calibration tokens of one expert.

    Attributes:
        index: positions among all calibration tokens, ascending, forced ones included.
        forced: how many of them the router sends elsewhere.
        weak: why error feedback is not to be trusted, or an empty string.
    """

    index: torch.Tensor
    forced: int
    weak: str


def choose_tokens(probabilities: torch.Tensor, per_token: int, least: int) -> list[ExpertTokens]:
    """Every expert's calibration tokens, by the rule above.

    Args:
        probabilities: the router's, ``[tokens, experts]``.
        per_token: experts that a token is routed to.
        least: ``SolveOptions.min_expert_tokens``.
    """
    chosen = probabilities.topk(per_token, dim=-1).indices
    out = []
    for expert in range(probabilities.shape[1]):
        own = (chosen == expert).any(1)
        natural = int(own.sum())
        forced = min(max(least - natural, 0), len(own) - natural)
        if forced:
            others = probabilities[:, expert].masked_fill(own, -1)
            own[others.topk(forced).indices] = True
        few = too_few(natural, least)
        routed = "is" if natural == 1 else "are"
        told = f"only {counted(natural, 'calibration token')} {routed} routed to it"
        weak = told if few else ""
        out.append(ExpertTokens(own.nonzero()[:, 0], forced, weak))
    return out


def solve_experts(work: LayerWork) -> None:
    """gate/up and down of all experts; leaves the layer's output in ``work.output``."""
    config = work.layer.config
    own = work.room(config.hidden_size)
    floating = work.room(config.hidden_size) if work.float_inputs else None
    tokens = _route(work, own, floating)
    _note_coverage(work, tokens)
    for batch in _batches(work):
        _solve_batch(work, batch, tokens, own, floating)
    own.free()
    if floating is not None:
        floating.free()

    def finish(part: slice) -> None:
        x = work.read(work.middle, part)
        work.output.write(part, x + mlp(x, work.weights, config, work.linear))

    work.each(finish)


def _route(work: LayerWork, own: Activations, floating: Activations | None) -> list[ExpertTokens]:
    """Fills both models' normed inputs, and chooses tokens by the quantized prefix's."""
    config, inputs = work.layer.config, work.float_inputs
    norm, router = work.weights[MLP_NORM], work.weights[ROUTER]

    def run(part: slice) -> torch.Tensor:
        x = rms_norm(work.read(work.middle, part), norm, config.rms_norm_eps)
        own.write(part, x)
        if inputs is not None and floating is not None:
            floats = rms_norm(work.read(inputs.middle, part), norm, config.rms_norm_eps)
            floating.write(part, floats)
        return F.softmax(F.linear(x.flatten(0, 1), router), dim=-1).cpu()

    probabilities = work.layer.arithmetic.team.map(run, work.portions())
    return choose_tokens(
        torch.cat(probabilities), config.num_experts_per_tok, work.options.min_expert_tokens
    )


def _note_coverage(work: LayerWork, tokens: Sequence[ExpertTokens]) -> None:
    topped_up = [str(expert) for expert, chosen in enumerate(tokens) if chosen.forced]
    if topped_up:
        work.notes.append(
            f"experts with fewer than {work.options.min_expert_tokens} calibration tokens, "
            f"topped up: {', '.join(topped_up)}"
        )


def _batches(work: LayerWork) -> Iterator[list[int]]:
    """Experts to solve side by side: of one scheme, and not too many for memory."""
    config = work.layer.config
    at_once = experts_at_once(config)
    batch: list[int] = []
    for expert in range(config.num_experts):
        if batch and (len(batch) == at_once or _schemes(work, expert) != _schemes(work, batch[0])):
            yield batch
            batch = []
        batch.append(expert)
    yield batch


def _schemes(work: LayerWork, expert: int) -> list[Scheme | None]:
    return [work.scheme.at(work.layer.specs[name].name) for name in expert_names(expert)]


def _solve_batch(
    work: LayerWork,
    batch: Sequence[int],
    tokens: Sequence[ExpertTokens],
    own: Activations,
    floating: Activations | None,
) -> None:
    """gate/up and down of some experts, all with the same schemes."""
    names = [expert_names(expert) for expert in batch]
    gates_ups = [name for gate, up, _ in names for name in (gate, up)]
    folded = {n: work.folded(n) for n in gates_ups} if floating else {}
    floats = plain_linear(work.layer.arithmetic.prepare(folded))
    chosen = [tokens[expert] for expert in batch]

    def solve(entries: list[list[str]], inner: bool) -> None:
        for scheme, first in work.quantized(entries[0]).items():
            picked = [entries[0].index(name) for name in first]
            parts = [[entry[i] for i in picked] for entry in entries]
            grams = [work.gram(part) for part in parts]

            def observe(entry: int) -> None:
                gram, (gate, up, _) = grams[entry], names[entry]  # noqa: B023
                for x, x_float in _inputs(work, chosen[entry], own, floating):
                    if inner:
                        x = gated(x, gate, up, work.linear)
                        x_float = None if x_float is None else gated(x_float, gate, up, floats)
                    gram.add([work.pair(gram, x, x_float)])

            with work.layer.arithmetic.products():
                work.layer.arithmetic.team.map(observe, range(len(batch)))
            weak, forced = [e.weak for e in chosen], [e.forced for e in chosen]
            work.solve_batch(parts, grams, scheme, weak, forced)

    solve([[gate, up] for gate, up, _ in names], inner=False)
    solve([[down] for *_, down in names], inner=True)


def _inputs(
    work: LayerWork, tokens: ExpertTokens, own: Activations, floating: Activations | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """An expert's inputs ``[tokens, hidden_size]`` in both models, some at a time."""
    device = work.layer.arithmetic.device
    for index in torch.split(tokens.index, EXPERT_TOKENS):
        if len(index):
            yield own.gather(index, device), floating.gather(index, device) if floating else None
