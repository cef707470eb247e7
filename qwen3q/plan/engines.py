"""Which engines load which format of which model, as it was found by running them."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.models.config import Qwen3Config
from qwen3q.plan.schemes import Layout, Scheme

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


def engines_for(scheme: Scheme, config: Qwen3Config) -> Engines:
    """What is known of engines and this format of this model."""
    notes = []
    vllm = scheme.layout not in (Layout.BNB_NF4, Layout.BNB_INT8)
    transformers = _TRANSFORMERS_NEEDS.get(scheme.layout)
    packed_words = scheme.layout in (Layout.GPTQ, Layout.AWQ)
    if scheme.layout is Layout.GPTQ and not scheme.symmetric:
        vllm = False
        notes.append("vLLM refuses asymmetric GPTQ; gptqmodel reads it.")
    if scheme.layout is Layout.PACK_QUANTIZED and not scheme.symmetric:
        notes.append(
            "Asymmetric zero points do not load in transformers 5 with compressed-tensors 0.19 "
            "and later."
        )
    if scheme.layout is Layout.GPTQ and scheme.overrides:
        transformers = None
        notes.append(
            "transformers does not read GPTQ with exceptions by tensor; vLLM and gptqmodel do."
        )
    if config.is_moe and packed_words:
        transformers = None
        notes.append(
            "transformers leaves the experts of this format at random values and says nothing: "
            "load it with vLLM, SGLang or gptqmodel."
        )
    if config.is_moe and scheme.layout in (Layout.BNB_NF4, Layout.BNB_INT8):
        notes.append(
            "transformers 5 keeps experts in 16 bits under bitsandbytes; take transformers 4."
        )
    return Engines(vllm, transformers, packed_words, tuple(notes))
