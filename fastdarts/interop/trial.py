"""Verify modules of a network on copies, once for each kind: the key of a kind, the copy, and the verdict in words."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fastdarts.interop import probe
from fastdarts.interop.classes import PLAN, RENEW, remove_mixin
from fastdarts.interop.probe import Differs
from fastdarts.interop.recognise import FusableCandidate, Preprocess, Unknown
from fastdarts.interop.stand_ins import NotFused


def kind_of(module: nn.Module, *more: Any) -> str:
    """Return the key of a module's kind, independent of its channels: class, dependencies of its forwards, candidates."""
    stripped = [
        [a._replace(channels=0) if isinstance(a, FusableCandidate) else a for a in m]
        if isinstance(m, list) and m and isinstance(m[0], FusableCandidate | Preprocess | Unknown)
        else m
        for m in more
    ]
    own = sorted({*vars(module), *module._parameters, *module._buffers} - {PLAN, RENEW})
    return repr((type(module), own, stripped))


def subject_of(module: nn.Module) -> probe.Subject | str:
    """Return a copy to verify, or why there is none."""
    try:
        return probe.Subject(module)
    except Exception as error:  # foreign code: non-leaf tensors, locks, generators
        return f"it cannot be copied for verification: {type(error).__name__}: {_line(error)}"


def differs_on(
    subject: probe.Subject,
    cases: dict[str, tuple[Any, ...]],
    convert: Callable[[nn.Module], list[nn.Module]],
    given: str = "(x, weights)",
) -> str | None:
    """Return None, or how a module differs after convert(module), which returns the modules that it has converted.

    given  what the cases' arguments are
    """
    converted: list[nn.Module] = []
    try:
        probe.try_out(subject, cases, lambda module: converted.extend(convert(module)))
    except Exception as error:  # foreign code, on arguments that it may not support: after any exception it keeps its forward
        return _reason(error, given)
    finally:
        for module in converted:
            remove_mixin(module, PLAN)
    return None


def _reason(error: Exception, given: str) -> str:
    if isinstance(error, Differs | NotFused):
        return str(error)
    return f"on {given} it raises {type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]
