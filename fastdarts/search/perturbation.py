"""Selection by perturbation (DARTS-PT, Wang et al., ICLR 2021): keep what the trained supernet misses most.

One edge after the other, in random order: each candidate is left out of the supernet, and the one whose absence hurts most is
chosen. Then, in DARTS' cells, one node after the other keeps the two inputs that it misses most. The supernet is tuned for some
epochs between two decisions.

Notation: E edges of a cell, K candidates of its longest list.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.optim.randomness import seeded
from fastdarts.protocols import Hooks, Loader, Ranks
from fastdarts.search.bilevel import Bilevel, frozen_buffers
from fastdarts.search.fixed_rows import OPEN, FixedRows
from fastdarts.search.greedy import GreedyEdges
from fastdarts.search.progressive import Stage
from fastdarts.search.relaxation import SoftmaxRelaxation
from fastdarts.search.selection import INPUTS
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights

Weights = dict[Kind, CellWeights]
log = logging.getLogger("fastdarts")


def decisions(space: Space) -> tuple[int, int]:
    """Return how many decisions each kind of cell needs: of operations, and of inputs."""
    return space.num_edges, space.nodes - 1 if space.skeleton == "darts" else 0


def tuning_stage(settings: SearchSettings, space: Space, last: Stage) -> Stage:
    """Return the stage of the decisions, which follows `last`: a decision comes before its epoch."""
    epochs = settings.select_interval * (sum(decisions(space)) - 1) + (space.skeleton == "darts")
    fixed = last.begin >= last.epochs  # alpha never moves, not while tuning either
    rate = settings.select_rate * settings.learning_rate
    return replace(last, epochs=epochs, begin=epochs if fixed else 0, dropout=0.0, rate=rate)


def check_selection(settings: SearchSettings, relaxation: type[SoftmaxRelaxation], needs_labels: bool) -> None:
    """Raise ConfigError if the search cannot be followed by this selection."""
    if settings.select == "argmax":
        return
    if issubclass(relaxation, GreedyEdges):
        raise ConfigError("--select perturbation: SGAS decides every edge while it searches, nothing is left to select")
    for setting, reason in (("early_stop", "it chooses a cell of its own"), ("skip_limit", "it ranks candidates by alpha")):
        if getattr(settings, setting) not in ("off", 0):
            raise ConfigError(f"--select perturbation: leave out --{setting}, {reason}")
    if settings.select_figure == "accuracy" and not needs_labels:
        raise ConfigError("--select_figure accuracy: the objective reads no labels: take loss, or own")


class Perturbation:
    """The decisions of a selection; `facts` are those made before the current epoch, as plain values.

    The order of edges and nodes is a function of settings.seed; the decisions so far are in the FixedRows.
    """

    def __init__(self, settings: SearchSettings, space: Space) -> None:
        self.settings, self.space = settings, space
        self.facts: list[dict[str, Any]] = []
        generator = torch.Generator().manual_seed(settings.seed)
        E, nodes = decisions(space)
        self.orders = {
            kind: (torch.randperm(E, generator=generator).tolist(), (1 + torch.randperm(nodes, generator=generator)).tolist())
            for kind in space.kinds
        }

    def due(self, epoch: int, epochs: int) -> list[int]:
        """Return the numbers of the decisions before an epoch of the stage, which has `epochs`; both count from 0."""
        interval = self.settings.select_interval
        return [n for n in range(sum(decisions(self.space))) if min(interval * n, epochs - 1) == epoch]

    def next(self, rows: FixedRows, epoch: int, epochs: int) -> Iterator[tuple[Kind, int, bool]]:
        """Yield (kind, edge, True) or (kind, node, False) of each decision before an epoch that has not been made yet."""
        for number in self.due(epoch, epochs):
            for kind, (edges, nodes) in self.orders.items():
                decided, K = rows.decided[kind].tolist(), rows.alpha[kind].shape[1]
                if number < len(edges):
                    if decided[edges[number]] == OPEN:
                        yield kind, edges[number], True
                elif K not in [decided[e] for e in self.space.edges_of_node(nodes[number - len(edges)])]:
                    yield kind, nodes[number - len(edges)], False

    def operation(self, scores: "Scores", rows: FixedRows, kind: Kind, edge: int) -> None:
        """Give the edge the candidate whose absence hurts most, of equal ones the first.

        Its weight becomes 0, and nothing else changes: the row is not normalised again. In DARTS' cells, which cannot hold
        none, none is no choice (the released code scores it, and reads the first other candidate out).
        """
        names = self.space.candidates(kind)[edge]
        places = [p for p, name in enumerate(names) if name != "none" or self.space.skeleton != "darts"]
        figures = scores(rows.weights(), [(kind, edge, p) for p in places])
        chosen = places[scores.worst(figures)[0]]
        rows.decided[kind][edge] = chosen
        found = {names[p]: figure for p, figure in zip(places, figures, strict=True)}
        self.facts.append({"kind": kind, "edge": edge, "chosen": names[chosen], scores.name: found})

    def topology(self, scores: "Scores", rows: FixedRows, kind: Kind, node: int) -> None:
        """Keep the node's two edges whose absence hurts most, of equal ones the first; remove the others.

        Each is left out of the same supernet, in one round: as in the released code, where an edge that was dropped in an
        earlier round is still part of what the next round scores.
        """
        edges = self.space.edges_of_node(node)
        figures = scores(rows.weights(), [(kind, edge, None) for edge in edges])
        kept = sorted(scores.worst(figures)[:INPUTS])
        for place, edge in enumerate(edges):
            if place not in kept:
                rows.decided[kind][edge] = rows.alpha[kind].shape[1]
        self.facts.append({"kind": kind, "node": node, "kept": kept, scores.name: dict(enumerate(figures))})


def sentence(facts: dict[str, Any]) -> str:
    """Return a decision as a line: what is kept, and each part's figure without it."""
    of, kept = ("edge", facts["chosen"]) if "edge" in facts else ("node", f"inputs {', '.join(map(str, facts['kept']))}")
    name = next(each for each in ("top1", "loss") if each in facts)
    without = ", ".join(f"{part} {figure:.4f}" for part, figure in facts[name].items())
    return f"{facts['kind']} {of} {facts[of]} keeps {kept}; {name} without {without}"


