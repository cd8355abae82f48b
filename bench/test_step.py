"""The definition supernet's bilevel step in plain PyTorch: the baseline that all later speed is measured against."""

from dataclasses import asdict

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workload import CELL, CELL_SIZE, Workload
from fastdarts.spaces import Space

ROUNDS = 5
SMALL = Space.uniform("two candidates on two edges", ("skip_connect", "sep_conv_3x3"), nodes=1)
STEMS = {"cifar": "cifar", "imagenet": "pc-imagenet"}  # both supervised
SIZES = {"cifar": (32, 16), "imagenet": (224, 32)}  # full and small, pixels


def timed(benchmark: BenchmarkFixture, workload: Workload, side: str) -> None:
    """Time a side's calls and note what they were."""
    facts = asdict(workload)
    benchmark.extra_info.update({name: facts[name] for name in facts if name not in ("space", "backend")}, side=side)
    benchmark.pedantic(workload.build(side), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("side", ["eager", "channels-last"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("stem", STEMS)
def test_bilevel_step(benchmark: BenchmarkFixture, full_size: bool, stem: str, k: int, side: str) -> None:
    full, small = SIZES[stem]
    timed(benchmark, Workload(STEMS[stem], 16 if full_size else 2, full if full_size else small, k), side)


@pytest.mark.parametrize("side", ["eager", "channels-last", "compile"])
def test_mixed_edges_of_one_cell(benchmark: BenchmarkFixture, full_size: bool, side: str) -> None:
    if full_size:
        timed(benchmark, Workload(CELL, 16, CELL_SIZE, 1), side)
    else:
        timed(benchmark, Workload(CELL, 2, 8, 1, space=SMALL), side)
