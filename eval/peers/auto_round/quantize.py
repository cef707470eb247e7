"""AutoRound: 200 iterations of sign gradient descent, exported in GPTQ's and AWQ's layouts."""

from __future__ import annotations

from eval.peers.job import read_job

EXPORTS = {"gptq:int4": ("auto_gptq", True), "awq:int4": ("auto_awq", False)}
"""AutoRound's name of the layout, and whether the grid is symmetric."""


def main() -> None:
    """Tune the job's model for 200 iterations (AutoRound's default) and export it."""
    job = read_job()
    if job.format not in EXPORTS:
        raise SystemExit(f"AutoRound has no driver here for {job.format}")
    export, symmetric = EXPORTS[job.format]
    import torch
    from auto_round import AutoRound

    batches = [torch.from_numpy(batch) for batch in job.tokens.reshape(-1, 8, job.tokens.shape[1])]
    with job.timed("load"):
        tuner = AutoRound(
            str(job.model),
            scheme="W4A16",
            sym=symmetric,
            iters=200,
            nsamples=job.tokens.shape[0],
            seqlen=job.tokens.shape[1],
            dataset=batches,
            device_map="cpu",
        )
    with job.timed("quantize"):
        tuner.quantize()
    with job.timed("save"):
        tuner.save_quantized(str(job.out), format=export)
    job.report("auto-round")


if __name__ == "__main__":
    main()
