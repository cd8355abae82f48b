"""Detect changes of a module of another codebase, and of its submodules, since it was recognised."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastdarts.module_hooks import has_hooks

PLAIN = (bool, int, float, str)
_SETTINGS: dict[type, tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups", "padding_mode"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


def own_class(module: nn.Module) -> type:
    """Return a module's class, ignoring mixins."""
    own: Any = type(module)
    while hasattr(own, "_own"):
        own = own._own
    return own


def foreign(module: nn.Module) -> bool:
    """Return whether a module's class belongs to the codebase: its plain attributes and its forward may be anything."""
    return not own_class(module).__module__.startswith("torch.nn.modules.")


def plain_values(module: nn.Module) -> list[tuple[str, Any]]:
    """Return, by name, plain attributes that may influence a module of the codebase."""
    return sorted((n, v) for n, v in vars(module).items() if isinstance(v, PLAIN) and n != "training")


def bare(module: nn.Module) -> nn.Module | None:
    """Return the only layer of a module, if its class is the codebase's and has no parameters: an Identity or Zero."""
    while len(module._modules) == 1:
        (child,) = module._modules.values()
        if child is None:
            return None
        module = child
    return module if foreign(module) and not (module._modules or module._parameters or module._buffers) else None


def signature(module: nn.Module) -> tuple[Any, ...]:
    """Return the classes of a module and all submodules, and the plain attributes of those of the codebase."""
    return tuple(
        (own_class(m).__module__, own_class(m).__qualname__, *(plain_values(m) if foreign(m) else ())) for m in module.modules()
    )


def only_torch_layers(module: nn.Module) -> bool:
    """Return whether a module consists of torch's own layers only, one after the other."""
    return not any(foreign(m) or (m._modules and type(m) is not nn.Sequential) for m in module.modules())


class Tree:
    """A module and its submodules, with their locations, the names of their parameters and the values that determine them."""

    def __init__(self, module: nn.Module) -> None:
        self.root = module
        self.parts = [(m, tuple(m._modules.values()), _parameters(m), tuple(_values(m))) for m in module.modules()]

    def same(self, module: nn.Module) -> bool:
        """Return whether `module` is the same one, unchanged except for numeric values."""
        if module is not self.root:
            return False
        for inner, children, parameters, values in self.parts:
            state = inner.__dict__
            modules, own = state["_modules"], state["_parameters"]
            if (modules or children) and tuple(modules.values()) != children:
                return False
            if (own or parameters) and _parameters(inner) != parameters:
                return False
            for name, value in values:
                if name not in state or state[name] != value:
                    return False
        return True

    def has_hooks(self) -> bool:
        """Return whether a submodule has hooks or a replaced forward."""
        return any(has_hooks(m) for m, *_ in self.parts if m is not self.root)


def _parameters(module: nn.Module) -> list[str]:
    return [name for name, p in module.__dict__["_parameters"].items() if p is not None]


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if foreign(module):
        yield from plain_values(module)
    for kind, names in _SETTINGS.items():
        if isinstance(module, kind):
            yield from ((name, getattr(module, name)) for name in names)
