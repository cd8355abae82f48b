"""launch.json's choice between a launch's Triton and CUDA kernel, and the message if CUDA's is unusable."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdarts import native
from fastdarts.kernels import launch, mixed_cell_cuda
from fastdarts.logs import say_once

ROW = {"TILE": 64, "num_warps": 4, "num_stages": 1}
HALF = torch.float16
SEARCH = {"CQ": 16, "SECOND": False, "AFFINE": False, "PLAIN_MAX": False, "WEIGHTED": 1, "LARGEST": 5}  # of a launch


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    rows = {"default": {"any": dict(ROW)}, "sm_90": {"float16": ROW | {"backend": "cuda"}}}
    monkeypatch.setattr(launch, "table", lambda: {"toy": rows})
    launch._settings.cache_clear()
    yield
    launch._settings.cache_clear()


def test_backend_belongs_to_row_not_settings() -> None:
    assert launch.backend("toy", HALF, "sm_90") == "cuda"
    assert launch.backend("toy", HALF, "sm_80") == launch.backend("toy", torch.float32, "sm_90") == "triton"
    for target in ("sm_80", "sm_90"):
        assert launch.settings("toy", HALF, target) == launch.COMMON | ROW


def test_tuned_row_keeps_backend() -> None:
    launch.replace("toy", HALF, "sm_90", ROW | {"TILE": 128})
    assert launch.backend("toy", HALF, "sm_90") == "cuda"
    assert launch.settings("toy", HALF, "sm_90")["TILE"] == 128
    launch.replace("toy", HALF, "sm_80", ROW)
    assert launch.backend("toy", HALF, "sm_80") == "triton"


def test_warps_grow_with_wide_tiles() -> None:
    given = {"TILE": 1024, "num_warps": 4}
    assert [launch.widened(given, channels)["num_warps"] for channels in (None, 16, 64, 128)] == [4, 4, 4, 8]
    assert launch.widened({"num_warps": 4}, 128) == {"num_warps": 4}


def test_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    with caplog.at_level(logging.INFO, "fastdarts"):
        for _ in range(2):
            say_once("toy: running Triton's kernel instead of CUDA's: it is a toy")
    assert caplog.text.count("it is a toy") == 1


def test_cuda_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA kernels in the native module; with them, for kernels, dtypes and arguments they were not written for."""
    monkeypatch.setattr(native, "without_cuda", lambda: "the native module has no CUDA kernels: nvcc is not found")
    assert "nvcc is not found" in mixed_cell_cuda.refusal("separable", HALF, SEARCH)
    monkeypatch.setattr(native, "without_cuda", lambda: None)
    monkeypatch.setattr(native, "module", lambda: type("Module", (), {"cuda_launches": lambda: ["separable"]}))
    assert mixed_cell_cuda.refusal("separable", HALF, SEARCH) is None
    assert "written in Triton only" in mixed_cell_cuda.refusal("mix_weights", HALF, {})
    assert "not for float64" in mixed_cell_cuda.refusal("separable", torch.float64, SEARCH)
    assert "at most 64 channels, got 128" in mixed_cell_cuda.refusal("separable", HALF, SEARCH | {"CQ": 128})


def state_gradient_arguments() -> dict[str, Any]:
    """Such as the CUDA kernel takes, without weights of candidates and edges."""
    tensors = {
        name: torch.empty(64, dtype=HALF) for name in ("p_saved", "p_inputs0", "p_inputs1", "p_inputs2", "p_inputs3", "p_grad")
    }
    return tensors | SEARCH | {"CHOSEN": False, "DENSE": False, "pixels": 4, "m": 4}


@pytest.mark.parametrize(
    ("kernel", "what", "why"),
    [
        ("separable", {"LARGEST": 7}, "kernels of 7 rows"),
        ("tap_gradient", {"AFFINE": True, "SECOND": True}, "affine BatchNorms"),
        ("pool_gradient", {"PLAIN_MAX": True}, "maxima without BatchNorm"),
        ("state_gradient", {"WEIGHTED": 2}, "edge weights of each image"),
    ],
)
def test_launches_of_discrete_cells_are_rejected(kernel: str, what: dict[str, Any], why: str) -> None:
    assert why in mixed_cell_cuda.unfit(kernel, SEARCH | what)


def test_unaligned_input_is_rejected() -> None:
    given = state_gradient_arguments() | {name: torch.empty(2, dtype=HALF) for name in ("p_ops", "p_edges")}
    assert mixed_cell_cuda.unfit("state_gradient", given) is None
    for name in ("p_inputs2", "p_grad"):
        assert "aligned to 8 bytes" in mixed_cell_cuda.unfit("state_gradient", given | {name: given[name][1:]})


def test_mixing_weights_share_dtype() -> None:
    """Under autocast they need not: the CUDA kernels take those of the inputs' dtype, or all of them in float32."""
    given = state_gradient_arguments()
    for ops, edges, fits in (
        (HALF, HALF, True),
        (torch.float32, torch.float32, True),
        (torch.float32, HALF, False),
        (torch.float64, torch.float64, False),
    ):
        mix = {"p_ops": torch.empty(0, dtype=ops), "p_edges": torch.empty(0, dtype=edges)}
        for kernel in mixed_cell_cuda.MIXING:
            why = mixed_cell_cuda.unfit(kernel, given | mix)
            assert why is None if fits else "in the inputs' dtype or all in float32" in why
