"""What ``--to`` names: a GGUF file type or a scheme of a safetensors folder."""

from __future__ import annotations

from qwen3q.errors import UsageError
from qwen3q.models.config import Qwen3Config
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FILE_TYPES, GGUF_PREFIX, FileType, file_type
from qwen3q.plan.plan import Plan
from qwen3q.plan.schemes import Scheme, parse_scheme

Target = FileType | Scheme


def target_name(target: Target) -> str:
    """What ``--to`` calls it: ``gguf:Q4_K_M``, ``gptq:int4``, ..."""
    return GGUF_PREFIX + target.name if isinstance(target, FileType) else target.name


def parse_target(name: str) -> Target:
    """The target called ``name``, in any case: ``gguf:Q4_K_M``, ``gptq:int4``, ``int8``, ...

    Raises:
        UsageError: no such format.
    """
    if name.lower().startswith(GGUF_PREFIX):
        return file_type(name[len(GGUF_PREFIX) :])
    if name.lower() == "gguf":
        raise UsageError("gguf needs a type.", "Write gguf:Q4_K_M, for instance.")
    if name.lower().startswith("gguf"):
        kind = name[len("gguf") :].strip(" -_/").upper()
        raise UsageError(
            f"{name!r} has no colon after gguf.",
            f"Write {GGUF_PREFIX}{kind if kind in FILE_TYPES else 'Q4_K_M'}, for instance.",
        )
    return parse_scheme(name)


def plan_target(
    model: str, config: Qwen3Config, target: Target, *, has_imatrix: bool = False
) -> Plan:
    """The plan of one target from a config alone.

    Raises:
        UsageError: the model does not fit the format.
    """
    if isinstance(target, FileType):
        return plan_gguf(model, config, target, has_imatrix=has_imatrix)
    return plan_folder(model, config, target)
