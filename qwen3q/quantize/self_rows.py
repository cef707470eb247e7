"""The model's own calibration text, sampled by llama.cpp from a GGUF of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3q.calibrate.load import CalibrationOptions, load_template
from qwen3q.calibrate.rows import TokenRows, check_size
from qwen3q.calibrate.self_sample import (
    SELF_ROWS,
    SampleFn,
    SampleRequest,
    context_needed,
    self_calibration,
)
from qwen3q.errors import UsageError
from qwen3q.models.source import ModelSource
from qwen3q.models.tokenizer import load_tokenizer
from qwen3q.plan.gguf_types import file_type
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.options import QuantizeOptions
from qwen3q.quantize.run import quantize_gguf

GGUF_TYPE = "Q8_0"
"""What a model is sampled in: near to float, and half its size."""


def self_rows(
    source: ModelSource,
    options: CalibrationOptions,
    *,
    threads: int | None = None,
    progress: ProgressFn = silent,
) -> TokenRows:
    """Calibration tokens that the model writes, through a Q8_0 GGUF that exists only meanwhile.

    Args:
        source: resolved, so that its folder is on disk.
        options: without a number of rows, ``SELF_ROWS`` at most.
        threads: None for the physical cores.

    Raises:
        UsageError: no chat template, a size out of range, or a model that writes nothing.
        ModelError: the model's tokenizer or template is missing or refuses.
        DiskError: too little room in the system's folder for temporary files.
        LlamaError: llama.cpp can't load it.
    """
    assert source.folder is not None
    check_size(options.length, options.samples)
    tokenizer, template = load_tokenizer(source.folder), load_template(source.folder)
    if template is None:
        raise UsageError(
            "The model has no chat template, so it can't write conversations to calibrate on.",
            "Calibrate it on plain text: --calibration FILE.txt",
        )
    with tempfile.TemporaryDirectory(prefix="qwen3q-self-") as folder:
        types = [file_type(GGUF_TYPE)]
        made = quantize_gguf(
            source, types, Path(folder), QuantizeOptions(threads=threads), progress=progress
        )
        context = context_needed(options.length)
        with _llama_sampler(made[0].path, context=context, threads=threads) as sample:
            return self_calibration(
                sample,
                tokenizer,
                template,
                length=options.length,
                rows=options.samples or min(SELF_ROWS, options.most),
                seed=options.seed,
                thinking=options.thinking,
                progress=progress,
            )


@contextmanager
def _llama_sampler(path: Path, *, context: int, threads: int | None) -> Iterator[SampleFn]:
    """Samples from a GGUF file on the CPU or GPU that llama.cpp was built for.

    Args:
        context: tokens that prompt and continuation may have together.

    Raises:
        LlamaError: llama.cpp can't load it.
    """
    from qwen3q.llama.context import ContextOptions, LlamaContext
    from qwen3q.llama.generate import Generator
    from qwen3q.llama.model import LlamaModel
    from qwen3q.llama.sampling import SamplerOptions

    options = ContextOptions(context=context, outputs=1, threads=threads)
    with LlamaModel(path) as model, LlamaContext(model, options) as session:
        generator = Generator(session)

        def sample(request: SampleRequest) -> Sequence[int]:
            sampling = SamplerOptions(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=request.seed,
            )
            return list(generator.generate(request.prompt, sampling, max_tokens=request.max_tokens))

        yield sample
