"""Add mixins to a module's class, in place: isinstance, attributes, parameters and names are preserved.

The combined class is created dynamically; it is copied and pickled as the module's class and the mixin.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    Before = nn.Module
else:
    Before = object  # base of mixins: the module's own class follows in the MRO

PLAN = "_fastdarts"  # attribute with the mixin's plan
RENEW = "_fastdarts_new"  # attribute of a converted network whose class has `new()`
_classes: dict[tuple[type, type], type] = {}


def add_mixin(module: nn.Module, mixin: type, attribute: str, plan: Any) -> None:
    """Put `mixin` before the module's class in its method resolution order; it reads `plan` from `attribute`."""
    module.__dict__[attribute] = plan
    module.__class__ = _class(type(module), mixin)


def remove_mixin(module: nn.Module, *attributes: str) -> None:
    """Restore the module's original class and delete the attributes."""
    own: Any = type(module)
    while hasattr(own, "_own"):
        own = module.__class__ = own._own
    for name in attributes:
        module.__dict__.pop(name, None)


def _class(own: type, mixin: type) -> Any:
    if (own, mixin) not in _classes:
        body: dict[str, Any] = {
            "_own": own,
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__reduce_ex__": _reduce,
        }
        _classes[own, mixin] = type(own.__name__, (mixin, own), body)
    return _classes[own, mixin]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    mixins: list[type] = []
    own: Any = type(self)
    while hasattr(own, "_own"):
        mixins.insert(0, own.__bases__[0])
        own = own._own
    return _made, (own, tuple(mixins)), self.__dict__


def _made(own: type[nn.Module], mixins: tuple[type, ...]) -> nn.Module:
    for mixin in mixins:
        own = _class(own, mixin)
    return own.__new__(own)
