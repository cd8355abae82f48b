"""mixed_cell's kernels spill nothing at the widths between those that test_compile.py covers. Needs no GPU; minutes."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from fastdarts.kernels import compile as compiler
from fastdarts.kernels import mixed_cell_backward, mixed_cell_forward, mixed_cell_sums, mixed_cell_weights
from fastdarts.kernels.mixed_cell_specimens import ALL_WIDTHS

MODULES = [mixed_cell_forward, mixed_cell_sums, mixed_cell_backward, mixed_cell_weights]


@pytest.mark.campaign
@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize("dtype", compiler.DTYPES)
@pytest.mark.parametrize("width", ALL_WIDTHS, ids=str)
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_no_width_spills(module: Any, width: tuple[int, int, bool], dtype: torch.dtype, arch: int) -> None:
    rows = [compiler.compile_specimen(specimen, arch) for specimen in module.specimens(dtype, (width,))]
    assert rows and [row for row in rows if row.spill_bytes] == []
