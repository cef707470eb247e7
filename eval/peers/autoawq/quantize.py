"""AutoAWQ 0.2.9: AWQ gemm with zero points, scale search and clipping on, as in its README."""

from __future__ import annotations

from typing import Any

from eval.peers.job import read_job


def cpu_quantizer() -> Any:
    """AutoAWQ's quantizer, with a search that gives the weights back on a CPU too.

    The search keeps `{name: v.cpu()}` to restore a module after each trial. For weights that are on
    the CPU already this is no copy, so every trial's scale stays in them and the result is noise.
    """
    from awq.quantize.quantizer import AwqQuantizer

    class CpuQuantizer(AwqQuantizer):  # type: ignore[misc]
        def _compute_best_scale(
            self, x: Any, w_mean: Any, x_mean: Any, module2inspect: Any, *rest: Any, **options: Any
        ) -> Any:
            aliases = module2inspect.state_dict
            module2inspect.state_dict = lambda: {k: v.clone() for k, v in aliases().items()}
            try:
                return super()._compute_best_scale(
                    x, w_mean, x_mean, module2inspect, *rest, **options
                )
            finally:
                del module2inspect.state_dict

    return CpuQuantizer


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
            quantizer_cls=cpu_quantizer(),
        )
    with job.timed("save"):
        model.save_quantized(str(job.out))
        tokenizer.save_pretrained(job.out)
    job.report("autoawq")


if __name__ == "__main__":
    main()
