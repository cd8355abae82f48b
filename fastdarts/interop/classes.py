"""Add mixins to a module's class, in place: isinstance, attributes, parameters and names are preserved.

The combined class is created dynamically; it is copied and pickled as the module's class and the mixin.
"""

from typing import Any

from torch import nn

PLAN = "_fastdarts"  # the attribute that holds the mixin's data
_classes: dict[tuple[type, type], type] = {}


def put_before(module: nn.Module, mixin: type, attribute: str, plan: Any) -> None:
    """Put `mixin` before the module's class in its method resolution order; it reads `plan` from `attribute`."""
    module.__dict__[attribute] = plan
    module.__class__ = _class(type(module), mixin)


def take_back(module: nn.Module, *attributes: str) -> None:
    """Restore the module's original class and delete the attributes."""
    while hasattr(type(module), "_own"):
        module.__class__ = type(module)._own
    for name in attributes:
        module.__dict__.pop(name, None)


def _class(own: type, mixin: type) -> type:
    if (own, mixin) not in _classes:
        body = {"_own": own, "__module__": own.__module__, "__qualname__": own.__qualname__, "__reduce_ex__": _reduce}
        _classes[own, mixin] = type(own.__name__, (mixin, own), body)
    return _classes[own, mixin]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    mixins, own = [], type(self)
    while hasattr(own, "_own"):
        mixins.insert(0, own.__bases__[0])
        own = own._own
    return _made, (own, tuple(mixins)), self.__dict__


def _made(own: type, mixins: tuple[type, ...]) -> nn.Module:
    for mixin in mixins:
        own = _class(own, mixin)
    return own.__new__(own)
