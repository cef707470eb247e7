"""qwen3q itself, through the calls that `qwen3q quantize MODEL --to FORMAT` makes.

An option other than `default` is a recipe's name. Of the job's rows it runs evenly spaced ones, as
many as the recipe says are enough; `all` runs every one. Its `seconds` and `cpu_seconds` are of
the whole run: it reads, quantizes and writes in one stream.
"""

from __future__ import annotations

from eval.peers.job import read_job


def main() -> None:
    """Quantize the job's model on the job's rows."""
    job = read_job()
    from qwen3q.calibrate.enough import rows_enough
    from qwen3q.calibrate.rows import TokenRows, describe, evenly_spaced
    from qwen3q.checkpoint.reader import Checkpoint
    from qwen3q.models.source import resolve
    from qwen3q.plan.job import QuantizeRequest, job_of
    from qwen3q.quantize.folder import folder_jobs, quantize_folders
    from qwen3q.quantize.solve import SolveOptions

    with job.timed("load"):
        source = resolve(str(job.model), offline=True)
        assert source.folder is not None
        recipe = None if job.option in ("default", "all") else job.option
        work = job_of(QuantizeRequest(formats=(job.format,), recipe=recipe))
        count, length = job.tokens.shape
        per_channel = work.calibration.tokens_per_channel
        if job.option != "all":
            count = rows_enough(source.config, per_channel, length)
        chosen = job.tokens[evenly_spaced(len(job.tokens), count)]
        rows = tuple(tuple(row) for row in chosen.tolist())
    with job.timed("quantize"), Checkpoint(source.folder) as checkpoint:
        options = SolveOptions(**work.algorithm.options())  # type: ignore[arg-type]
        jobs = folder_jobs(source, checkpoint, work.schemes, job.out, options)
        quantize_folders(source, checkpoint, jobs, TokenRows(rows, describe("calibration", rows)))
    job.report("qwen3q")


if __name__ == "__main__":
    main()
