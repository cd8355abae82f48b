"""The roofline table by hand, and what the tuning command tries and writes; refusals without a GPU."""

import json
from typing import Any

import pytest
import torch

from bench import roofline, tune
from bench.gpu_cases import Case, Cost, kernel_name

LIMITS = {"copy_gb_per_s": 4000.0, "float32_matmul_tflop_per_s": 50.0, "bfloat16_matmul_tflop_per_s": 800.0}
CASE = Case("op", "8 x 8", lambda: None, {"copy": Cost(2 * 10**9, 10**9), "product": Cost(10**9, 10**12)})
TIMES = {"copy": (1e-3, 1), "product": (4e-2, 2), "merge": (3e-6, 1), "other": (1e-6, 3)}


def test_shares_match_hand_computation() -> None:
    copy, product, others = roofline.rows(CASE, "float32", TIMES, LIMITS)
    assert (copy["us"], copy["gb_per_s"], copy["copy_share"], copy["binds"]) == (1000.0, 2000.0, 0.5, "memory")
    assert (product["tflop_per_s"], product["share"], product["binds"], product["launches"]) == (25.0, 0.5, "rate", 2)
    assert others | {"us": 4.0, "launches": 4} == others
    _, half, _ = roofline.rows(CASE, "bfloat16", TIMES, LIMITS)
    assert half["rate_share"] == pytest.approx(25 / 800, abs=1e-3)
    assert roofline.rows(CASE, "uint8", TIMES, LIMITS)[1]["share"] == 0.5
    assert "memory binds" in roofline.line(copy) and "in 4 launches" in roofline.line(others)


def test_missing_kernel_is_named() -> None:
    with pytest.raises(RuntimeError, match="op: no launch of product was seen among copy"):
        roofline.rows(CASE, "float32", {"copy": (1e-3, 1)}, LIMITS)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("separable", "separable"),
        ("void fastdarts::cuda::run_block<fastdarts::cuda::PoolSums<float> >(fastdarts::cuda::CellArgs)", "pool_sums"),
        ("void fastdarts::cuda::run_block<fastdarts::cuda::WritePixels<__half> >(MaskArgs)", "write_pixels"),
        (
            "void at::native::vectorized_elementwise_kernel<4, Add>(int)",
            "void at::native::vectorized_elementwise_kernel<4, Add>(int)",
        ),
    ],
)
def test_kernel_names_are_recognised(key: str, name: str) -> None:
    assert kernel_name(key) == name


class Pretended:
    """Times of a kernel that is faster by CUDA, by so much."""

    def __init__(self, by_cuda: float) -> None:
        self.by_cuda = by_cuda

    def __call__(self, run: Any, rounds: int) -> dict[str, tuple[float, int]]:
        from fastdarts.kernels import launch

        cuda = launch.backend("patch_mask.write", torch.float32, "sm_90") == "cuda"
        return {"write_pixels": (self.by_cuda if cuda else 1e-3, 1)}


@pytest.mark.parametrize(("by_cuda", "chosen"), [(0.8e-3, "cuda"), (0.9e-3, "triton")])
def test_cuda_kernel_is_preferred_only_if_clearly_faster(by_cuda: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = pytest.importorskip("fastdarts.kernels.launch")
    rows = json.loads(launch.TABLE.read_text(encoding="utf-8"))
    monkeypatch.setattr(launch, "table", lambda: rows)
    monkeypatch.setattr(tune, "kernel_times", Pretended(by_cuda))
    monkeypatch.setattr(tune.native, "without_cuda", lambda: None)
    launch._settings.cache_clear()
    case = Case("patch_mask", "8 x 8", lambda: None, {"write_pixels": Cost(1, 1)})
    (said,) = tune.tuned(case, torch.float32, "sm_90", 1)
    assert f"by CUDA {1e6 * by_cuda:.1f} us" in said
    assert launch.backend("patch_mask.write", torch.float32, "sm_90") == chosen
    assert launch.backend("patch_mask.write", torch.float32, "sm_80") == "triton"
    launch._settings.cache_clear()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BLOCK", 256, [128, 512]),
        ("ROWS", 8, [16]),
        ("BLOCK", 4096, [2048]),
        ("num_warps", 1, [2]),
        ("num_warps", 16, [8]),
        ("num_stages", 1, [2]),
        ("num_stages", 3, [2, 4]),
    ],
)
def test_tuning_candidates(key: str, value: int, expected: list[int]) -> None:
    """Values tried next to the current one."""
    assert tune.neighbours(key, value) == expected


def test_launch_table_round_trips() -> None:
    launch = pytest.importorskip("fastdarts.kernels.launch")
    text = launch.TABLE.read_text(encoding="utf-8")
    assert tune.written(json.loads(text)) == text


def test_tuned_row_precedes_default(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = pytest.importorskip("fastdarts.kernels.launch")
    table: dict[str, Any] = {"k": {"default": {"any": {"BLOCK": 64, "num_warps": 4}}}}
    monkeypatch.setattr(launch, "table", lambda: table)
    launch._settings.cache_clear()
    launch.replace("k", torch.float16, "sm_90", {"BLOCK": 128, "num_warps": 8})
    assert launch.settings("k", torch.float16, "sm_90")["BLOCK"] == 128
    assert launch.settings("k", torch.float16, "sm_80")["BLOCK"] == 64
    assert json.loads(tune.written(table)) == table
    launch._settings.cache_clear()


@pytest.mark.parametrize("command", [roofline, tune])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_exits_with_one_line(command: Any, capsys: pytest.CaptureFixture) -> None:
    assert command.main([]) == 2
    assert "it supports tensors on NVIDIA GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("command", [roofline, tune])
def test_invalid_input_exits_with_one_line(command: Any, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--rounds", "0"])
    assert stopped.value.code == 2
    assert "--rounds 0: at least 1" in capsys.readouterr().err
