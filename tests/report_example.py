"""Reports with made-up figures, for tests of what is drawn and written from them."""

from __future__ import annotations

from qwen3q.evaluate.report import SCHEMA


def row(name: str, nbytes: int, divergence: float, **more) -> dict:
    figures = {"perplexity": 8.0, "kl_mean": divergence, "kl_p99": 9 * divergence, "top1": 0.9}
    errors = {f"{key}_stderr": value / 50 for key, value in figures.items()}
    facts = {"run": 0, "artefact": name, "format": f"gguf:{name}", "file_bytes": nbytes}
    return {**facts, "bits_per_weight": 4.5, **figures, **errors, **more}


def report(*rows: dict, text: str = "a", machine: str = "one") -> dict:
    reference = {
        "artefact": "Qwen3 <b>",
        "format": "bfloat16",
        "file_bytes": 16_000_000,
        "perplexity": 7.9,
        "perplexity_stderr": 0.1,
        "tokens": 2550,
        "chunks": 10,
        "context": 512,
        "first": 256,
    }
    run = {
        "created": "2025-01-02T03:04:05+00:00",
        "qwen3q": "0.1.0",
        "command": ["qwen3q", "eval", "<script>alert(1)</script>"],
        "machine": {"processor": machine},
        "text": {"name": "books & more", "sha256": text},
        "reference": reference,
    }
    return {"schema": SCHEMA, "runs": [run], "results": list(rows)}


EXAMPLE = report(
    row("Q8_0", 8_000_000, 0.0003),
    row("Q4_K_M", 5_000_000, 0.008),
    row("Q4_0", 5_100_000, 0.012),
    row(
        "Q2_K",
        4_000_000,
        0.07,
        layer_errors={"0": {"q_proj": 0.01, "up_proj": 0.02}, "1": {"q_proj": 0.03}},
    ),
)


LONG = "Qwen3-30B-A3B-Thinking-2507-UD-IQ4_XS"


def speed_rows(*names: str) -> list[dict]:
    return [
        {
            "run": 0,
            "artefact": name,
            "format": name,
            "file_bytes": 1,
            "engine": "llama.cpp",
            "phase": phase,
            "tokens": tokens,
            "depth": depth,
            "batch": batch,
            "tokens_per_second": 12_345.6 / (1 + depth + number),
            "tokens_per_second_stddev": 200.0,
            "first_token_ms": 3.0,
            "predicted": {"tokens_per_second": 100.0, "band": 0.08},
            "joules_per_token": 0.25,
        }
        for number, name in enumerate(names)
        for phase in ("prefill", "decode")
        for tokens, depth, batch in ((128, 0, 1), (4096, 0, 1), (128, 32768, 1), (128, 0, 64))
    ]


def memory_row(name: str, device: str, **more) -> dict:
    parts = {"weights_bytes": 16_900_000_000, "kv_bytes": 6_400_000_000, "compute_bytes": 5 * 10**8}
    row = {"run": 0, "artefact": name, "format": name, "file_bytes": 1, "engine": "llama.cpp"}
    shape = {"device": device, "context": 32768, "batch": 2, "rest_bytes": None}
    return row | shape | parts | {"predicted": parts | {"rest_bytes": 10**9}} | more


FULL = EXAMPLE | {
    "speed": speed_rows(LONG, *(f"Qwen3-8B-Q{bits}_K_M" for bits in range(9))),
    "memory": [
        memory_row(LONG, "CUDA0"),
        memory_row(LONG, "CPU", weights_bytes=10**8, kv_bytes=0),
        memory_row("Qwen3-8B-GPTQ-Int4", "cuda:0", predicted=None, compute_bytes=None),
    ],
}


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def _head(name: str) -> dict:
    return {"run": 0, "artefact": name, "format": name, "file_bytes": 5_000_000}


EVERYTHING = report(EXAMPLE["results"][3]) | {
    "speed": [
        speed_rows("Q4_0")[0],
        {key: value for key, value in speed_rows("Q4_0")[4].items() if key != "first_token_ms"}
        | {"latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}},
    ],
    "memory": FULL["memory"][:1],
    "gate": [
        _head("Q4_0")
        | {"mode": mode, "set": "questions", "rope": "own", "verdict": "fail", "questions": 9}
        | {"replies": 18, "right": 7, "flaws": {"endless": 2}, "thinking_tokens": 80.5}
        | {"by_kind": {"ordering": {"asked": 9, "right": 6}, "copying": {"asked": 9, "right": 1}}}
        | {"flawed": 2, "seed": 0}
        | {name: interval(0.2) for name in ("change", "flaw_change", "thinking_change")}
        for mode in ("thinking", "plain")
    ],
    "tasks": [
        _head("Q4_0")
        | {"task": "gsm8k", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.1}
        | {"higher_is_better": True, "fewshot": 5, "version": 3, "questions": 100}
        | {"change": -0.1, "change_stderr": 0.05}
    ],
    "streaming": [
        _head("demo at 127.0.0.1:8000")
        | {"concurrency": 4, "requests": 8, "failed": 1, "failures": {"timed out": 1}}
        | {"prompt_tokens": 64, "prompt_tokens_read": 64, "generate": 32, "generated_tokens": 224}
        | {"pieces": 224, "seconds": 3.5, "tokens_per_second": 64.0}
        | {"request_tokens_per_second": 18.0, "between_ms": None}
        | {"first_token_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}}
    ],
}
"""One row of every kind."""
