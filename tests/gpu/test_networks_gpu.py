"""Discrete cells by Triton on a GPU: the numbers of their modules, drop path included; under autocast."""

from copy import deepcopy

import pytest
import torch

from tests.networks.test_fused import IMAGE, TRIPLES, network_of, results

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("architecture", ["DARTS_V2", "NASNet", TRIPLES], ids=["darts", "nasnet", "triples"])
def test_fused_cells_equal_their_modules(architecture: str, training: bool) -> None:
    ours = network_of(architecture, dtype=torch.float32).cuda().train(training)
    theirs = deepcopy(ours)
    theirs.set_backend("definition")
    assert ours.computed_by("cuda") == "cells fused by Triton" and theirs.computed_by("cuda") == "cells in plain PyTorch"
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(2)).cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        got, want = results(ours, x), results(theirs, x)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        apart = float((got[name].double() - tensor.double()).norm())
        assert apart <= 1e-3 * float(tensor.double().norm()) + 1e-5, name


def test_autocast_runs_fused_cells_and_keeps_parameters() -> None:
    network = network_of("DARTS_V2", dtype=torch.float32).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        logits, _ = network(torch.randn(IMAGE, device="cuda"))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for n, p in network.cells.named_parameters())
