"""The plan of mixed_cell's kernels for a graph and a shape: the list of launches, the table they read, memory.

Notation: N images, C channels of a state, k the divisor of partial channels, Cq = C/k, H W pixels of an input, Ho Wo of a
node, m = N*Ho*Wo, E edges, B BatchNorms. Needs no Triton.

States become ready in waves: the inputs have level 0, a node is one above the highest state that it reads. A launch runs one
stage of a wave for all edges and candidates at once. The table says which ones: rows of int64 on the device, which depend
on the graph and the shape only. Forward, wave by wave: first halves (with the dilated and dense convolutions) and
pools' sums, scale and shift of their BNs, second halves, scale and shift, nodes. Backward, from the last level down: the
pools' gradients and the gradient of a level's nodes, sums over the edges into them, second halves, the BNs between the
halves, first halves; then the inputs and, if needed, all weights. Ranks that share batch statistics exchange sums twice in a
wave, once after a launch for all BNs that are ready.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from math import prod

from fastdarts.kernels.arguments import MixedCell, MixedCellBackward
from fastdarts.kernels.graph import DENSE, DILATED, KERNEL, PLAIN_POOLS, Graph, convolutions, norms
from fastdarts.kernels.mixed_cell_launches import (
    FREE,
    LEARNT,
    SUMMED,
    TAPS,
    Call,
    Launch,
    Memory,
    Needs,
    Split,
    beyond,
    padded,
)
from fastdarts.kernels.rows import (
    ALIGN,
    Candidate,
    EdgeRow,
    Kind,
    NodeRow,
    NormRow,
    PoolRow,
    StateRow,
    SumRow,
    TermRow,
    UnitRow,
)


class MixedCellPlan:
    """The launches of one call and the table that they read.

    saved     size of the forward's saved memory, in numbers: each convolution's y, (m, Cq), the states that edges read, (m, C),
              and, from norms_at on, the factors of each BN's xhat in float32, (B, 3, Cq); from scaled_at on, those of its
              output: the same ones without affine parameters
    parts     of the pixels, for sums
    slots     sums between the halves of separable convolutions
    learnt    rows of the gradients of all weights, one for each part
    work      size of the backward's workspace, in numbers
    """

    def __init__(self, call: Call, needs: Needs | None = None) -> None:
        graph, (N, C, H, W) = call.graph, call.shape
        self.call, self.needs = call, needs
        self.graph, self.N, self.C, self.H, self.W = graph, N, C, H, W
        self.Cq = C // call.partial_channels
        if why := beyond(graph.inputs, self.Cq):
            raise ValueError(f"mixed_cell by Triton: {why}")
        self.Ho, self.Wo = H // graph.stride, W // graph.stride
        self.m = N * self.Ho * self.Wo
        self.table: list[int] = []
        self.launches: list[Launch] = []
        self.units: list[UnitRow] = []
        self.terms: list[list[TermRow]] = [[] for _ in graph.edges]
        self.columns: list[dict[Candidate, tuple[int, int]]] = []  # of each edge: candidate -> its column and BN
        self._saved, self._work = Memory(), Memory()
        self.slots = self.learnt = 0
        self._levels()
        self._lay_out()
        self.norms_at = self._saved.take(2 * 3 * graph.norms * self.Cq) * ALIGN  # space for float32 in any dtype
        self.scaled_at = self._saved.take(2 * 3 * graph.norms * self.Cq) * ALIGN if call.affine else self.norms_at
        self.saved = self._saved.blocks * ALIGN
        self.parts = Split.of(self.m, *SUMMED).parts
        if needs is None:
            self._forward()
        else:
            self._backward(needs)
        self.work = self._work.blocks * ALIGN

    @property
    def constants(self) -> dict[str, int | bool]:
        """Return the compile-time constants of the call that are the same in all launches."""
        call = self.call
        return {
            "C": self.C,
            "CQ": self.Cq,
            "BC": padded(self.Cq),
            "BALL": padded(self.C),
            "NODES": self.graph.nodes,
            "NORMS": self.graph.norms,
            "CHOSEN": call.chosen,
            "BATCH": call.batch,
            "WEIGHTED": int(call.weighted),
            "PER_IMAGE": call.weighted == 2,
            "AFFINE": call.affine,
            "PLAIN_MAX": self._has(Candidate.PLAIN_MAX_POOL_3),
            "LARGEST": self._largest,
        }

    @property
    def _largest(self) -> int:
        """Return the rows of the largest depthwise kernel."""
        return KERNEL[Candidate.SEP_CONV_7] if self._has(Candidate.SEP_CONV_7) else TAPS

    def _has(self, candidate: Candidate) -> bool:
        return any(candidate in edge.candidates for edge in self.graph.edges)

    # ------------------------------------------------------------------------------------------------- the cell

    def _levels(self) -> None:
        graph = self.graph
        self.level = [0] * graph.inputs
        for node in range(graph.nodes):
            self.level.append(1 + max(self.level[e.source] for e in graph.edges if e.node == node))
        self.leaving = [[i for i, e in enumerate(graph.edges) if e.source == s] for s in range(graph.inputs + graph.nodes)]

    def _lay_out(self) -> None:
        """Lay out `saved`, and list the units: those that read a state, edge by edge, then the second halves."""
        graph, size = self.graph, self.m * self.Cq
        # by state: in `saved`, and a node's gradient in the workspace
        self.state = [-1] * graph.inputs
        self.state += [self._saved.take(self.m * self.C) if self.leaving[graph.inputs + j] else -1 for j in range(graph.nodes)]
        self.grad = [-1] * graph.inputs + [self._work.take(self.m * self.C) if self.needs else -1 for _ in range(graph.nodes)]
        weights = norm = 0
        seconds: list[tuple[int, UnitRow]] = []
        self.unit_range: list[tuple[int, int]] = []
        for i, edge in enumerate(graph.edges):
            first = len(self.units)
            columns: dict[Candidate, tuple[int, int]] = {}
            for column, candidate in enumerate(edge.candidates):
                columns[candidate] = (column, norm)
                if convolutions(candidate, edge.stride, self.Cq):
                    y = self._saved.take(size)
                    unit = self._unit(i, candidate, weights, norm, y)
                    if unit.middle:
                        unit = unit._replace(slot=self.slots, grad=self._gradient(i))
                        self.slots += 1
                        second = self._second(unit, self._saved.take(size))
                        seconds.append((column, second))
                        self.terms[i].append(TermRow(second.y, second.norm, column))
                    else:
                        self.terms[i].append(TermRow(y, norm, column))
                    self.units.append(unit)
                weights += sum(map(prod, convolutions(candidate, edge.stride, self.Cq)))
                norm += norms(candidate, edge.stride)
            self.unit_range.append((first, len(self.units)))
            self.columns.append(columns)
        self.seconds = len(self.units)  # index of the first one
        self.units += [unit for _, unit in seconds]
        self.numbers = weights

    def _source(self, state: int) -> tuple[int, int]:
        return (state, 0) if state < self.graph.inputs else (-1, max(self.state[state], 0))

    def _unit(self, i: int, candidate: Candidate, weights: int, norm: int, y: int) -> UnitRow:
        edge = self.graph.edges[i]
        kernel = 0 if candidate in DENSE or candidate == Candidate.SKIP else KERNEL[candidate]
        halves = int(candidate == Candidate.SKIP)
        return UnitRow(
            *self._source(edge.source),
            edge=i,
            stride=edge.stride,
            kernel=kernel,
            dilation=2 if candidate in DILATED else 1,
            taps=0 if kernel else 2 if halves else KERNEL[candidate] ** 2,
            halves=halves,
            depthwise=weights,
            pointwise=weights + self.Cq * kernel**2,
            y=y,
            norm=norm,
            before_y=-1,
            before_norm=-1,
            before_grad=-1,
            grad=self.grad[self.graph.inputs + edge.node],
            middle=int(bool(kernel) and candidate not in DILATED),
            slot=-1,
            dz=self._gradient(i) if kernel else -1,
        )

    def _second(self, first: UnitRow, y: int) -> UnitRow:
        """Return the second half after a first one."""
        depthwise = first.pointwise + self.Cq**2
        return first._replace(
            source=-1,
            state=0,
            stride=1,
            depthwise=depthwise,
            pointwise=depthwise + self.Cq * first.kernel**2,
            y=y,
            norm=first.norm + 1,
            before_y=first.y,
            before_norm=first.norm,
            before_grad=first.grad,
            grad=self.grad[self.graph.inputs + self.graph.edges[first.edge].node],
            middle=0,
            dz=self._gradient(first.edge),
        )

    def _gradient(self, edge: int) -> int:
        """Allocate workspace for a gradient of (m, Cq), if one flows through the edge."""
        return self._work.take(self.m * self.Cq) if self.needs and self._works(edge) else -1

    def _works(self, edge: int) -> bool:
        """Return whether a backward passes through an edge's convolutions."""
        return self.graph.edges[edge].source >= self.graph.inputs or bool(
            self.needs and (self.needs.inputs or self.needs.weights)
        )

    @cached_property
    def _pools(self) -> list[list[int]]:
        """Return groups of edges whose 3x3 pools read the same channels of the same state."""
        pooled = [[i for i in leaving if self._pooled(i)] for leaving in self.leaving]
        return [[i] for edges in pooled for i in edges] if self.call.chosen else [edges for edges in pooled if edges]

    def _pooled(self, edge: int) -> bool:
        return any(c in self.columns[edge] for c in (Candidate.MAX_POOL_3, Candidate.AVG_POOL_3, *PLAIN_POOLS))

    def _pool_norms(self, edges: Iterable[int], candidate: Candidate) -> list[int]:
        return [self.columns[i][candidate][1] for i in edges if candidate in self.columns[i]]

    # ------------------------------------------------------------------------------------------------ the table

    def _add(self, numbers: Iterable[int]) -> int:
        """Append to the table; returns the offset."""
        begin = len(self.table)
        self.table.extend(numbers)
        return begin

    def _rows(self, rows: Iterable[tuple[int, ...]]) -> int:
        return self._add(number for row in rows for number in row)

    def _add_plain_max(self) -> int:
        """Append the column of each edge's maximum without BN, if any edge has one: not in EdgeRow, which CUDA reads, too."""
        columns = (of_edge.get(Candidate.PLAIN_MAX_POOL_3, (-1, -1))[0] for of_edge in self.columns)
        return self._add(columns if self._has(Candidate.PLAIN_MAX_POOL_3) else ())

    def _launch(
        self,
        kernel: str,
        listed: Sequence[int],
        programs: int,
        values: dict[str, int | bool],
        cost: tuple[int, int],
        exchanged: Sequence[int] = (),
    ) -> None:
        """Append a launch for the listed rows, if any: `programs` for each. cost: numbers and operations."""
        if listed:
            values = {"o_listed": self._add(listed), **values}
            begin = self._add(exchanged if self.call.shared else ())
            self.launches.append(Launch(kernel, programs * len(listed), values, *cost, range(begin, len(self.table))))

    def _pool_rows(self) -> list[PoolRow]:
        rows = []
        for edges in self._pools:
            edge = self.graph.edges[edges[0]]
            highest, average = (self._pool_norms(edges, c) for c in (Candidate.MAX_POOL_3, Candidate.AVG_POOL_3))
            begin = self._add(edges)
            size = self.m * self.Cq if self.needs and self._pulled(edge.source) else 0
            workspace = [self._work.take(size) for _ in range(3)]
            slots = [found[0] if found else -1 for found in (highest, average)]
            rows.append(
                PoolRow(*self._source(edge.source), edges[0], edge.stride, *slots, begin, begin + len(edges), *workspace)
            )
        return rows

    def _pulled(self, state: int) -> bool:
        """Return whether a backward computes the state's gradient."""
        return state >= self.graph.inputs or bool(self.needs and self.needs.inputs)

    def _edge_rows(self, sums: Sequence[Sequence[SumRow]]) -> tuple[list[EdgeRow], list[TermRow]]:
        rows, terms, summed = [], [], 0
        carriers = {edges[-1]: i for i, edges in enumerate(self._pools)}
        for i, edge in enumerate(self.graph.edges):
            column = {c: self.columns[i].get(c, (-1, -1)) for c in Candidate}
            begin = len(terms)
            terms += self.terms[i]
            rows.append(
                EdgeRow(
                    *self._source(edge.source),
                    edge.stride,
                    begin,
                    len(terms),
                    *column[Candidate.MAX_POOL_3],
                    *column[Candidate.AVG_POOL_3],
                    column[Candidate.PLAIN_AVG_POOL_3][0],
                    column[Candidate.SKIP][0] if edge.stride == 1 else -1,
                    *self.unit_range[i],
                    self.grad[self.graph.inputs + edge.node],
                    carriers.get(i, -1),
                    summed,
                    summed + len(sums[i]),
                )
            )
            summed += len(sums[i])
        return rows, terms

    # -------------------------------------------------------------------------------------------------- forward

    def _forward(self) -> None:
        graph, call = self.graph, self.call
        pool_rows = self._pool_rows()
        edges, terms = self._edge_rows([[] for _ in graph.edges])
        shared = {
            n: row.max_slot for row, es in self._with_pools(pool_rows) for n in self._pool_norms(es, Candidate.MAX_POOL_3)
        }
        shared |= {
            n: row.avg_slot for row, es in self._with_pools(pool_rows) for n in self._pool_norms(es, Candidate.AVG_POOL_3)
        }
        into = [[i for i, e in enumerate(graph.edges) if e.node == j] for j in range(graph.nodes)]
        nodes = [NodeRow(j, self.state[graph.inputs + j], es[0], es[-1] + 1) for j, es in enumerate(into)]
        norm_rows = [NormRow(n, shared.get(n, n)) for n in range(graph.norms)]
        at: dict[str, int | bool] = {
            "o_units": self._rows(self.units),
            "o_edges": self._rows(edges),
            "o_terms": self._rows(terms),
            "o_plain_max": self._add_plain_max(),
            "o_nodes": self._rows(nodes),
            "o_pools": self._rows(pool_rows),
            "o_norms": self._rows(norm_rows),
        }
        summed = at | Split.of(self.m, *SUMMED).values()
        free = at | Split.of(self.m, *FREE).values()
        if call.chosen:
            self.launches.append(Launch("channel_inverse", len(graph.edges)))
        if not call.batch:
            self._bn_scale_shift(range(graph.norms), summed)
        for level in range(max(self.level)):
            units = [i for i in range(self.seconds) if self.level[graph.edges[self.units[i].edge].source] == level]
            first, dense = ([i for i in units if bool(self.units[i].kernel) == wanted] for wanted in (True, False))
            second = [i for i in range(self.seconds, len(self.units)) if self._level_of(i) == level]
            self._convolve("separable", first, summed | {"SECOND": False})
            self._convolve("dense", dense, summed)
            if call.batch:
                ready = [self.units[i].norm for i in units]
                ready += [n for n in shared if self._source_level_of_pool(n) == level]
                self._pool_sums(pool_rows, level, summed)
                self._bn_scale_shift(ready, summed)
            self._convolve("separable", second, summed | {"SECOND": True})
            if call.batch:
                self._bn_scale_shift([self.units[i].norm for i in second], summed)
            self._nodes(nodes, level + 1, free)

    def _with_pools(self, rows: Sequence[PoolRow]) -> Iterable[tuple[PoolRow, list[int]]]:
        return zip(rows, self._pools, strict=True)

    def _level_of(self, unit: int) -> int:
        return self.level[self.graph.edges[self.units[unit].edge].source]

    def _source_level_of_pool(self, norm: int) -> int:
        """Return the level of the state whose pool has this BN."""
        pools = Candidate.MAX_POOL_3, Candidate.AVG_POOL_3
        (edge,) = (i for i, c in enumerate(self.columns) if any(c.get(p, (0, -1))[1] == norm for p in pools))
        return self.level[self.graph.edges[edge].source]

    def _reads(self, unit: UnitRow) -> int:
        """Return the number of pixels of a unit's input."""
        return self.N * self.H * self.W if unit.source >= 0 else self.m

    def _products(self, unit: UnitRow) -> int:
        """Return the operations of a unit's convolutions."""
        return 2 * self.m * self.Cq * (unit.kernel**2 + self.Cq * (1 if unit.kernel or unit.halves else unit.taps))

    def _convolve(self, kernel: str, listed: Sequence[int], values: dict[str, int | bool]) -> None:
        units = [self.units[i] for i in listed]
        numbers = sum(self._reads(u) + self.m for u in units) * self.Cq
        self._launch(kernel, listed, int(values["parts"]), values, (numbers, sum(map(self._products, units))))

    def _pool_sums(self, rows: Sequence[PoolRow], level: int, values: dict[str, int | bool]) -> None:
        listed = [
            i
            for i, (row, edges) in enumerate(self._with_pools(rows))
            if self.level[self.graph.edges[edges[0]].source] == level and max(row.max_slot, row.avg_slot) >= 0
        ]
        numbers = sum(self._pixels(rows[i].source) for i in listed) * self.Cq
        self._launch("pool_sums", listed, int(values["parts"]), values, (numbers, 26 * len(listed) * self.m * self.Cq))

    def _pixels(self, source: int) -> int:
        return self.N * self.H * self.W if source >= 0 else self.m

    def _bn_scale_shift(self, listed: Sequence[int], values: dict[str, int | bool]) -> None:
        """Launch scale and shift of the listed BNs; if ranks share statistics, from the rank's own, then from all."""
        self._launch("bn_scale_shift", listed, 1, values, (0, 0), listed)
        if self.call.shared:
            self._launch("bn_scale_shift", listed, 1, values | {"BATCH": False}, (0, 0))

    def _nodes(self, nodes: Sequence[NodeRow], level: int, values: dict[str, int | bool]) -> None:
        listed = [j for j in range(len(nodes)) if self.level[self.graph.inputs + j] == level]
        edges = [i for j in listed for i in range(nodes[j].edges, nodes[j].edges_end)]
        terms = sum(len(self.terms[i]) for i in edges)
        read = sum(self._pixels(self._source(self.graph.edges[i].source)[0]) for i in edges)
        written = sum(1 + (nodes[j].state >= 0) for j in listed)
        numbers = (terms * self.Cq + written * self.C) * self.m + read * self.C
        values = values | {"TILES": self._tiles}
        operations = 4 * terms * self.m * self.Cq + 26 * sum(map(self._pooled, edges)) * self.m * self.Cq
        self._launch("node", listed, int(values["parts"]) * self._tiles, values, (numbers, operations))

    @property
    def _tiles(self) -> int:
        """Return the number of tiles of channels in `node` and `state_gradient`."""
        return -(-self.C // padded(self.Cq)) if self.call.chosen else self.call.partial_channels

    # ------------------------------------------------------------------------------------------------- backward

    def _sum_rows(self, needs: Needs) -> list[list[SumRow]]:
        """Return the sums of each edge: for BNs and, if needed, for the weights of candidates and edges."""
        rows = []
        for i, edge in enumerate(self.graph.edges):
            columns = self.columns[i]
            row = [SumRow(i, Kind.Y, t.column, t.y, t.norm) for t in self.terms[i]]
            pools = {Candidate.MAX_POOL_3: Kind.MAX, Candidate.AVG_POOL_3: Kind.AVG}
            row += [SumRow(i, kind, columns[c][0], 0, columns[c][1]) for c, kind in pools.items() if c in columns]
            if needs.ops:
                plain = {Candidate.PLAIN_AVG_POOL_3: Kind.AVG, Candidate.PLAIN_MAX_POOL_3: Kind.MAX}
                plain |= {Candidate.SKIP: Kind.SKIP} if edge.stride == 1 else {}
                row += [SumRow(i, kind, columns[c][0], 0, -1) for c, kind in plain.items() if c in columns]
                by = self.call.weighted == 1 and self.call.partial_channels > 1
                row += [SumRow(i, Kind.BYPASS, -1, 0, -1)] if by else []
            rows.append(row)
        return rows

    def _backward(self, needs: Needs) -> None:
        graph, call = self.graph, self.call
        self.sums = self._sum_rows(needs)
        pool_rows = self._pool_rows()
        edges, _ = self._edge_rows(self.sums)
        states = []
        for s, leaving in enumerate(self.leaving):
            begin = self._add(leaving)
            node = s - graph.inputs if s >= graph.inputs else -1
            states.append(StateRow(*self._source(s), node, max(self.grad[s], 0), begin, begin + len(leaving)))
        at: dict[str, int | bool] = {
            "o_units": self._rows(self.units),
            "o_edges": self._rows(edges),
            "o_plain_max": self._add_plain_max(),
            "o_sums": self._rows(row for rows in self.sums for row in rows),
            "o_states": self._rows(states),
            "o_pools": self._rows(pool_rows),
        }
        self.learns_affine = call.affine and needs.weights
        self.summed = call.batch or needs.ops or self.learns_affine
        summed, learnt = (Split.of(self.m, *limits) for limits in (SUMMED, LEARNT))
        at |= {"middle_parts": self.parts, "sum_parts": self.parts}
        if call.chosen:
            self.launches.append(Launch("channel_inverse", len(graph.edges)))
        for level in range(max(self.level), 0, -1):
            nodes = [s for s in range(graph.inputs, graph.inputs + graph.nodes) if self.level[s] == level]
            self._pull(states, pool_rows, nodes, at)
            self._through([s - graph.inputs for s in nodes], at, summed)
        if needs.inputs:
            self._pull(states, pool_rows, range(graph.inputs), at)
        if needs.weights and self.numbers:
            self._learn(at | learnt.values(), learnt.parts)

    def _pull(
        self, rows: Sequence[StateRow], pools: Sequence[PoolRow], states: Sequence[int], at: dict[str, int | bool]
    ) -> None:
        """Launch the gradients of states."""
        free = Split.of(self.m, *FREE)
        listed = [i for i, edges in enumerate(self._pools) if self.graph.edges[edges[0]].source in states]
        edges = [i for pool in listed for i in self._pools[pool]]
        numbers = (sum(self._pixels(pools[i].source) for i in listed) + (len(edges) + 3 * len(listed)) * self.m) * self.Cq
        operations = (26 * len(listed) + 10 * len(edges)) * self.m * self.Cq
        self._launch("pool_gradient", listed, free.parts, at | free.values(), (numbers, operations))
        pixels = self._pixels(rows[states[0]].source)
        free = Split.of(pixels, *FREE)
        leaving = [i for s in states for i in self.leaving[s]]
        units = [self.units[u] for i in leaving for u in range(*self.unit_range[i])]
        dense = any(not u.kernel for u in units)
        read = [3 * any(self.graph.edges[e[0]].source == s for e in self._pools) for s in states]
        numbers = (
            (len(units) + sum(read)) * self.m * self.Cq + len(leaving) * self.m * self.C + 3 * len(states) * pixels * self.C
        )
        operations = sum(2 * self.m * self.Cq * (u.kernel**2 or self.Cq * (1 if u.halves else u.taps)) for u in units)
        values = at | free.values() | {"pixels": pixels, "TILES": self._tiles, "DENSE": dense}
        self._launch("state_gradient", list(states), free.parts * self._tiles, values, (numbers, operations))

    def _through(self, nodes: Sequence[int], at: dict[str, int | bool], split: Split) -> None:
        """Launch the backward through the edges into nodes whose gradients are complete."""
        edges = [i for i, e in enumerate(self.graph.edges) if e.node in nodes]
        begins = [sum(map(len, self.sums[:i])) for i in range(len(self.sums))]
        listed = [begins[i] + j for i in edges for j in range(len(self.sums[i]))]
        size = self.m * self.Cq
        if self.summed:
            self._launch(
                "grad_sums",
                listed,
                split.parts,
                at | split.values(),
                ((len(listed) + len(edges)) * size, 6 * len(listed) * size),
            )
        mixed = {"SUMMED": self.summed, "NEED_OPS": bool(self.needs and self.needs.ops), "NEED_AFFINE": self.learns_affine}
        norms = [row.norm for i in edges if self._works(i) for row in self.sums[i] if row.norm >= 0]
        self._launch("mix_weights", edges, 1, at | mixed, (0, 0), norms)
        units = [i for i, u in enumerate(self.units) if u.edge in edges and u.kernel and self._works(u.edge)]
        first, second = ([i for i in units if (i >= self.seconds) == wanted] for wanted in (False, True))
        free = Split.of(self.m, *FREE)
        for some in (second, first):
            cost = 3 * len(some) * size, 2 * len(some) * size * self.Cq
            self._launch("product", some, free.parts, at | free.values(), cost)
            if some is second:
                cost = 3 * len(some) * size, sum(2 * size * self.units[i].kernel ** 2 for i in some)
                slots = [self.units[i].slot for i in some]
                middles = at | split.values() | {"SUMMED": self.call.batch or self.learns_affine}
                self._launch("bn_backward_inner", some, split.parts, middles, cost, () if self.learns_affine else slots)
                if self.learns_affine:  # from the rank's own sums
                    self._launch("affine_gradient", some, 1, at, (0, 0), slots)

    def _learn(self, values: dict[str, int | bool], parts: int) -> None:
        """Launch the gradients of all weights."""
        size, self.learnt = self.m * self.Cq, parts
        separable = [i for i, u in enumerate(self.units) if u.kernel]
        for second in (False, True):
            listed = [i for i in separable if (i >= self.seconds) == second]
            units = [self.units[i] for i in listed]
            numbers, operations = sum(self._reads(u) for u in units) * self.Cq, sum(map(self._products, units))
            halves = values | {"SECOND": second}
            self._launch("matrix_gradient", listed, parts, halves, (numbers + 2 * len(units) * size, operations))
            taps = sum(2 * size * u.kernel**2 for u in units)
            self._launch("tap_gradient", listed, parts * self._largest, halves, (numbers + len(units) * size, taps))
        listed = [i for i, u in enumerate(self.units) if not u.kernel]
        units = [self.units[i] for i in listed]
        if units:
            taps = max(u.taps for u in units)
            cost = sum(self._reads(u) * self.Cq + 2 * size for u in units), sum(map(self._products, units))
            self._launch("dense_gradient", listed, parts * taps, values | {"most_taps": taps}, cost)
        self.launches.append(Launch("reduce_parts", -1, {"parts": parts}, self.numbers, parts * self.numbers))


def launch_plan(call: Call, needs: Needs | None = None) -> list[Launch]:
    """Return the launches of a call's forward, or of the backward for `needs`, in order, as the op executes them."""
    return MixedCellPlan(call, needs).launches


Flags = tuple[bool, bool, int, bool, bool]  # of Call: chosen, batch, weighted, shared, affine


def flags_of(a: MixedCell | MixedCellBackward, batch: bool, shared: bool) -> Flags:
    """Return what the launches of a registered call depend on, besides graph, shape and partial channels."""
    return a.channels is not None, batch, 0 if a.edges is None else a.edges.dim(), batch and shared, a.affine is not None


@lru_cache(maxsize=1024)
def saved_numbers(code: tuple[int, ...], shape: tuple[int, int, int, int], partial_channels: int, affine: bool = False) -> int:
    """Return the size of a forward's saved memory, in numbers; `code` is an encoded graph."""
    return MixedCellPlan(Call(Graph.decode(code), shape, partial_channels, affine=affine)).saved


@lru_cache(maxsize=1024)
def work_numbers(
    code: tuple[int, ...],
    shape: tuple[int, int, int, int],
    partial_channels: int,
    flags: Flags,
    needs: tuple[bool, bool, bool],
) -> int:
    """Return the size of a backward's workspace, in numbers; flags and needs as of Call and Needs."""
    return MixedCellPlan(Call(Graph.decode(code), shape, partial_channels, *flags), Needs(*needs)).work
