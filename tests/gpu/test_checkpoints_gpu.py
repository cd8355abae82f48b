"""State of a GPU search copied concurrently with its steps, and resumed from the copy."""

import pytest
import torch

from fastdarts.engine import rng_state, set_rng_state
from fastdarts.engine.writer import Copy, Writer
from tests.support import bilevels

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)


def test_later_steps_do_not_change_copy() -> None:
    """Steps are ordered behind the copy while it may still be under way."""
    bilevel = bilevels.make(device="cuda")
    for step in range(2):
        bilevel(bilevels.number(step, "cuda"), bilevels.batch(step, device="cuda"), bilevels.batch(9, device="cuda"))
    want = bilevels.everything(bilevel)
    copy = Copy({"supernet": bilevel.supernet.state_dict(), "alpha": list(bilevel.relaxation.parameters())})
    for step in range(2, 5):
        bilevel(bilevels.number(step, "cuda"), bilevels.batch(step, device="cuda"), bilevels.batch(9, device="cuda"))
    state = copy.ready()
    for name, tensor in state["supernet"].items():
        assert tensor.device.type == "cpu" and torch.equal(tensor, want[f"supernet {name}"].cpu()), name
        assert tensor.stride() == bilevel.supernet.state_dict()[name].stride()
    assert all(torch.equal(a, want[f"alpha {i}"].cpu()) for i, a in enumerate(state["alpha"]))


def test_copy_does_not_synchronise() -> None:
    bilevel = bilevels.make(device="cuda")
    bilevel(bilevels.number(0, "cuda"), bilevels.batch(0, device="cuda"), bilevels.batch(9, device="cuda"))
    state, written = bilevels.everything(bilevel), []
    Copy(state).ready()  # pinned memory is there from now on
    torch.cuda.set_sync_debug_mode("error")
    try:
        writer = Writer()
        writer.write(state, written.append)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    writer.wait()
    assert all(torch.equal(written[0][name], tensor.cpu()) for name, tensor in state.items())


def test_device_generator_resumes() -> None:
    saved = Copy(rng_state(DEVICE)).ready()
    first = torch.rand(3, device=DEVICE)
    set_rng_state(saved, DEVICE)
    assert torch.equal(torch.rand(3, device=DEVICE), first)
