"""Which backend serves a call: by device and dtype, by the call's own arguments, and for a network of several ops."""

import logging

import pytest
import torch

from fastdarts.logs import say_once
from fastdarts.ops import backend
from fastdarts.ops.backend import Backend, BackendUnavailable, anything
from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.supernet import Supernet

CPU = torch.device("cpu")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """An op whose fast backend takes numbers up to 4."""

    def beyond(x: int) -> str | None:
        return None if x <= 4 else f"it takes numbers up to 4, got {x}"

    fast = Backend("fast", anything, lambda x: ("fast", x), beyond)
    monkeypatch.setitem(
        backend._ops, "toy", {b.name: b for b in (fast, Backend("definition", anything, lambda x: ("slow", x)))}
    )
    backend._decide.cache_clear()
    say_once.cache_clear()
    return "toy"


def test_unsupported_call_falls_back_to_definition_with_one_log_line(toy: str, caplog: pytest.LogCaptureFixture) -> None:
    assert backend.run(toy, "auto", CPU, torch.float32, 4) == ("fast", 4)
    with caplog.at_level(logging.INFO, "fastdarts"):
        for _ in range(2):
            assert backend.run(toy, "auto", CPU, torch.float32, 5) == ("slow", 5)
    assert caplog.text.count("toy: backend definition; not fast: it takes numbers up to 4, got 5") == 1


def test_explicit_backend_rejects_unsupported_call(toy: str) -> None:
    with pytest.raises(BackendUnavailable, match="toy: backend 'fast' cannot serve this call: it takes numbers up to 4"):
        backend.run(toy, "fast", CPU, torch.float32, 5)
    assert backend.run(toy, "definition", CPU, torch.float32, 5) == ("slow", 5)


def test_op_without_requested_backend_chooses_another(toy: str) -> None:
    assert backend.offered(toy, "fast") == "fast"
    assert backend.offered(toy, "triton") == "auto"


def test_triton_supernet_runs_stem_without_triton_kernel() -> None:
    """The stem's op is written for no GPU; what refuses here, without one, is the first op that is."""
    supernet = Supernet(S0, C=4, layers=3, backend="triton")
    with pytest.raises(BackendUnavailable, match="relu_conv_bn: backend 'triton' cannot serve"):
        supernet(torch.zeros(2, 3, 8, 8), SoftmaxRelaxation(S0, edge_normalization=False).weights())
