"""Launches of mixed_cell's plan on random memory: what a kernel is given, the rows it works on, and what rows should come to.

Notation as in kernels/mixed_cell_plan.py. Forward and backward need not have run before: whatever a launch reads (states, y,
gradients, factors) is random.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdarts.kernels.mixed_cell_launches import Call, Launch, Needs
from fastdarts.kernels.mixed_cell_plan import MixedCellPlan
from fastdarts.kernels.rows import ALIGN, Candidate, EdgeRow, PoolRow, StateRow, UnitRow
from tests.ops.cells import CellCall, dense, one_edge

CONVOLUTIONS = (Candidate.SEP_CONV_3, Candidate.SEP_CONV_5, Candidate.DIL_CONV_3, Candidate.DIL_CONV_5)
CALLS = {
    "odd sides": CellCall(dense(2), N=3, C=8, H=7, W=9),
    "strided": CellCall(dense(2, 2), N=2, C=16, H=12, W=20, k=2, images="masked"),
    "random channels": CellCall(dense(2, 2), N=2, C=16, H=12, W=12, k=4, chosen=True, edges=False),
    "12 channels": CellCall(dense(1), N=2, C=12, H=9, W=8, images="shifted"),
    "24 channels": CellCall(one_edge(*CONVOLUTIONS, Candidate.MAX_POOL_3, stride=2), N=2, C=24, H=10, W=6),
    "64 channels": CellCall(one_edge(*CONVOLUTIONS), N=1, C=64, H=5, W=5),
    "wide": CellCall(one_edge(*CONVOLUTIONS, *list(Candidate)[2:4]), N=1, C=3, H=5, W=35),
    "mean without BN": CellCall(one_edge(*list(Candidate)[2:4], Candidate.PLAIN_AVG_POOL_3), N=2, C=16, H=9, W=18),
    "running statistics": CellCall(one_edge(*CONVOLUTIONS), N=1, C=8, H=6, W=6, training=False),
}


@dataclass
class Memory:
    """A plan and the tensors of a call at one dtype; `given` has them under the kernels' names."""

    call: CellCall
    plan: MixedCellPlan
    dtype: torch.dtype
    given: dict[str, Tensor | int]

    @staticmethod
    def of(call: CellCall, dtype: torch.dtype, needs: Needs | None) -> "Memory":
        shape = call.N, call.C, call.H, call.W
        plan = MixedCellPlan(Call(call.graph, shape, call.k, call.chosen, call.training, call.edges), needs)
        draw = torch.Generator().manual_seed(call.seed + 7)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw)

        def zeros_too(*size: int) -> Tensor:
            return torch.where(torch.rand(*size, generator=draw) < 0.1, 0.0, normal(*size))

        named, norms = call.tensors(torch.float64), plan.graph.norms
        inputs = [named[f"input {i}"].detach().permute(0, 2, 3, 1) for i in range(plan.graph.inputs)]
        factors = torch.stack(
            [normal(norms, plan.Cq), 0.5 + torch.rand(norms, plan.Cq, generator=draw), normal(norms, plan.Cq)], 1
        )
        tensors: dict[str, Tensor] = {f"p_inputs{i}": (inputs[i] if i < len(inputs) else inputs[0]).to(dtype) for i in range(4)}
        tensors |= {"p_saved": zeros_too(plan.saved).to(dtype), "p_work": zeros_too(plan.work).to(dtype)}
        tensors |= {name: named[name.removeprefix("p_")].detach().to(dtype) for name in ("p_ops", "p_weights")}
        tensors["p_edges"] = named["edges"].detach().to(dtype) if call.edges else tensors["p_ops"]
        tensors["p_table"] = torch.tensor(plan.table or [0])
        tensors["p_channels"] = call.constants()["channels"] if call.chosen else tensors["p_table"]
        tensors |= {"p_norms": factors, "p_coefficients": normal(norms, 3, plan.Cq)}
        tensors["p_grad"] = call.constants(dtype)["grad"].permute(0, 2, 3, 1)
        tensors |= {f"p_grad_inputs{i}": torch.full_like(tensors["p_inputs0"], torch.nan) for i in range(4)}
        tensors["p_statistics"] = torch.full((norms, plan.parts, 3, plan.Cq), torch.nan)
        tensors["p_parts"] = torch.full((plan.learnt, plan.numbers), torch.nan)
        sizes = {"H": plan.H, "W": plan.W, "Ho": plan.Ho, "Wo": plan.Wo, "m": plan.m, "numbers": plan.numbers}
        sizes |= {name: int(value) for name, value in plan.constants.items()}
        sizes["columns"] = named["ops"].shape[1]
        memory = Memory(call, plan, dtype, {name: t.contiguous() for name, t in tensors.items()} | sizes)
        for at in {int(one.values["o_pools"]) for one in plan.launches if needs and "o_pools" in one.values}:
            for i in range(len(plan._pools)):
                place = memory.place(memory.row(PoolRow, at, i).place, plan.Cq)
                tensors["p_work"][place] = torch.randint(9, (plan.m * plan.Cq,), generator=draw).to(dtype)
        return memory

    def rows(self, one: Launch, row: type, at: str, programs: int = 1) -> list:
        """The rows of the table that a launch works on, each with so many programs for each part."""
        n = one.programs // (int(one.values["parts"]) * programs)
        found = self.plan.table[one.values["o_listed"] : one.values["o_listed"] + n]
        return [self.row(row, one.values[at], i) for i in found]

    def edges(self, one: Launch, row: PoolRow | StateRow) -> list[tuple[int, EdgeRow]]:
        """The edges that leave a state (of a pool: that pool it), with their numbers."""
        numbers = self.plan.table[row.leaving : row.leaving_end]
        return [(i, self.row(EdgeRow, one.values["o_edges"], i)) for i in numbers]

    def row(self, row: type, at: int, i: int) -> tuple:
        """Row i of those that begin at `at`."""
        size = len(row._fields)
        return row(*self.plan.table[at + i * size : at + (i + 1) * size])

    # ------------------------------------------------------------------------------------------------ memory layout

    def place(self, offset: int, channels: int) -> slice:
        """Numbers of all pixels of a node, from a block of `p_saved` or `p_work` on."""
        return slice(offset * ALIGN, offset * ALIGN + self.plan.m * channels)

    def images(self, flat: Tensor, offset: int, channels: int) -> Tensor:
        """Those as (N, channels, Ho, Wo)."""
        size = self.plan.N, self.plan.Ho, self.plan.Wo, channels
        return flat[self.place(offset, channels)].view(size).permute(0, 3, 1, 2)

    def chosen(self, edge: int) -> Tensor:
        """Which channels pass through an edge."""
        return self.given["p_channels"][edge] if self.call.chosen else torch.arange(self.plan.Cq)

    def state(self, row: UnitRow | PoolRow) -> Tensor:
        """What a unit or pool reads, (N, Cq, H, W)."""
        if row.source >= 0:
            whole = self.given[f"p_inputs{row.source}"].permute(0, 3, 1, 2)
        else:
            whole = self.images(self.given["p_saved"], row.state, self.plan.C)
        return whole[:, self.chosen(row.edge)]

    def xhat(self, x: Tensor, norm: int) -> Tensor:
        mean, scale, shift = self.given["p_norms"][norm].to(x.dtype)[:, None, :, None, None]
        return (x - mean) * scale + shift

    def rectified(self, unit: UnitRow, kind: torch.dtype) -> Tensor:
        """The input of a unit's depthwise convolution, computed at `kind`."""
        if unit.before_y < 0:
            return F.relu(self.state(unit).to(kind))
        return F.relu(self.xhat(self.images(self.given["p_saved"], unit.before_y, self.plan.Cq).to(kind), unit.before_norm))

    def parts(self, one: Launch) -> list[slice]:
        """The pixels of each part."""
        per = int(one.values["per"])
        return [slice(i * per, min(i * per + per, self.plan.m)) for i in range(int(one.values["parts"]))]


