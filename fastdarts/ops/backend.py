"""Choose the implementation of an op, and log why a faster one was not chosen.

Each op registers its backends, fastest first and the definition last. A backend's check returns None, or the reason why it
does not support a device and a dtype. "auto" takes the first supported one and logs its choice once; an explicitly named
backend runs or raises.
"""

import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fastdarts import native
from fastdarts.logs import log, say_once

Check = Callable[[torch.device, torch.dtype], str | None]
OLDEST_TRITON = (3, 6)
OLDEST_GPU = (8, 0)  # compute capability


class BackendUnavailable(RuntimeError):
    """The explicitly named backend does not support the call; the message says why."""


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    check  returns None, or why it does not support tensors of a device and a dtype
    run    takes the op's arguments
    limit  takes the op's arguments: returns None, or why it does not support this call although it supports such tensors
    """

    name: str
    check: Check
    run: Callable[..., Any]
    limit: Callable[..., str | None] | None = None


_ops: dict[str, dict[str, Backend]] = {}
_dtypes: dict[str, tuple[torch.dtype, ...]] = {}


def register(op: str, *backends: Backend, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> None:
    """Set an op's backends, fastest first; the last one serves every device and dtype.

    dtypes  the common ones, which describe() lists
    """
    _ops[op] = {b.name: b for b in backends}
    _dtypes[op] = dtypes


def anything(device: torch.device, dtype: torch.dtype) -> None:
    """Accept every device and dtype: the definition's check."""


def native_cpu(*dtypes: torch.dtype, op: str | None = None) -> Check:
    """Return the check of a C++ kernel compiled for CPU tensors of these dtypes.

    op  a registered op without a default kernel: the check rejects a native module built before the op existed
    """

    def check(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"it supports tensors on the CPU, not on {device}"
        if dtype not in dtypes:
            return f"it is compiled for {' and '.join(map(_short, dtypes))}, not for {_short(dtype)}"
        return native.reason() or (native.lacks(op) if op else None)

    return check


def triton(*dtypes: torch.dtype) -> Check:
    """Return the check of a Triton kernel for CUDA tensors of these dtypes."""

    def check(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda":
            return f"it supports tensors on NVIDIA GPUs, not on {device}"
        if dtype not in dtypes:
            return f"its kernels are written for {' and '.join(map(_short, dtypes))}, not for {_short(dtype)}"
        return lacks_triton() or _lacks_capability(device)

    return check


@cache
def lacks_triton() -> str | None:
    """Return why Triton cannot be used in this process, or None."""
    oldest = ".".join(map(str, OLDEST_TRITON))
    if find_spec("triton") is None:
        return f"Triton is not installed; pip install 'triton>={oldest}'"
    try:
        version = importlib.import_module("triton").__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"Triton is installed but does not import: {error}".splitlines()[0]
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TRITON:
        return f"Triton {version} is older than {oldest}; pip install 'triton>={oldest}'"
    return None


def _lacks_capability(device: torch.device) -> str | None:
    """Return why the kernels do not run on this GPU, or None."""
    if torch.version.cuda is None:
        return "it supports NVIDIA GPUs, this torch is built for other GPUs"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU on this machine"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        have, need = (".".join(map(str, c)) for c in (capability, OLDEST_GPU))
        return f"{device} has compute capability {have}, the kernels need {need}"
    return None


def arithmetic(x: Tensor) -> torch.dtype:
    """Return the dtype in which an op on `x` computes: autocast's if enabled (float64 stays float64), else x' own."""
    autocast = _autocast(x.device.type)
    return x.dtype if autocast is None or x.dtype == torch.float64 else autocast


def check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise ValueError unless `tensor` is on x' device and of its dtype (under autocast: of a floating-point one)."""
    fits = tensor.dtype == x.dtype or (tensor.is_floating_point() and _autocast(x.device.type) is not None)
    if tensor.device != x.device or not fits:
        expected = f"{_short(x.dtype)} on {x.device}, as the input is"
        raise ValueError(f"{name} must be {expected}, got {_short(tensor.dtype)} on {tensor.device}")


def _autocast(device: str) -> torch.dtype | None:
    """Return the dtype of the autocast enabled for this type of device, or None."""
    on = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


@torch.compiler.assume_constant_result  # torch 2.11's compiler cannot trace the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@torch.compiler.assume_constant_result  # torch.compile uses the choice as a constant instead of tracing it
def choose(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the backend of `op` on `device` at `dtype`; `backend` is "auto" or a name.

    Raises ValueError for an unknown name, BackendUnavailable for a backend that is not available.
    """
    return _decide(op, backend, device, dtype)


@cache  # so that a choice is logged once
def _decide(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    refused = refusals(op, device, dtype)
    if backend == "auto":
        name = _first(refused)
        slower_than = "".join(f"; not {n}: {why}" for n, why in _faster(refused).items())
        missing = native.reason()
        if missing and missing in refused.values():  # the same for all ops: logged once
            say_once(f"running the plain-PyTorch definitions instead of the fused kernels: {missing}")
        else:
            level = logging.DEBUG if device.type == "meta" else logging.INFO  # meta tensors only compute shapes
            log.log(level, "%s on %s, %s: backend %s%s", op, device, _short(dtype), name, slower_than)
        return name
    if backend not in refused:
        raise ValueError(f"{op} has no backend {backend!r}; it has auto, {', '.join(refused)}")
    if why := refused[backend]:
        raise BackendUnavailable(f"{op}: backend {backend!r} cannot serve this call: {why}")
    return backend


def offered(op: str, backend: str) -> str:
    """Return `backend` if `op` has it, else "auto": for one choice that covers all ops of a network."""
    return backend if backend in _ops[op] else "auto"


def run(op: str, backend: str, device: torch.device, dtype: torch.dtype, *args: Any) -> Any:
    """Call `op` by the backend of choose(), or by the definition if "auto" chose one that cannot take `args`."""
    chosen = _ops[op][choose(op, backend, device, dtype)]
    if chosen.limit is not None and (why := chosen.limit(*args)):
        chosen = _ops[op][_beyond(op, backend, chosen.name, why)]
    return chosen.run(*args)


@torch.compiler.assume_constant_result
def _beyond(op: str, backend: str, chosen: str, why: str) -> str:
    """Return the backend of a call beyond the chosen backend's limit."""
    if backend != "auto":
        raise BackendUnavailable(f"{op}: backend {backend!r} cannot serve this call: {why}")
    last = list(_ops[op])[-1]
    say_once(f"{op}: backend {last}; not {chosen}: {why}")
    return last


def refusals(op: str, device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Return, for each backend of `op`, fastest first: None, or the reason why it is not available."""
    return {b.name: b.check(device, dtype) for b in _ops[op].values()}


def describe() -> list[dict[str, Any]]:
    """Return one row for each imported op, available device and common dtype: op, device, dtype, backend, refused {name: why}.

    `refused` has the faster backends.
    """
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    rows = []
    for op in sorted(_ops):
        for device in devices:
            for dtype in _dtypes[op]:
                refused = refusals(op, device, dtype)
                row = {"op": op, "device": str(device), "dtype": _short(dtype), "backend": _first(refused)}
                rows.append(row | {"refused": _faster(refused)})
    return rows


def _faster(refused: dict[str, str | None]) -> dict[str, str]:
    """Return the backends before the first available one, with their reasons."""
    return {n: why for n, why in list(refused.items())[: list(refused).index(_first(refused))] if why}


def _first(refused: dict[str, str | None]) -> str:
    return next(name for name, why in refused.items() if why is None)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
