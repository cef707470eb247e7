"""AutoAWQ 0.2.9: AWQ gemm with zero points, scale search and clipping on, as in its README."""

from __future__ import annotations

from eval.peers.job import read_job


def main() -> None:
    """Quantize the job's model with AutoAWQ's defaults; `float32` is a variant of the load type."""
    job = read_job()
    if job.format != "awq:int4":
        raise SystemExit(f"AutoAWQ has no driver here for {job.format}")
    import torch
    from awq import AutoAWQForCausalLM
    from transformers import AutoTokenizer

    dtype = torch.float32 if job.option == "float32" else torch.float16
    with job.timed("load"):
        model = AutoAWQForCausalLM.from_pretrained(
            str(job.model), torch_dtype=dtype, device_map="cpu", use_cache=False
        )
        tokenizer = AutoTokenizer.from_pretrained(job.model)
    with job.timed("quantize"):
        model.quantize(
            tokenizer,
            quant_config={"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"},
            calib_data=job.tokens.tolist(),
            max_calib_samples=job.tokens.shape[0],
            max_calib_seq_len=job.tokens.shape[1],
        )
    with job.timed("save"):
        model.save_quantized(str(job.out))
        tokenizer.save_pretrained(job.out)
    job.report("autoawq")


if __name__ == "__main__":
    main()
