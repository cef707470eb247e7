"""Which engines load which format of which model, as it was found by running them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, model_tensors
from qwen3q.plan.scheme_fit import fitting_group_sizes
from qwen3q.plan.schemes import PER_CHANNEL, Layout, Scheme
from qwen3q.plan.tensor_parallel import (
    TensorParallel,
    suggest_group_size,
    tensor_parallel_legality,
)

_TRANSFORMERS_NEEDS = {
    Layout.GPTQ: ("gptqmodel", "optimum"),
    Layout.AWQ: ("gptqmodel",),
    Layout.PACK_QUANTIZED: ("compressed-tensors",),
    Layout.INT_QUANTIZED: ("compressed-tensors",),
    Layout.BNB_NF4: ("bitsandbytes",),
    Layout.BNB_INT8: ("bitsandbytes",),
    Layout.FP8: (),
    Layout.FLOAT: (),
}
_PACKED_WORDS = (Layout.GPTQ, Layout.AWQ)
_BITSANDBYTES = (Layout.BNB_NF4, Layout.BNB_INT8)
_CASTS_NOTHING = (*_BITSANDBYTES, Layout.FP8)
"""Where transformers leaves float tensors in the dtypes that they are stored in."""


@dataclass(frozen=True, slots=True)
class Engines:
    """Where an artefact runs.

    Attributes:
        vllm: ``vllm serve`` loads it.
        transformers: packages that transformers needs beside accelerate, or None if it can't.
        gptqmodel: GPTQModel loads it.
        notes: what to know before choosing the format; one sentence each.
    """

    vllm: bool
    transformers: tuple[str, ...] | None
    gptqmodel: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Limit:
    """One thing that some engine does not do, and which of them it rules out.

    Attributes:
        note: one sentence about it.
        rules_out: fields of ``Engines``.
        needs: the packages that transformers needs instead, if it reads the artefact with those.
    """

    note: str
    rules_out: tuple[str, ...] = ()
    needs: tuple[str, ...] | None = None


def engines_for(
    scheme: Scheme, config: Qwen3Config, dtypes: Mapping[str, str] | None = None
) -> Engines:
    """What is known of engines and this format of this model.

    Args:
        dtypes: what its float tensors are stored in, by name; the config's where absent.
    """
    limits = [*_format_limits(scheme), *_model_limits(scheme, config, dtypes or {})]
    ruled_out = {engine for limit in limits for engine in limit.rules_out}
    needs = [limit.needs for limit in limits if limit.needs is not None]
    vllm = scheme.layout not in _BITSANDBYTES and "vllm" not in ruled_out
    transformers = needs[-1] if needs else _TRANSFORMERS_NEEDS.get(scheme.layout)
    if "transformers" in ruled_out:
        transformers = None
    gptqmodel = scheme.layout in _PACKED_WORDS and "gptqmodel" not in ruled_out
    notes = [limit.note for limit in limits]
    if not vllm and transformers is None and not gptqmodel:
        other = "leave --asym out" if _is_asymmetric_gptq(scheme) else "take int4 or gguf:Q4_K_M"
        notes.append(f"So no engine that is known runs what will be written: {other}.")
    return Engines(vllm, transformers, gptqmodel, tuple(notes))


def _format_limits(scheme: Scheme) -> Iterator[_Limit]:
    """Of a format, whatever the model."""
    asymmetric = _is_asymmetric_gptq(scheme)
    if asymmetric:
        yield _Limit(
            "vLLM and GPTQModel refuse asymmetric GPTQ; transformers reads dense models.",
            ("vllm", "gptqmodel"),
        )
    if scheme.layout in _PACKED_WORDS and scheme.bits == 4 and scheme.group_size == PER_CHANNEL:
        yield _Limit(
            "On a CPU, transformers loads this format with one scale per output, and fails when it "
            "generates: take --group-size 128 there."
        )
    if scheme.layout is Layout.PACK_QUANTIZED and not scheme.symmetric:
        yield _Limit(
            "Asymmetric zero points do not load in transformers 5 with compressed-tensors 0.19 "
            "and later."
        )
    if scheme.layout is Layout.GPTQ and scheme.overrides:
        others = "." if asymmetric else "; vLLM and gptqmodel do."
        yield _Limit(
            f"transformers does not read GPTQ with exceptions by tensor{others}",
            ("transformers",),
        )


def _model_limits(
    scheme: Scheme, config: Qwen3Config, dtypes: Mapping[str, str]
) -> Iterator[_Limit]:
    """Of a format on a model of this shape, stored in these dtypes."""
    split = _split_matrix(scheme, config)
    if split:
        yield _Limit(
            f"vLLM and SGLang make one matrix of {split[0]} and {split[1]}: give both the same "
            "exception.",
            ("vllm",),
        )
    if config.is_moe and scheme.layout in _PACKED_WORDS:
        others = "." if _is_asymmetric_gptq(scheme) else ": load it with vLLM, SGLang or gptqmodel."
        yield _Limit(
            "transformers leaves the experts of this format at random values and says nothing"
            + others,
            ("transformers",),
        )
    if config.is_moe and scheme.layout is Layout.INT_QUANTIZED:
        yield _Limit(
            "transformers 5 does not load experts of this format: take vLLM, or int4.",
            ("transformers",),
        )
    if config.is_moe and scheme.layout in _BITSANDBYTES:
        yield _Limit(
            "transformers 5 does not load experts of this format; transformers 4 does.",
            needs=("bitsandbytes", "transformers<5"),
        )
    if scheme.layout in _CASTS_NOTHING and _has_wide_norms(config, dtypes):
        yield _Limit(
            "transformers 5 fails when it generates, as this model's norms are float32 and its "
            "embeddings are not: quantize it --to bf16 first, and that folder to this format.",
            ("transformers",),
        )


def _is_asymmetric_gptq(scheme: Scheme) -> bool:
    return scheme.layout is Layout.GPTQ and not scheme.symmetric


def _has_wide_norms(config: Qwen3Config, dtypes: Mapping[str, str]) -> bool:
    """Whether a norm is float32 where the embeddings are narrower."""
    specs = model_tensors(config)
    narrow = any(s.role is Role.EMBED and dtypes.get(s.name, "float32") != "float32" for s in specs)
    return narrow and any(len(s.shape) == 1 and dtypes.get(s.name) == "float32" for s in specs)


_FUSED = {Role.Q: "qkv", Role.K: "qkv", Role.V: "qkv", Role.GATE: "gate_up", Role.UP: "gate_up"}


def _split_matrix(scheme: Scheme, config: Qwen3Config) -> tuple[str, str] | None:
    """Two modules that engines run as one matrix, but to which exceptions give different forms."""
    if not scheme.overrides:
        return None
    first: dict[tuple[int | None, int | None, str], str] = {}
    for spec in model_tensors(config):
        fused = _FUSED.get(spec.role)
        if fused is not None:
            name = first.setdefault((spec.layer, spec.expert, fused), spec.name)
            if _form(scheme, name) != _form(scheme, spec.name):
                return name.removesuffix(".weight"), spec.name.removesuffix(".weight")
    return None


def _form(scheme: Scheme, name: str) -> Scheme | None:
    """How one linear is stored; None: in float."""
    chosen = scheme.at(name)
    return chosen and replace(chosen, overrides=())


@dataclass(frozen=True, slots=True)
class Groups:
    """How one kind of linear that tensor parallelism cuts along its inputs divides into groups.

    Attributes:
        role: ``o_proj`` or ``down_proj``.
        in_features: its inputs.
        group_size: inputs that share a scale.
    """

    role: str
    in_features: int
    group_size: int

    @property
    def count(self) -> int:
        """in_features / group_size: a GPU must get a whole number of them."""
        return self.in_features // self.group_size


@dataclass(frozen=True, slots=True)
class Split:
    """Whether engines can split a format over some GPUs, and what would make it legal.

    Attributes:
        parallel: the size, and why it is illegal if it is.
        legal_group_size: the largest group size that this size allows, None where it is legal
            already or no group size helps.
    """

    parallel: TensorParallel
    legal_group_size: int | None


@dataclass(frozen=True, slots=True)
class Legality:
    """What to know of a format of a model before the work starts."""

    scheme: Scheme
    engines: Engines
    groups: tuple[Groups, ...]
    splits: tuple[Split, ...]


def legality(
    scheme: Scheme, config: Qwen3Config, *, dtypes: Mapping[str, str] | None = None
) -> Legality:
    """Engines, groups and tensor-parallel sizes of one format of one model.

    Args:
        dtypes: as ``engines_for`` takes them.
    """
    splits = tuple(
        Split(parallel, None if parallel.is_legal else _legal_group(config, scheme, parallel.size))
        for parallel in tensor_parallel_legality(config, scheme)
    )
    return Legality(scheme, engines_for(scheme, config, dtypes), _groups(scheme, config), splits)


def _groups(scheme: Scheme, config: Qwen3Config) -> tuple[Groups, ...]:
    """Of the linears that are cut along their inputs, each kind once."""
    found: dict[tuple[Role, int], Groups] = {}
    for spec in model_tensors(config):
        chosen = scheme.at(spec.name) if spec.role in (Role.O, Role.DOWN) else None
        if chosen is not None and chosen.is_uniform:
            columns = spec.shape[1]
            groups = Groups(spec.role.value, columns, chosen.group_of(columns))
            found.setdefault((spec.role, columns), groups)
    return tuple(found.values())


def _legal_group(config: Qwen3Config, scheme: Scheme, size: int) -> int | None:
    """The largest group size in which this model can be stored and split, if there is one."""
    group = suggest_group_size(config, scheme, size)
    return group if group in fitting_group_sizes(scheme, config) else None
