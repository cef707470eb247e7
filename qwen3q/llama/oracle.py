"""llama.cpp's dry-run allocator: what a load would take on each device, without the weights.

A GGUF that holds only a header is enough. CPU-backed RPC servers stand in for GPUs, so layer and
expert placement can be measured on any machine. Tests and evaluation hold ``qwen3q.memory``
against these figures; nothing else needs them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qwen3q.errors import LlamaError
from qwen3q.formats.gguf_file import Value, ValueType, encode_header, encode_metadata
from qwen3q.llama.breakdown import buffers_by_type
from qwen3q.llama.ggml import load_library
from qwen3q.memory.settings import Settings
from qwen3q.models.config import Qwen3Config
from qwen3q.plan.gguf import padded, tensor_type
from qwen3q.plan.gguf_types import GGML_TYPES
from qwen3q.plan.plan import Plan

_CPU = 0
_STARTUP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """How llama.cpp is asked to load a model.

    Attributes:
        tensor_split: share of the layers per device; one entry per device in use, empty for CPU.
        gpu_layers: layers on the devices, the output layer counted; negative for all.
        cpu_experts: keep the routed experts of so many layers on the CPU, from the first on.
    """

    context: int
    tensor_split: tuple[float, ...] = ()
    gpu_layers: int = -1
    batch: int = 2048
    ubatch: int = 512
    parallel: int = 1
    type_k: str = "F16"
    type_v: str = "F16"
    flash_attention: bool = True
    cpu_experts: int = 0


def load_of(settings: Settings, split: tuple[float, ...]) -> Load:
    """The load that the memory estimator's settings describe, over ``split`` of the devices."""
    return Load(
        context=settings.context * settings.parallel,
        tensor_split=split,
        gpu_layers=-1 if settings.gpu_layers is None else settings.gpu_layers,
        batch=max(2048, settings.ubatch),
        ubatch=settings.ubatch,
        parallel=settings.parallel,
        type_k=settings.type_k,
        type_v=settings.type_v,
        flash_attention=settings.flash_attention,
        cpu_experts=settings.cpu_experts,
    )


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of one buffer type, in llama.cpp's own division."""

    model: int
    context: int
    compute: int


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def write_header(path: Path, config: Qwen3Config, plan: Plan) -> None:
    """Writes a sparse GGUF with every tensor of ``plan`` declared and no data and no vocabulary."""
    arch = "qwen3moe" if config.is_moe else "qwen3"
    numbers = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    if config.is_moe:
        numbers |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    metadata = {
        "general.architecture": Value(ValueType.STRING, arch),
        "tokenizer.ggml.model": Value(ValueType.STRING, "no_vocab"),
        f"{arch}.attention.layer_norm_rms_epsilon": Value(ValueType.F32, config.rms_norm_eps),
        f"{arch}.rope.freq_base": Value(ValueType.F32, config.rope_theta),
        **{f"{arch}.{key}": Value(ValueType.U32, number) for key, number in numbers.items()},
    }
    entries = []
    offset = 0
    for tensor in plan.tensors:
        entries.append((tensor.name, tensor_type(tensor), tensor.shape, offset))
        offset += padded(tensor.nbytes)
    header = encode_header(encode_metadata(metadata), len(metadata), entries)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + offset)


