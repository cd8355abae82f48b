"""The CUDA kernels as nvcc compiled them: every one for both architectures, in every dtype, and none spills registers."""

from pathlib import Path

import pytest
import torch

from fastdarts import native
from fastdarts.kernels.cuda_resources import cuobjdump, report
from fastdarts.kernels.mixed_cell_cuda import refusal

ARCHITECTURES = ("sm_80", "sm_90a")
DTYPES = ("bfloat16", "float16", "float32")
SHARED = 48 * 1024  # bytes that a block gets without asking for more
REGISTERS = 255  # of a thread


def reason() -> str | None:
    """Why there is nothing to look at, or None."""
    if why := native.reason():
        return why
    if not hasattr(native.module(), "cuda_launches"):
        return f"the native module has no CUDA kernels: {(native.build() or {}).get('cuda_skipped')}"
    return None if cuobjdump() else "cuobjdump is not found: neither the CUDA toolkit nor Triton is installed"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    if why := reason():
        pytest.skip(why)
    return report(Path(native.module().__file__))


def test_kernels_exist_for_all_architectures_and_dtypes(rows: list[dict]) -> None:
    found = {(row["kernel"], row["label"], row["arch"], row["dtype"]) for row in rows}
    halves = ("first", "second")
    wanted = {("ChoosePatches", "", arch, "any") for arch in ARCHITECTURES}
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            wanted |= {(name, "", arch, dtype) for name in ("WritePixels", "PoolSums", "PoolGradient", "StateGradient")}
            wanted |= {("TapGradient", half, arch, dtype) for half in halves}
            wanted |= {("Separable", f"{half} Cq<={outs}", arch, dtype) for half in halves for outs in (16, 32, 64)}
    assert found == wanted


def test_no_kernel_spills(rows: list[dict]) -> None:
    assert [row for row in rows if row["spill_bytes"]] == []


def test_kernels_fit_launch_limits(rows: list[dict]) -> None:
    """Shared memory and registers within what a block may have."""
    assert [row for row in rows if row["shared_bytes"] > SHARED or row["registers"] >= REGISTERS] == []


def test_build_records_architectures(rows: list[dict]) -> None:
    assert native.build()["cuda_architectures"] == "80;90a-real"


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_build_has_cuda_kernels_or_reason() -> None:
    record = native.build()
    assert bool(record["cuda_architectures"]) == hasattr(native.module(), "cuda_launches") != bool(record["cuda_skipped"])


def test_unsupported_arguments_give_reason(rows: list[dict]) -> None:
    searched = {"CQ": 64, "LARGEST": 5, "AFFINE": False, "SECOND": True}
    assert refusal("separable", torch.float32, searched) is None
    wide = refusal("separable", torch.float32, searched | {"CQ": 65})
    assert wide == "the CUDA kernel separable supports at most 64 channels, got 65"
    assert refusal("node", torch.float32, {}) == "node is written in Triton only"
    assert "not for float64" in refusal("pool_sums", torch.float64, {})
    with pytest.raises(ValueError, match="no launch node"):
        native.module().cuda_launch("node", "float32", 1, 0, {})
