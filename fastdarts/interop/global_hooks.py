"""Global module hooks of the process: torch.nn.modules.module.register_module_forward_hook and the like."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules import module as modules

from fastdarts.logs import say_once

SLOW = "global module hooks are registered: converted modules run their own forward, so that the hooks see every module"


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