@contextmanager
def pseudo_gpus(count: int) -> Iterator[tuple[str, ...]]:
    """Runs ``count`` CPU-backed RPC servers on loopback; yields their endpoints.

    Raises:
        MissingPackageError: llama.cpp was built without RPC.
        LlamaError: a server does not start.
    """
    _rpc()
    servers: list[subprocess.Popen[bytes]] = []
    endpoints = []
    try:
        for _ in range(count):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            code = f"from qwen3q.llama.oracle import _serve; _serve({port})"
            servers.append(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            endpoints.append(f"127.0.0.1:{port}")
        for endpoint in endpoints:
            _wait_for(endpoint)
        yield tuple(endpoints)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def dry_run(path: Path, load: Load, endpoints: Sequence[str] = ()) -> dict[str, Buffers]:
    """Loads ``path`` without allocating and reads what would be allocated.

    llama.cpp keeps the endpoints' devices for as long as the process lives, and aborts when another
    model is loaded after their servers are gone: run this in a process of its own.

    Args:
        endpoints: from ``pseudo_gpus``; the first ``len(load.tensor_split)`` are used.

    Returns:
        Buffers by device: ``CPU``, ``GPU0``, ``GPU1``, ...

    Raises:
        LlamaError: llama.cpp refuses the file or the settings.
    """
    lib = _llama()
    devices = [_device(endpoint) for endpoint in endpoints[: len(load.tensor_split)]]
    model_params = lib.llama_model_default_params()
    model_params.no_alloc = True
    model_params.load_mode = 0
    model_params.use_extra_bufts = False
    model_params.n_gpu_layers = load.gpu_layers if devices else 0
    chosen = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
    model_params.devices = ctypes.cast(chosen, ctypes.c_void_p)
    split = (ctypes.c_float * max(lib.llama_max_devices(), 1))(*load.tensor_split)
    model_params.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
    overrides = (_Override * 2)()
    if load.cpu_experts:
        layers = "|".join(map(str, range(load.cpu_experts)))
        pattern = rf"blk\.({layers})\.ffn_(up|down|gate)_exps".encode()
        overrides[0] = _Override(pattern, _ggml_base().ggml_backend_cpu_buffer_type())
        model_params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)

    context_params = lib.llama_context_default_params()
    context_params.n_ctx = load.context
    context_params.n_batch = load.batch
    context_params.n_ubatch = load.ubatch
    context_params.n_seq_max = load.parallel
    context_params.type_k = GGML_TYPES[load.type_k.upper()].id
    context_params.type_v = GGML_TYPES[load.type_v.upper()].id
    context_params.flash_attn_type = int(load.flash_attention)

    model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise LlamaError(f"llama.cpp can't load {path}.")
    try:
        context = lib.llama_init_from_model(model, context_params)
        if not context:
            raise LlamaError(f"llama.cpp refuses these context settings: {load}.")
        try:
            return _breakdown(context, endpoints)
        finally:
            lib.llama_free(context)
    finally:
        lib.llama_model_free(model)


def _breakdown(context: int, endpoints: Sequence[str]) -> dict[str, Buffers]:
    found: dict[str, Buffers] = {}
    for buffer_type, *sizes in buffers_by_type(context):
        name = _ggml_base().ggml_backend_buft_name(buffer_type).decode()
        device = next((f"GPU{i}" for i, e in enumerate(endpoints) if e in name), "CPU")
        found[device] = Buffers(*sizes)
    return found


@cache
def _llama() -> Any:
    """llama_cpp's bindings, quiet."""
    from llama_cpp import llama_cpp as lib

    sizes = {
        lib.llama_model_params: 80,
        lib.llama_context_params: 160,
    }
    for struct, size in sizes.items():
        if ctypes.sizeof(struct) != size:
            raise LlamaError(f"{struct.__name__} has {ctypes.sizeof(struct)} bytes, not {size}.")

    quiet = lib.llama_log_callback(lambda level, text, user_data: None)
    _KEPT_ALIVE.append(quiet)
    lib.llama_log_set(quiet, None)
    return lib


_KEPT_ALIVE: list[object] = []


@cache
def _ggml_base() -> ctypes.CDLL:
    base = load_library("ggml-base")
    base.ggml_backend_buft_name.argtypes = [ctypes.c_void_p]
    base.ggml_backend_buft_name.restype = ctypes.c_char_p
    base.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
    base.ggml_backend_reg_dev_get.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
    return base


@cache
def _ggml() -> ctypes.CDLL:
    ggml = load_library("ggml")
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_dev_by_type.argtypes = [ctypes.c_int]
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    return ggml


@cache
def _rpc() -> ctypes.CDLL:
    rpc = load_library("ggml-rpc")
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    return rpc


@cache
def _device(endpoint: str) -> int:
    """The device behind an RPC endpoint, registered once per process."""
    registry = _rpc().ggml_backend_rpc_add_server(endpoint.encode())
    if not registry:
        raise LlamaError(f"No RPC server answers at {endpoint}.")
    _ggml().ggml_backend_register(registry)
    return int(_ggml_base().ggml_backend_reg_dev_get(registry, 0))


def _serve(port: int) -> None:
    devices = (ctypes.c_void_p * 1)(_ggml().ggml_backend_dev_by_type(_CPU))
    _rpc().ggml_backend_rpc_start_server(
        f"127.0.0.1:{port}".encode(), None, ctypes.c_size_t(1), ctypes.c_size_t(1), devices
    )


def _wait_for(endpoint: str) -> None:
    host, port = endpoint.split(":")
    deadline = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as client:
            client.settimeout(1.0)
            if client.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise LlamaError(f"The RPC server at {endpoint} did not start.")