Left = tuple[Kind, int, int | None]  # kind of cell, edge, candidate; None: the whole edge


class Scores:
    """Figures of a supernet without one part, on the next batches of alpha's images: the same for all parts.

    In training mode, as the released code: batch statistics normalise. Running statistics, loaders' positions in the search's
    state and random generators stay as they are. Means over the images of all ranks.

    name  the figure: "top1", in [0, 1], or "loss"
    """

    def __init__(self, bilevel: Bilevel, loader: Loader, settings: SearchSettings, hooks: Hooks, ranks: Ranks | None) -> None:
        self.bilevel, self.loader, self.hooks, self.ranks = bilevel, loader, hooks, ranks
        self.count = settings.select_batches or len(loader)
        self.name = {"loss": "loss", "accuracy": "top1", "own": "own"}[settings.select_figure]

    def __call__(self, weights: Weights, parts: Sequence[Left]) -> list[float]:
        """Return the figure without each part."""
        supernet, objective = self.bilevel.supernet, self.bilevel.objective
        with torch.no_grad():
            variants = [without(weights, part) for part in parts]
        supernet.train()
        objective.train()
        sums = torch.zeros(len(parts) + 1, dtype=torch.float64, device=self.bilevel.device)  # the last one counts images
        with frozen_buffers(supernet, objective), self.hooks.interruptible(), torch.no_grad():
            for number, batch in enumerate(self.hooks.batches(Taken(self.loader, self.count))):
                batch = batch.to(self.bilevel.device)
                figures = [self._figure(variant, batch, number) for variant in variants]
                sums += torch.stack([*figures, sums.new_ones(())]) * len(batch.index)
        if self.ranks is not None:
            self.ranks.average(sums)
        return (sums[:-1] / sums[-1]).tolist()

    def _figure(self, weights: Weights, batch: Batch, number: int) -> Tensor:
        bilevel = self.bilevel
        with seeded(bilevel.device, number), bilevel.precision.autocast():
            figures = bilevel.objective.evaluate(bilevel.supernet, weights, batch)
        if self.name == "own":
            self.name = "top1" if "top1" in figures else "loss"
        return figures[self.name].double()

    def worst(self, figures: Sequence[float]) -> list[int]:
        """Return the parts' places, the one whose absence hurts most first; of equal ones the earlier."""
        hurt = [math.inf if math.isnan(f) else (-f if self.name == "top1" else f) for f in figures]
        return sorted(range(len(figures)), key=lambda place: (-hurt[place], place))


class Taken:
    """The next `count` batches of an endless loader, as a finite one."""

    def __init__(self, loader: Loader, count: int) -> None:
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return (next(self.loader) for _ in range(self.count))


def without(weights: Weights, part: Left) -> Weights:
    """Return the weights with a candidate's or a whole edge's set to 0."""
    kind, edge, candidate = part
    ops, edges = weights[kind].ops.clone(), weights[kind].edges
    if candidate is not None:
        ops[edge, candidate] = 0
    else:
        ops[edge] = 0
        edges = None if edges is None else edges.index_fill(0, torch.tensor([edge], device=edges.device), 0)
    return weights | {kind: CellWeights(ops, edges)}
