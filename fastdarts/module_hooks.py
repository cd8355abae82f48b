"""Hooks of a module and of the process: a fused call does not call the modules that have them, so their own forward runs."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as modules

from fastdarts.logs import say_once

SLOW = "global module hooks are registered: fused modules run their own forward, so that the hooks see every module"


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks or a replaced forward, so that it has to run its own forward."""
    s = module.__dict__
    hooks = s["_forward_hooks"] or s["_forward_pre_hooks"] or s["_backward_hooks"] or s["_backward_pre_hooks"]
    return bool(hooks) or "forward" in s


def global_hooks() -> bool:
    """Return whether any is registered, so that every module has to run its own forward."""
    found = bool(
        modules._global_forward_pre_hooks
        or modules._global_forward_hooks
        or modules._global_backward_pre_hooks
        or modules._global_backward_hooks
    )
    if found:
        say_once(SLOW)
    return found


@contextmanager
def without_global_hooks() -> Generator[None]:
    """Disable them inside the context; restore them on exit."""
    registries: list[dict[int, Any]] = [
        modules._global_forward_pre_hooks,
        modules._global_forward_hooks,
        modules._global_backward_pre_hooks,
        modules._global_backward_hooks,
    ]
    before = [dict(registry) for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, hooks in zip(registries, before, strict=True):
            registry.update(hooks)
