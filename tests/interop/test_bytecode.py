"""What the code of a forward sets: nothing that it may read from before."""

from collections.abc import Callable
from typing import Any

import pytest

from fastdarts.interop.bytecode import facts


class Forwards:
    """Each sets attributes, `first` alone always before it reads them."""

    def first(self, x: Any, weights: Any) -> Any:
        self.kept = [op(x) for op in weights]
        return sum(self.kept)

    def read_before(self, x: Any, weights: Any) -> Any:
        before = self.kept
        self.kept = x
        return before

    def counts(self, x: Any, weights: Any) -> Any:
        self.kept = self.kept + 1
        return x

    def sometimes(self, x: Any, weights: Any) -> Any:
        if x:
            self.kept = x
        return self.kept

    def twice(self, x: Any, weights: Any) -> Any:
        self.kept = x
        if x:
            self.kept = weights
        return self.kept

    def read_within(self, x: Any, weights: Any) -> Any:
        held = lambda: self.kept  # noqa: E731 - a function within
        self.kept = held()
        return x

    def of_another(self, x: Any, weights: Any) -> Any:
        x.kept = weights
        return x


@pytest.mark.parametrize("name", [name for name in vars(Forwards) if not name.startswith("_")])
def test_attributes_set_before_reading_are_recognised(name: str) -> None:
    forward: Callable[..., Any] = getattr(Forwards, name)
    found = facts(forward.__code__)
    if name == "first":
        assert found.sets == {"kept"} and found.refusal is None and "kept" not in found.attributes
    else:
        assert not found.sets and found.refusal == "sets kept: a fused call would not"
