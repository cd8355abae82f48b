"""Which algorithms torch may take inside, that the caller's choice comes back, and what an operator without one says."""

import logging
import os

import pytest
import torch
import torch.utils.deterministic

from fastdarts.engine import NotDeterministicError, algorithms
from fastdarts.engine.determinism import CUBLAS


def choices() -> list[bool]:
    cudnn = torch.backends.cudnn
    filled = torch.utils.deterministic.fill_uninitialized_memory
    return [cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled(), filled]


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)


@pytest.mark.parametrize(
    ("deterministic", "device", "inside"),
    [
        (False, "cpu", [False, False, False, True]),
        (False, "cuda", [True, False, False, True]),
        (True, "cpu", [False, True, True, False]),
        (True, "cuda:1", [False, True, True, False]),
    ],
)
def test_settings_apply_only_inside_context(
    deterministic: bool, device: str, inside: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = choices()

    def fail() -> None:
        assert choices() == inside
        assert (CUBLAS in os.environ) == deterministic
        raise KeyError

    with pytest.raises(KeyError), algorithms(deterministic, device):
        fail()
    assert choices() == before


@pytest.mark.parametrize(("device", "said"), [("cuda", "disabled cuDNN's search"), ("cpu", "nothing to disable")])
def test_disabled_features_are_logged(device: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastdarts"), algorithms(True, device):
        pass
    assert said in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "fastdarts"), algorithms(False, device):
        pass
    assert not caplog.text


def test_operator_without_deterministic_algorithm_is_named() -> None:
    message = "max_pool3d_backward_cuda does not have a deterministic implementation, but you set it."
    with (
        pytest.raises(NotDeterministicError, match="no deterministic max_pool3d_backward_cuda on cuda"),
        algorithms(True, "cuda"),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="another") as caught, algorithms(True, "cuda"):
        raise RuntimeError("another error")
    assert not isinstance(caught.value, NotDeterministicError)


def test_cublas_used_before_is_reported() -> None:
    message = "To enable deterministic behavior you must set CUBLAS_WORKSPACE_CONFIG=:4096:8 before running your application."
    with (
        pytest.raises(NotDeterministicError, match=f"cuBLAS was already in use .* start the process with {CUBLAS}"),
        algorithms(True, "cuda"),
    ):
        raise RuntimeError(message)


def test_torch_message_has_expected_words() -> None:
    """On a CPU few operators lack one; this one's message is what the class above looks for."""
    with pytest.raises(NotDeterministicError, match="no deterministic"), algorithms(True, "cpu"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
