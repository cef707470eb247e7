"""GPUs that are not there: tensors that say ``cuda:0`` and are held to what a GPU holds them to.

A tensor on a pretended GPU computes on the processor, but moving it there copies, its numpy view
is refused, and so is every operation with a tensor of another device, other than those that torch
allows: scalars, indices, and copying from one to another. ``mps`` has no float64
and no 8-bit floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qwen3q.models.decoder import rms_norm

FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "tensor", "zeros")
MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda}
COPIES = {torch.Tensor.copy_, torch.Tensor.__setitem__}
NOT_APPLES = {torch.float64, torch.float8_e4m3fn, torch.float8_e5m2}
PLAIN_TO = torch.Tensor.to
CPU = torch.device("cpu")


class PretendTensor(torch.Tensor):
    """Shares the memory of a tensor of the processor, and says that it is elsewhere."""

    pretended: torch.device

    device = property(lambda self: self.pretended)  # type: ignore[assignment]
    is_cuda = property(lambda self: self.pretended.type == "cuda")  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _run(func, args, dict(kwargs or {}))


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is torch.Tensor.numpy or func is torch.Tensor.__array__:
        raise TypeError("can't convert cuda device type tensor to numpy")
    if func in MOVES:
        return _moved(func, args, kwargs)
    tensors: list[torch.Tensor] = []
    plain_args, plain_kwargs = _plain(args, tensors), _plain(kwargs, tensors)
    where = tensors[0].device
    if len(tensors) > 1 and func not in COPIES:
        where = _common_device(func, tensors)
    if kwargs.get("device") is not None:
        where = _numbered(torch.device(kwargs["device"]))
        plain_kwargs["device"] = CPU
    if func is F.rms_norm:  # as on the processor, so that results are the same to the last bit
        return put(rms_norm(plain_args[0], plain_kwargs["weight"], kwargs["eps"]), where)
    found = func(*plain_args, **plain_kwargs)
    name = getattr(func, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    if kwargs.get("out") is not None:
        return kwargs["out"]
    if isinstance(found, tuple):
        parts = [put(part, where) for part in found]
        return tuple(parts) if type(found) is tuple else type(found)(parts)
    return put(found, where)


def _plain(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Arguments with tensors of the processor in place of pretended ones, which are listed."""
    kind = type(value)
    if kind is PretendTensor or kind is torch.Tensor:
        tensors.append(value)
        return value.as_subclass(torch.Tensor)
    if kind is tuple or kind is list:
        return kind([_plain(part, tensors) for part in value])
    if kind is dict:
        return {name: _plain(part, tensors) for name, part in value.items()}
    return value


def put(value: Any, where: torch.device) -> Any:
    """A tensor of the processor as one that lies on ``where``; anything else as it is."""
    if not isinstance(value, torch.Tensor) or where == CPU:
        return value
    if where.type == "mps" and value.dtype in NOT_APPLES:
        raise TypeError(f"Cannot convert a MPS Tensor to {value.dtype}")
    made = value.as_subclass(PretendTensor)
    made.pretended = where
    return made


def _common_device(func: Any, tensors: list[torch.Tensor]) -> torch.device:
    """Where the operation runs; raises as torch does where its tensors are on several devices."""
    if func is torch.Tensor.__getitem__:
        home = tensors[0].device
        strangers = {tensor.device for tensor in tensors} - {home, CPU}
    else:
        devices = {t.device for t in tensors if t.dim() > 0} or {t.device for t in tensors}
        home = max(devices, key=str)
        strangers = devices - {home}
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {home} and "
            f"{', '.join(map(str, strangers))} in {func}"
        )
    return home


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """``Tensor.to`` and its kind: to another device a copy, as between memories."""
    tensor, *rest = args
    target = tensor.device
    if func is torch.Tensor.cpu:
        target = CPU
    elif func is torch.Tensor.cuda:
        target = torch.device("cuda", 0)
    for index, value in enumerate(rest):
        if isinstance(value, torch.Tensor):
            target, rest[index] = value.device, value.as_subclass(torch.Tensor)
        elif isinstance(value, (str, torch.device)):
            target, rest[index] = torch.device(value), CPU
    if kwargs.get("device") is not None:
        target, kwargs["device"] = torch.device(kwargs["device"]), CPU
    target = _numbered(target)
    source = tensor.device
    plain = tensor.as_subclass(torch.Tensor)
    found = PLAIN_TO(plain, *(rest or [CPU]), **kwargs)
    if target == source:
        return tensor if found is plain else put(found, target)
    return put(found.clone(), target)


def _numbered(device: torch.device) -> torch.device:
    """``cuda`` is the first of them."""
    return device if device.type == "cpu" else torch.device(device.type, device.index or 0)


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _moved(PLAIN_TO, (self, *args), kwargs)


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return put(make(*args, **kwargs), _numbered(torch.device(device or CPU)))

    return run


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, kind: str = "cuda") -> None:
    """Until the test's end there are two GPUs of 24 GB, or one of Apple's (``mps``).

    bfloat16 is not fast on them, so that they compute in float32 as the processor does.
    """
    MOVES.add(_to)
    monkeypatch.setattr(torch.Tensor, "to", _to)
    for name in FACTORIES:
        monkeypatch.setattr(torch, name, _factory(getattr(torch, name)))
    if kind == "mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
        monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1 << 30)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20 << 30)
        return
    cuda = {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "Pretended GPU",
        "is_bf16_supported": False,
        "mem_get_info": (20 << 30, 24 << 30),
        "reset_peak_memory_stats": None,
        "max_memory_reserved": 1 << 30,
        "synchronize": None,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
