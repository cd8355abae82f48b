"""SGAS (Li et al., CVPR 2020): decide edges one by one while the search goes on.

Notation: E edges of a cell, K candidates of its longest list, P = softmax(alpha), p an edge's P without none, normalised.
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from fastdarts.ops.philox import Stream
from fastdarts.search.fixed_rows import OPEN, decided_rows, kept_of
from fastdarts.search.relaxation import Kept, Options, SoftmaxRelaxation
from fastdarts.search.selection import INPUTS
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import Kind, Space
from fastdarts.supernet import CellWeights

WINDOW = 4  # epochs whose p are kept
PUBLISHED = 50, 9, 5  # epochs of the search, those before the first decision, those between two decisions


class GreedyEdges(SoftmaxRelaxation):
    """SGAS, criterion 1: importance * certainty, each scaled to [0, 1] over all edges of the kind of cell.

    After every `interval`-th epoch the open edge of highest score becomes its best candidate besides none, with weight 1. A
    node with two such edges loses its others, whose weights become 0. Decided and lost edges keep their alpha exactly; it
    still takes part in the scaling.
    """

    stable = False  # multiply by stability too

    def __init__(self, space: Space, *, decisions: tuple[int, ...] = (), **options: Unpack[Options]) -> None:
        """decisions: the epochs, from 1, after which an edge of each kind is decided."""
        super().__init__(space, **options)
        self.decisions = decisions
        self.real: dict[Kind, Tensor] = {}  # bool (E, K): candidates besides none
        self.decided: dict[Kind, Tensor] = {}  # int64 (E,): a candidate, OPEN, or K of a lost edge
        self.frozen: dict[Kind, Tensor] = {}  # (E, K): alpha of edges that are not open
        self.history: dict[Kind, Tensor] = {}  # (WINDOW, E, K): p after the last epochs, the newest first
        for kind, alpha in self.alpha.items():
            none = [
                [name == "none" for name in names] + [True] * (alpha.shape[1] - len(names)) for names in space.candidates(kind)
            ]
            self.real[kind] = ~torch.tensor(none, device=alpha.device)
            self.decided[kind] = torch.full((len(alpha),), OPEN, device=alpha.device)
            self.frozen[kind] = alpha.detach().clone()
            self.history[kind] = alpha.new_zeros(WINDOW, *alpha.shape)
        self.seen = torch.zeros((), dtype=torch.int64)  # epochs in history

    @classmethod
    def own_options(cls, space: Space, settings: SearchSettings) -> dict[str, Any]:
        return {"decisions": decision_epochs(settings, space)}

    @classmethod
    def check(cls, space: Space, settings: SearchSettings) -> None:
        if space.skeleton != "darts":
            raise ConfigError(f"SGAS decides two inputs of each node, but a cell of space {space.name} keeps all its edges")
        for kind in space.kinds:
            for edge, names in enumerate(space.candidates(kind)):
                if "none" not in names or len(names) < 3:
                    needs = "SGAS compares none with at least two other candidates"
                    raise ConfigError(f"space {space.name}, {kind} edge {edge} has {', '.join(names)}: {needs}")
        for setting in ("edge_normalization", "progressive"):
            if getattr(settings, setting):
                raise ConfigError(f"--{setting}: SGAS decides edges by alpha alone, in one stage: leave it out")

    @classmethod
    def plan(cls, space: Space, settings: SearchSettings) -> list[str]:
        epochs, wanted = decision_epochs(settings, space), INPUTS * space.nodes
        found = f"{len(epochs)} of {wanted} edges of each kind of cell are decided"
        if len(epochs) == wanted:
            return [f"{found}, after epochs {', '.join(map(str, epochs))}"]
        return [f"warning: only {found} in {settings.epochs} epochs, alpha chooses the rest: use more --epochs"]

    def weights(self, stream: Stream = Stream.EVAL) -> dict[Kind, CellWeights]:
        return {kind: CellWeights(decided_rows(self._ops(kind), self.decided[kind])) for kind in self.alpha}

    def kept(self) -> Kept | None:
        return kept_of(self.space, self.decided)

    @torch.no_grad()
    def alpha_stepped(self) -> None:
        for kind, alpha in self.alpha.items():
            alpha.copy_(torch.where(self.decided[kind][:, None] == OPEN, alpha, self.frozen[kind]))

    @torch.no_grad()
    def epoch_ended(self, epoch: int) -> None:
        for kind in self.alpha:
            P = self._ops(kind).double()
            p = P.masked_fill(~self.real[kind], 0)
            p = p / p.sum(1, keepdim=True)
            if epoch in self.decisions:
                self._decide(kind, self.scores(kind, P, p), p)
            self.history[kind].copy_(torch.cat([p[None].to(self.history[kind]), self.history[kind][:-1]]))
        self.seen.add_(1).clamp_(max=WINDOW)

    def scores(self, kind: Kind, P: Tensor, p: Tensor) -> Tensor:
        """Return the criterion of each edge, float64 (E,); P, p float64 (E, K)."""
        importance = P.masked_fill(~self.real[kind], 0).sum(1)
        certainty = 1 - torch.special.entr(p).sum(1) / self.real[kind].sum(1).double().log()
        score = scaled(importance) * scaled(certainty)
        if not self.stable:
            return score
        common = torch.minimum(self.history[kind][: int(self.seen)].double(), p).sum(2)  # (epochs, E)
        return score * scaled(common.sum(0) / max(int(self.seen), 1))

    def _decide(self, kind: Kind, scores: Tensor, p: Tensor) -> None:
        """Decide the best open edge, and drop the others of a node that is complete."""
        decided = self.decided[kind]
        open_edges = decided == OPEN
        if not open_edges.any():
            return
        edge = int(scores.masked_fill(~open_edges, -torch.inf).argmax())
        decided[edge] = p[edge].argmax()
        for node in map(self.space.edges_of_node, range(self.space.nodes)):
            own = decided[node.start : node.stop]
            if int(((own != OPEN) & (own != p.shape[1])).sum()) == INPUTS:
                own[own == OPEN] = p.shape[1]
        new = (open_edges & (decided != OPEN))[:, None]
        self.frozen[kind].copy_(torch.where(new, self.alpha[kind], self.frozen[kind]))

    def state_dict(self) -> dict[str, Any]:
        """Return alpha, and by kind of cell the decisions, their alpha and the history."""
        own = {name: {kind: t.clone() for kind, t in tensors.items()} for name, tensors in self._state().items()}
        return super().state_dict() | own | {"seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, tensors in self._state().items():
            for kind, tensor in tensors.items():
                tensor.copy_(state[name][kind])
        self.seen.copy_(state["seen"])

    def _state(self) -> dict[str, dict[Kind, Tensor]]:
        return {"decided": self.decided, "frozen": self.frozen, "history": self.history}


class StableGreedyEdges(GreedyEdges):
    """SGAS, criterion 2: criterion 1 * stability, the mean overlap of an edge's p with its p after each of the last epochs.

    The overlap of two p is the sum of their smaller numbers. A decision sees the epochs before its own.
    """

    stable = True


def scaled(values: Tensor) -> Tensor:
    """Scale to [0, 1]; zeros if all values are equal."""
    least, most = values.min(), values.max()
    return torch.where(most > least, (values - least) / (most - least), 0.0)


def decision_epochs(settings: SearchSettings, space: Space) -> tuple[int, ...]:
    """Return the epochs, from 1, after which SGAS decides an edge of each kind of cell."""
    epochs, first, between = PUBLISHED
    warmup = settings.epochs * first // epochs if settings.sgas_warmup < 0 else settings.sgas_warmup
    interval = settings.sgas_interval or max(1, settings.epochs * between // epochs)
    wanted = (warmup + 1 + interval * n for n in range(INPUTS * space.nodes))
    return tuple(epoch for epoch in wanted if settings.begin < epoch <= settings.epochs)
