"""The roofline table by hand, and what the tuning command tries and writes; refusals without a GPU."""

import json
from typing import Any

import pytest
import torch

from bench import roofline, tune
from bench.gpu_cases import Case, Cost

LIMITS = {"copy_gb_per_s": 4000.0, "float32_matmul_tflop_per_s": 50.0, "bfloat16_matmul_tflop_per_s": 800.0}
CASE = Case("op", "8 x 8", lambda: None, {"copy": Cost(2 * 10**9, 10**9), "product": Cost(10**9, 10**12)})
TIMES = {"copy": (1e-3, 1), "product": (4e-2, 2), "merge": (3e-6, 1), "other": (1e-6, 3)}


def test_shares_by_hand() -> None:
    copy, product, others = roofline.rows(CASE, "float32", TIMES, LIMITS)
    assert (copy["us"], copy["gb_per_s"], copy["copy_share"], copy["binds"]) == (1000.0, 2000.0, 0.5, "memory")
    assert (product["tflop_per_s"], product["share"], product["binds"], product["launches"]) == (25.0, 0.5, "rate", 2)
    assert others | {"us": 4.0, "launches": 4} == others
    _, half, _ = roofline.rows(CASE, "bfloat16", TIMES, LIMITS)
    assert half["rate_share"] == pytest.approx(25 / 800, abs=1e-3)
    assert "memory binds" in roofline.line(copy) and "in 4 launches" in roofline.line(others)


def test_a_kernel_that_did_not_run_is_named() -> None:
    with pytest.raises(RuntimeError, match="op: no launch of product was seen among copy"):
        roofline.rows(CASE, "float32", {"copy": (1e-3, 1)}, LIMITS)


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
def test_what_is_tried(key: str, value: int, expected: list[int]) -> None:
    assert tune.neighbours(key, value) == expected


def test_the_table_is_written_as_it_is_kept() -> None:
    launch = pytest.importorskip("fastdarts.kernels.launch")
    text = launch.TABLE.read_text(encoding="utf-8")
    assert tune.written(json.loads(text)) == text


def test_a_tuned_row_goes_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_without_a_gpu_it_says_so(command: Any, capsys: pytest.CaptureFixture) -> None:
    assert command.main([]) == 2
    assert "it serves tensors on NVIDIA GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("command", [roofline, tune])
def test_wrong_input(command: Any, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["--rounds", "0"])
    assert stopped.value.code == 2
    assert "--rounds 0: at least 1" in capsys.readouterr().err
