"""What launches of mixed_cell's CUDA kernels must leave in memory: the same mathematics in float64, by fusion's measure.

Each check takes a Memory, one of its launches and the tensors after it, and raises AssertionError; it also asserts that what
a launch must not write has kept its bits.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels.mixed_cell_cuda import unfit
from fastdarts.kernels.mixed_cell_launches import TAPS, Launch, Needs
from fastdarts.kernels.rows import PoolRow, StateRow, UnitRow
from tests.cuda.launches import Memory, convolve, flat, merged, moments, pools
from tests.ops.cells import CellCall
from tests.ops.exactness import assert_exact

Left = dict[str, Tensor]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def check_moments(statistics: Tensor, single: Tensor, double: Tensor, memory: Memory, one: Launch) -> None:
    """Sums over parts must be as exact as those of eager's float32 numbers `single`; (m, C) both."""
    parts = memory.parts(one)
    assert_exact(merged(statistics, parts), [moments(single, parts)], moments(double, parts), torch.float32)


def separable(memory: Memory, one: Launch, left: Left) -> int:
    Cq, kept = memory.plan.Cq, memory.given["p_saved"].clone()
    units = memory.rows(one, UnitRow, "o_units")
    for unit in units:
        y = memory.images(left["p_saved"], unit.y, Cq)
        eager = convolve(memory, unit, torch.float32, rounded=True).to(memory.dtype)
        assert_exact({"y": y}, [{"y": eager}], {"y": convolve(memory, unit, torch.float64)}, memory.dtype)
        kept[memory.place(unit.y, Cq)] = left["p_saved"][memory.place(unit.y, Cq)]
        if memory.call.training:
            check_moments(left["p_statistics"][unit.norm], flat(y).float(), flat(y).double(), memory, one)
        else:
            assert left["p_statistics"].isnan().all()
    assert same_bits(left["p_saved"], kept)
    return len(units)


def pool_sums(memory: Memory, one: Launch, left: Left) -> int:
    rows, statistics = memory.rows(one, PoolRow, "o_pools"), left["p_statistics"].clone()
    for pool in rows:
        x = memory.state(pool)
        single, double = pools(x.float(), pool.stride), pools(x.double(), pool.stride)
        for slot, which in ((pool.max_slot, 0), (pool.avg_slot, 2)):
            if slot >= 0:
                check_moments(statistics[slot], flat(single[which]), flat(double[which]), memory, one)
                statistics[slot] = torch.nan
    assert statistics.isnan().all()
    return len(rows)


def pool_gradient(memory: Memory, one: Launch, left: Left) -> int:
    Cq, kept = memory.plan.Cq, memory.given["p_work"].clone()
    rows = memory.rows(one, PoolRow, "o_pools")
    for pool in rows:
        offsets = {"dmax": pool.dmax, "place": pool.place, "davg": pool.davg}
        got = {name: memory.images(left["p_work"], offset, Cq) for name, offset in offsets.items()}
        eager = {name: t.to(memory.dtype) for name, t in _pool_gradients(memory, one, pool, torch.float32).items()}
        want = _pool_gradients(memory, one, pool, torch.float64)
        assert_exact(got, [eager], want, memory.dtype)
        assert torch.equal(got["place"].double(), want["place"])
        for offset in offsets.values():
            kept[memory.place(offset, Cq)] = left["p_work"][memory.place(offset, Cq)]
    assert same_bits(left["p_work"], kept)
    return len(rows)


def _pool_gradients(memory: Memory, one: Launch, pool: PoolRow, kind: torch.dtype) -> dict[str, Tensor]:
    """Gradients of a state's maximum and mean, (N, Cq, Ho, Wo), computed at `kind`; the maximum's place."""
    best, place, mean, count = pools(memory.state(pool).to(kind), pool.stride)
    dmax, davg = torch.zeros_like(best), torch.zeros_like(best)

    def behind(g: Tensor, value: Tensor, norm: int) -> Tensor:
        a, c0, c1 = memory.given["p_coefficients"][norm].to(kind)[:, None, :, None, None]
        return a * (g - c0 - memory.xhat(value, norm) * c1)

    for i, edge in memory.edges(one, pool):
        g = memory.images(memory.given["p_work"], edge.grad, memory.plan.C)[:, memory.chosen(pool.edge)].to(kind)
        if edge.max >= 0:
            dmax = dmax + behind(g, best, edge.max_norm)
        if edge.avg >= 0:
            davg = davg + behind(g, mean, edge.avg_norm)
        if edge.plain >= 0:
            beta = memory.given["p_edges"][i].to(kind) if memory.call.edges else 1.0
            davg = davg + beta * memory.given["p_ops"][i, edge.plain].to(kind) * g
    return {"dmax": dmax, "place": place.to(kind), "davg": davg / count}


def tap_gradient(memory: Memory, one: Launch, left: Left) -> int:
    Cq, parts = memory.plan.Cq, left["p_parts"].clone()
    units = memory.rows(one, UnitRow, "o_units", TAPS)
    for unit in units:
        numbers = slice(unit.depthwise, unit.depthwise + Cq * unit.kernel**2)
        for i, pixels in enumerate(memory.parts(one)):
            got = {"taps": parts[i, numbers].view(Cq, 1, unit.kernel, unit.kernel)}
            eager, want = ({"taps": _tap_gradients(memory, unit, pixels, kind)} for kind in (torch.float32, torch.float64))
            assert_exact(got, [eager], want, torch.float32)
        parts[:, numbers] = torch.nan
    assert parts.isnan().all()
    return len(units)


