"""llama.cpp's C API: the bindings of llama-cpp-python, checked and with their log collected.

Importing this loads llama.cpp. ``lib`` is the low-level module of the same functions as llama.h.
"""

from __future__ import annotations

import ctypes

from qwen3q.errors import LlamaError, MissingPackageError
from qwen3q.llama.log import Log
from qwen3q.llama.lost_signals import send_lost_signals_again
from qwen3q.threads import calm_openmp

__all__ = ["collect_log", "has_amx", "lib", "log"]

VERSION = "0.3.36"

calm_openmp()
try:
    from llama_cpp import llama_cpp as lib
except ImportError as error:
    raise MissingPackageError(
        f"llama-cpp-python can't be imported: {error}.", "pip install 'qwen3q[llama]'"
    ) from None
except (OSError, RuntimeError) as error:
    raise LlamaError(
        f"llama.cpp's library can't be loaded: {error}.",
        f"pip install --force-reinstall 'llama-cpp-python=={VERSION}'",
    ) from None

# sizes in llama.h of the vendored llama.cpp; other sizes mean another version's fields
_STRUCT_BYTES = {
    lib.llama_model_params: 80,
    lib.llama_context_params: 160,
    lib.llama_model_quantize_params: 64,
    lib.llama_batch: 56,
    lib.llama_token_data_array: 32,
}
for _struct, _nbytes in _STRUCT_BYTES.items():
    if ctypes.sizeof(_struct) != _nbytes:
        raise LlamaError(
            f"{_struct.__name__} has {ctypes.sizeof(_struct)} bytes in the installed "
            f"llama-cpp-python; qwen3q was written for {_nbytes}.",
            f"pip install 'llama-cpp-python=={VERSION}'",
        )

log = Log()


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    log.write(level, text.decode("utf-8", "replace"))


def collect_log() -> None:
    """Sends llama.cpp's log to ``log``; other code in the process may have taken it."""
    lib.llama_log_set(_collect, ctypes.c_void_p(0))


send_lost_signals_again()
collect_log()
lib.llama_backend_init()


def has_amx() -> bool:
    """Whether this build would use Intel AMX here.

    Many GCC versions drop most of ggml's tile configuration, because its ``_tile_loadconfig`` names
    only the first eight bytes as read; the first matrix product of a quantized model then kills
    the process (llama.cpp issue 20824). Models are loaded without repacked weights on such CPUs.
    """
    return b"AMX_INT8 = 1" in lib.llama_print_system_info()