def convolve(memory: Memory, unit: UnitRow, kind: torch.dtype, rounded: bool = False) -> Tensor:
    """The y of a unit, (N, Cq, Ho, Wo), computed at `kind`; rounded: each result to the memory's dtype, as op by op."""
    Cq, K = memory.plan.Cq, unit.kernel

    def round_off(x: Tensor) -> Tensor:
        return x.to(memory.dtype).to(kind) if rounded else x

    weights = memory.given["p_weights"].to(kind)
    taps = weights[unit.depthwise :][: Cq * K * K].view(Cq, 1, K, K)
    matrix = weights[unit.pointwise :][: Cq * Cq].view(Cq, Cq, 1, 1)
    x, reach = round_off(memory.rectified(unit, kind)), unit.dilation * (K // 2)
    return round_off(F.conv2d(round_off(F.conv2d(x, taps, None, unit.stride, reach, unit.dilation, Cq)), matrix))


def pools(x: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maximum, its place among the nine, mean and count of 3x3 windows; x (N, C, H, W)."""
    width = x.shape[3]
    best, where = F.max_pool2d(x, 3, stride, 1, return_indices=True)
    rows = torch.arange(best.shape[2]).view(-1, 1) * stride - 1
    columns = torch.arange(best.shape[3]) * stride - 1
    count = F.avg_pool2d(torch.ones_like(x), 3, stride, 1) * 9
    place = (where // width - rows) * 3 + where % width - columns
    return best, place, F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), count


def flat(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N*H*W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def moments(values: Tensor, parts: Sequence[slice]) -> dict[str, Tensor]:
    """Mean and sum of squares about it of (m, C), part by part: (parts, C)."""
    pieces = [values[part] for part in parts]
    squares = [((piece - piece.mean(0)) ** 2).sum(0) for piece in pieces]
    return {"mean": torch.stack([piece.mean(0) for piece in pieces]), "squares": torch.stack(squares)}


def merged(statistics: Tensor, parts: Sequence[slice]) -> dict[str, Tensor]:
    """What a kernel's (parts, 3, C) sums say about those, in float32."""
    pivot, total, squares = statistics.double().unbind(1)
    count = torch.tensor([part.stop - part.start for part in parts], dtype=torch.float64, device=pivot.device)[:, None]
    return {"mean": (pivot + total / count).float(), "squares": (squares - total**2 / count).float()}