def _tap_gradients(memory: Memory, unit: UnitRow, pixels: slice, kind: torch.dtype) -> Tensor:
    """A part's gradient of a unit's depthwise kernel, (Cq, 1, K, K), computed at `kind`."""
    Cq, K = memory.plan.Cq, unit.kernel
    dz = memory.images(memory.given["p_work"], unit.dz, Cq).to(kind)
    part = torch.zeros(memory.plan.m, dtype=kind)
    part[pixels] = 1
    dz = dz * part.view(memory.plan.N, 1, memory.plan.Ho, memory.plan.Wo)
    x, reach = memory.rectified(unit, kind), unit.dilation * (K // 2)
    return torch.nn.grad.conv2d_weight(x, (Cq, 1, K, K), dz, unit.stride, reach, unit.dilation, Cq)


def state_gradient(memory: Memory, one: Launch, left: Left) -> int:
    plan, kept = memory.plan, dict(memory.given)
    states = memory.rows(one, StateRow, "o_states", int(one.values["TILES"]))
    for state in states:
        where = f"p_grad_inputs{state.source}" if state.source >= 0 else "p_work"
        place = slice(0, plan.m * plan.C) if state.source >= 0 else memory.place(state.grad, plan.C)
        size = plan.N, *((plan.H, plan.W) if state.source >= 0 else (plan.Ho, plan.Wo)), plan.C
        got = left[where].view(-1)[place].view(size).permute(0, 3, 1, 2)
        eager = {"dx": _state_gradient(memory, one, state, torch.float32).to(memory.dtype)}
        assert_exact({"dx": got}, [eager], {"dx": _state_gradient(memory, one, state, torch.float64)}, memory.dtype)
        whole = kept[where].clone()
        whole.view(-1)[place] = left[where].view(-1)[place]
        kept[where] = whole
    assert all(same_bits(left[name], kept[name]) for name in (*(f"p_grad_inputs{i}" for i in range(4)), "p_work"))
    return len(states)


def _state_gradient(memory: Memory, one: Launch, state: StateRow, kind: torch.dtype) -> Tensor:
    """The gradient of a state whose edges have stride 1, (N, C, H, W) in the order of its memory, computed at `kind`."""
    plan, given = memory.plan, memory.given
    Cq, k, work = plan.Cq, plan.C // plan.Cq, given["p_work"]
    if state.source >= 0:
        x = given[f"p_inputs{state.source}"].permute(0, 3, 1, 2).to(kind)
    elif state.leaving < state.leaving_end:
        x = memory.images(given["p_saved"], state.state, plan.C).to(kind)
    else:  # a node that nobody reads was not kept
        x = torch.zeros(plan.N, plan.C, plan.Ho, plan.Wo, dtype=kind)
    total, behind = torch.zeros_like(x), torch.zeros_like(x)
    if state.node >= 0:
        total = total + given["p_grad"].permute(0, 3, 1, 2)[:, state.node * plan.C :][:, : plan.C].to(kind)
    for i, edge in memory.edges(one, state):
        g = memory.images(work, edge.grad, plan.C).to(kind)
        beta = given["p_edges"][i].to(kind) if memory.call.edges else 1.0
        total[:, Cq:] += beta * g[:, Cq:]
        if edge.skip >= 0:
            total[:, :Cq] += beta * given["p_ops"][i, edge.skip].to(kind) * g[:, :Cq]
        for u in range(edge.units, edge.units_end):
            unit = memory.row(UnitRow, one.values["o_units"], u)
            taps = given["p_weights"][unit.depthwise :][: Cq * unit.kernel**2].view(Cq, 1, unit.kernel, unit.kernel).to(kind)
            dz, reach = memory.images(work, unit.dz, Cq).to(kind), unit.dilation * (unit.kernel // 2)
            behind[:, :Cq] += F.conv_transpose2d(dz, taps, None, 1, reach, 0, Cq, unit.dilation)
        if edge.pool >= 0:
            pool = memory.row(PoolRow, one.values["o_pools"], edge.pool)
            dmax, place, davg = (memory.images(work, at, Cq).to(kind) for at in (pool.dmax, pool.place, pool.davg))
            for t in range(9):
                given_back = F.pad(davg + dmax * (place == t), (1, 1, 1, 1))
                total[:, :Cq] += given_back[:, :, 2 - t // 3 :, 2 - t % 3 :][:, :, : plan.Ho, : plan.Wo]
    total = total + torch.where(x > 0, behind, 0)
    return total if state.node < 0 else total.unflatten(1, (Cq, k)).transpose(1, 2).flatten(1, 2)


class Check(NamedTuple):
    """Of a kernel's launches: which plan has them, and what they must leave; returns of how many rows of the table."""

    needs: Needs | None
    check: Callable[[Memory, Launch, Left], int]


CHECKS = {
    "separable": Check(None, separable),
    "pool_sums": Check(None, pool_sums),
    "pool_gradient": Check(Needs(), pool_gradient),
    "state_gradient": Check(Needs(), state_gradient),
    "tap_gradient": Check(Needs(), tap_gradient),
}


def launches(kernel: str, call: CellCall, dtype: torch.dtype) -> Iterator[tuple[Memory, Launch, dict[str, Tensor | int]]]:
    """The launches of a call that the CUDA kernel of this name takes; skips the test where there are none."""
    memory = Memory.of(call, dtype, CHECKS[kernel].needs)
    why: str | None = f"this call does not launch {kernel}"
    for one in memory.plan.launches:
        if one.kernel == kernel:
            given = memory.given | one.values
            unserved = unfit(kernel, given)
            if unserved is None:
                yield memory, one, given
            why = why and unserved
    if why:
        pytest.skip(why)
