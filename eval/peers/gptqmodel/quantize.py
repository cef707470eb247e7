"""GPTQModel: GPTQ (act_group_aware, its default) and AWQ, 4 bit, groups of 128."""

from __future__ import annotations

from eval.peers.job import read_job


def main() -> None:
    """Quantize the job's model in the way GPTQModel does by default."""
    job = read_job()
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import AWQConfig, GPTQConfig

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.tokens.tolist()]
    backend = BACKEND.AUTO
    if job.format == "gptq:int4":
        mse = 2.4 if job.option == "mse" else 0.0
        config = GPTQConfig(bits=4, group_size=128, sym=True, desc_act=False, mse=mse)
    elif job.format == "awq:int4":
        config = AWQConfig(bits=4, group_size=128, sym=False)
        backend = BACKEND.AWQ_TORCH  # the default picks a CUDA kernel
    else:
        raise SystemExit(f"GPTQModel has no driver here for {job.format}")
    config.device = "cpu"
    config.offload_to_disk = False
    with job.timed("load"):
        model = GPTQModel.load(str(job.model), config)
    with job.timed("quantize"):
        model.quantize(rows, batch_size=8, backend=backend)
    with job.timed("save"):
        model.save(str(job.out))
    job.report("gptqmodel")


if __name__ == "__main__":
    main()
