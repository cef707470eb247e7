"""LLM Compressor: GPTQ and AWQ as W4A16, and W8A8 by SmoothQuant and GPTQ, as in its examples."""

from __future__ import annotations

from typing import Any

from eval.peers.job import Job, read_job


def recipe(job: Job) -> list[Any]:
    """The modifiers of LLM Compressor's own examples for this format."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    ignore = ["lm_head", "re:.*mlp.gate$"]
    if job.format in ("gptq:int4", "int4"):
        return [GPTQModifier(targets="Linear", scheme="W4A16", ignore=ignore)]
    if job.format == "awq:int4":
        quantize = QuantizationModifier(targets=["Linear"], scheme="W4A16_ASYM", ignore=ignore)
        return [AWQModifier(duo_scaling="both"), quantize]
    if job.format == "int8":
        smooth = SmoothQuantModifier(smoothing_strength=0.8)
        return [smooth, GPTQModifier(targets="Linear", scheme="W8A8", ignore=ignore)]
    raise SystemExit(f"LLM Compressor has no driver here for {job.format}")


def main() -> None:
    """Run `oneshot` on the job's rows and save compressed."""
    job = read_job()
    import torch

    torch.Tensor.pin_memory = lambda self, *_: self  # AWQ pins memory, which needs CUDA
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = job.tokens.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    with job.timed("load"):
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(job.model)
    with job.timed("quantize"):
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=data,
            recipe=recipe(job),
            max_seq_length=job.tokens.shape[1],
            num_calibration_samples=len(rows),
            shuffle_calibration_samples=False,
            batch_size=8,
        )
    with job.timed("save"):
        model.save_pretrained(job.out, save_compressed=True)
        tokenizer.save_pretrained(job.out)
    job.report("llmcompressor")


if __name__ == "__main__":
    main()
