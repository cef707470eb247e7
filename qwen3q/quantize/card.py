"""The model card of an artefact: what it is, what was done, what that cost, how to run it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import yaml

from qwen3q import __version__
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.plan.engines import engines_for
from qwen3q.plan.plan import Plan
from qwen3q.plan.schemes import Layout, Scheme

_TAGS = {
    Layout.GPTQ: ["gptq"],
    Layout.AWQ: ["awq"],
    Layout.PACK_QUANTIZED: ["compressed-tensors"],
    Layout.INT_QUANTIZED: ["compressed-tensors"],
    Layout.BNB_NF4: ["bitsandbytes", "nf4"],
    Layout.BNB_INT8: ["bitsandbytes", "int8"],
    Layout.FP8: ["fp8"],
}


def model_card(
    name: str,
    scheme: Scheme,
    plan: Plan,
    source: ModelSource,
    calibration: Mapping[str, Any],
    options: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> str:
    """``README.md`` in the Hub's form.

    Args:
        calibration: what calibrated it; empty if nothing did.
        options: what the solver was told; empty where there was none.
        rows: report rows, one per quantized linear.
        notes: remarks that solvers made.
    """
    base = source.repo or source.title
    parts = [
        _front_matter(scheme, source),
        f"# {name}\n\n{base} in {scheme.name}: {scheme.describe()}. "
        f"Made with qwen3q {__version__}.",
        "## What was done\n\n" + _table(scheme, plan, source.config, calibration, options),
    ]
    if rows:
        parts.append("## What it cost\n\n" + _errors(rows))
    coverage = _coverage(rows)
    if coverage:
        parts.append("## Experts\n\n" + coverage)
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in dict.fromkeys(notes)))
    parts.append("## How to run it\n\n" + _usage(name, scheme, source.config, plan))
    parts.append(
        "`report.json` has bits, error and seconds of every tensor; `manifest.json` the checksums "
        "of what went in and came out. `qwen3q verify` checks the folder against both."
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(scheme: Scheme, source: ModelSource) -> str:
    fields: dict[str, Any] = {}
    if source.repo is not None:
        fields["base_model"] = source.repo
        fields["base_model_relation"] = "quantized"
    if source.release is not None or (source.repo or "").startswith("Qwen/"):
        fields["license"] = "apache-2.0"
    fields["library_name"] = "transformers"
    fields["pipeline_tag"] = "text-generation"
    bits = [] if scheme.layout is Layout.FLOAT else [f"{scheme.bits}-bit"]
    fields["tags"] = ["qwen3", *_TAGS.get(scheme.layout, []), *bits, "qwen3q"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _kept(config: Qwen3Config) -> list[str]:
    kept = ["embeddings", "norms"]
    kept += [] if config.tie_word_embeddings else ["lm_head"]
    return kept + (["routers"] if config.is_moe else [])


def _table(
    scheme: Scheme,
    plan: Plan,
    config: Qwen3Config,
    calibration: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    rows = [
        ("format", scheme.describe()),
        ("layout", str(scheme.layout)),
        ("weights", f"{plan.tensor_bytes:,} bytes, {plan.bits_per_weight:.2f} bits per weight"),
    ]
    if scheme.layout is not Layout.FLOAT:
        rows.append(("kept in float", ", ".join(_kept(config))))
    for override in scheme.overrides:
        rows.append(("exception", f"`{override.pattern}`: {_override_words(override)}"))
    rows += [(key.replace("_", " "), str(value)) for key, value in options.items()]
    rows += [(f"calibration: {key}", str(value)) for key, value in calibration.items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _override_words(override: Any) -> str:
    if override.keep_float:
        return "float"
    words = [
        f"{override.bits} bits" if override.bits is not None else "",
        f"groups of {override.group_size}" if override.group_size is not None else "",
        "" if override.symmetric is None else "symmetric" if override.symmetric else "asymmetric",
    ]
    return ", ".join(word for word in words if word)


def _errors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean relative error per kind of linear, beside round-to-nearest's where it was measured."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["name"].split(".")[-2], []).append(row)
    against = "rtn_error" in rows[0]
    what = (
        "Squared error of a linear's output over its squared output, on the calibration tokens, "
        "mean over the linears of a kind."
        if against
        else "Squared error of the weights over their squares, mean over the linears of a kind."
    )
    head = "| linear | error |" + (" round-to-nearest |" if against else "")
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for kind, of_kind in kinds.items():
        line = f"| {kind} | {fmean(row['error'] for row in of_kind):.3g} |"
        if against:
            line += f" {fmean(row['rtn_error'] for row in of_kind):.3g} |"
        lines.append(line)
    return what + "\n\n" + "\n".join(lines)


def _coverage(rows: Sequence[Mapping[str, Any]]) -> str:
    experts = [row for row in rows if ".mlp.experts." in row["name"] and "tokens" in row]
    if not experts:
        return ""
    fewest = min(experts, key=lambda row: int(row["tokens"]))
    topped_up = {row["name"].rsplit(".", 2)[0] for row in experts if row["forced_tokens"]}
    fallen_back = {row["name"].rsplit(".", 2)[0] for row in experts if row["fallback"]}
    return (
        f"Calibration tokens per expert: {fewest['tokens']} at the least "
        f"(`{fewest['name'].rsplit('.', 2)[0]}`), "
        f"{fmean(row['tokens'] for row in experts):.0f} on average. "
        f"Topped up with tokens that the router did not send: {len(topped_up)} experts. "
        f"Fallen back to another algorithm, named in `report.json`: {len(fallen_back)} experts."
    )


def _usage(name: str, scheme: Scheme, config: Qwen3Config, plan: Plan) -> str:
    engines = engines_for(scheme, config, {t.name: t.type for t in plan.tensors})
    parts = []
    if engines.vllm:
        parts.append(f"```sh\nvllm serve ./{name}\n```")
    if engines.transformers is not None:
        packages = shlex.join(("transformers", "accelerate", *engines.transformers))
        parts.append(
            f"With transformers (`pip install {packages}`):\n\n"
            "```python\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("./{name}")\n'
            f'model = AutoModelForCausalLM.from_pretrained("./{name}", device_map="auto")\n'
            "```"
        )
    elif engines.gptqmodel:
        parts.append(
            "With gptqmodel (`pip install gptqmodel`):\n\n"
            "```python\n"
            "from gptqmodel import GPTQModel\n\n"
            f'model = GPTQModel.load("./{name}")\n'
            "```"
        )
    return "\n\n".join([*parts, *engines.notes])
