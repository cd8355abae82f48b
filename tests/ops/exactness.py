"""How exact a backend must be: never worse than twice eager's own error, against the definition in float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.utils.deterministic
from torch import Tensor

from fastdarts import native

Named = dict[str, Tensor]
FLOAT64 = 1e-10  # of the largest entry, or of one if that is smaller: what two orders of summation may differ by in float64


def assert_exact(got: Named, eager: Sequence[Named], reference: Named, dtype: torch.dtype) -> None:
    """max|got - reference| <= 2 max|eager - reference| + 4 eps max|reference|, tensor by tensor; all at `dtype` but the last.

    eager  in more than one layout: the larger of their errors counts, one alone may be lucky. In float64, where reference
           and eager are one, 1e-10 of the largest entry is allowed instead
    """
    for name, want in reference.items():
        mine, theirs = got[name], [e[name] for e in eager]
        assert mine.shape == want.shape and mine.dtype == dtype, f"{name}: {mine.dtype} {tuple(mine.shape)}"
        if not want.numel():
            continue
        assert bool(mine.isfinite().all()), f"{name}: not finite"
        error, *slack = (float((t.double() - want).abs().max()) for t in (mine, *theirs))
        scale = float(want.abs().max())
        worst = max(slack, default=0.0)
        allowed = FLOAT64 * max(scale, 1.0) if dtype == torch.float64 else 2 * worst + 4 * torch.finfo(dtype).eps * scale
        assert error <= allowed, f"{name}: off by {error:.3e}, eager by {worst:.3e}, largest entry {scale:.3e}"
    assert got.keys() == reference.keys()


def gradients(out: Tensor, by: Tensor, of: Named) -> Named:
    """dL/dt of the tensors in `of` with L = sum(out * by); zeros where out does not depend on one."""
    grads = torch.autograd.grad(out, list(of.values()), by, allow_unused=True, materialize_grads=True)
    return {f"d {name}": g for name, g in zip(of, grads, strict=True)}


def double(named: Named) -> Named:
    """In float64, as leaves that require gradients where their originals do."""
    return {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in named.items()}


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Memory of torch, and the workspace that the C++ kernels take outputs and scratch from."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    module = native.module()
    if module:
        module.poison(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        if module:
            module.poison(False)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_threads(work: Callable[[], Named]) -> list[Named]:
    """What `work` gives twice on one thread, then on 2 and on 4."""
    results = []
    for n in (1, 1, 2, 4):
        with threads(n):
            results.append(work())
    return results
