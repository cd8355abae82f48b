"""Captures without a GPU."""

import pytest

from fastdarts.optim import updates
from fastdarts.steps import cuda_graph
from tests.support.recorders import Repeats, Tapes


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> type[Repeats]:
    """Capture with `Repeats`."""
    Repeats.made = []
    monkeypatch.setattr(cuda_graph, "Recorder", Repeats)
    monkeypatch.setattr(cuda_graph, "no_gpu", lambda _: None)
    monkeypatch.setattr(updates, "known", lambda bad: False)  # to the host
    return Repeats


@pytest.fixture
def tapes(repeats: type[Repeats], monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture with `Tapes`."""
    monkeypatch.setattr(cuda_graph, "Recorder", Tapes)
