"""The model's own calibration text, sampled by llama.cpp from a GGUF of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3q.calibrate.self_sample import SampleFn, SampleRequest
from qwen3q.models.source import ModelSource
from qwen3q.plan.gguf_types import file_type
from qwen3q.progress import ProgressFn, silent

GGUF_TYPE = "Q8_0"
"""What a model is sampled in: near to float, and half its size."""


@contextmanager
def llama_sampler(path: Path, *, context: int, threads: int | None = None) -> Iterator[SampleFn]:
    """Samples from a GGUF file on the CPU or GPU that llama.cpp was built for.

    Args:
        context: tokens that prompt and continuation may have together.

    Raises:
        LlamaError: llama.cpp can't load it.
    """
    from qwen3q.llama.context import ContextOptions, LlamaContext
    from qwen3q.llama.generate import Generator
    from qwen3q.llama.model import LlamaModel
    from qwen3q.llama.sampling import Sampling

    options = ContextOptions(context=context, outputs=1, threads=threads)
    with LlamaModel(path) as model, LlamaContext(model, options) as session:
        generator = Generator(session)

        def sample(request: SampleRequest) -> Sequence[int]:
            sampling = Sampling(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                seed=request.seed,
            )
            return list(generator.generate(request.prompt, sampling, max_tokens=request.max_tokens))

        yield sample


@contextmanager
def source_sampler(
    source: ModelSource,
    *,
    context: int,
    scratch: Path | None = None,
    threads: int | None = None,
    progress: ProgressFn = silent,
) -> Iterator[SampleFn]:
    """Samples from a model folder, through a Q8_0 GGUF that exists only meanwhile.

    Args:
        scratch: folder with room for about one byte per weight; None for the system's.

    Raises:
        DiskError: too little room.
        LlamaError: llama.cpp can't load it.
    """
    from qwen3q.quantize.run import GgufOptions, quantize_gguf

    with tempfile.TemporaryDirectory(prefix="qwen3q-self-", dir=scratch) as folder:
        types = [file_type(GGUF_TYPE)]
        options = GgufOptions(threads=threads)
        artefacts = quantize_gguf(source, types, Path(folder), options, progress=progress)
        with llama_sampler(artefacts[0].path, context=context, threads=threads) as sample:
            yield sample
