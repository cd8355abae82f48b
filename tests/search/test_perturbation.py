"""Selection by perturbation: decision epochs and figures by hand, fixed rows, and a selection that is continued."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.kernels.graph import Candidate
from fastdarts.ops.philox import Stream
from fastdarts.search import METHODS, Hooks, Search, SoftmaxRelaxation
from fastdarts.search.fixed_rows import OPEN, FixedRows
from fastdarts.search.greedy import GreedyEdges
from fastdarts.search.perturbation import Perturbation, Scores, check_selection, sentence, tuning_stage
from fastdarts.search.progressive import Stage
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import NASBENCH201, S5, Architecture, Space
from fastdarts.spaces.genotype import Genotype
from fastdarts.supernet import NASBench201Supernet, Supernet
from tests.search.test_bilevel import FEW, Pair, batch
from tests.search.test_progressive import Loader, masked, settings, timeless
from tests.support import naive
from tests.support.naive import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Space.uniform("small", ("none", "max_pool_3x3", "dil_conv_3x3"), nodes=2)  # five edges, one node of three inputs
PT = {"progressive": False, "epochs": 1, "begin": 0, "select": "perturbation", "select_interval": 1}


@pytest.mark.parametrize(
    ("space", "epochs", "at"),
    [(S5, 81, [*range(0, 66, 5), 70, 75, 80]), (NASBENCH201, 25, [0, 5, 10, 15, 20, 24])],
    ids=["darts", "nasbench201"],
)
def test_published_decision_epochs(space: Space, epochs: int, at: list[int]) -> None:
    s = SearchSettings(epochs=50, begin=0, learning_rate=0.025)
    stage, selection = tuning_stage(s, space, Stage(50, 0, 8)), Perturbation(s, space)
    assert (stage.epochs, stage.begin, stage.layers) == (epochs, 0, 8) and stage.rate == pytest.approx(0.0025)
    assert [epoch for epoch in range(epochs) for _ in selection.due(epoch, epochs)] == at
    for edges, nodes in selection.orders.values():
        assert sorted(edges) == list(range(space.num_edges)) and sorted(nodes) == ([1, 2, 3] if space is S5 else [])


def test_fixed_rows_have_no_gradient() -> None:
    """One-hot rows and removed edges; with partial channels the removed edge has weight 0 as a whole."""
    plain = SoftmaxRelaxation(SMALL, edge_normalization=False, dtype=torch.float64)
    rows = FixedRows(plain, partial=True)
    rows.decided["normal"].copy_(torch.tensor([OPEN, 2, OPEN, 3, OPEN]))
    ops, edges = rows.weights(Stream.VAL)["normal"]
    assert ops[1].tolist() == [0, 0, 1] and ops[3].tolist() == [0, 0, 0]
    assert edges is not None and edges.tolist() == [1, 1, 1, 0, 1]
    assert torch.equal(ops[[0, 2, 4]], plain.weights()["normal"].ops[[0, 2, 4]])
    (ops * torch.randn(5, 3, dtype=torch.float64)).sum().backward()
    grad = plain.alpha["normal"].grad
    assert grad[[1, 3]].count_nonzero() == 0 and grad[[0, 2, 4]].count_nonzero() == 9
    again = FixedRows(SoftmaxRelaxation(SMALL, edge_normalization=False, seed=1, dtype=torch.float64), partial=True)
    again.load_state_dict(rows.state_dict())
    assert torch.equal(again.weights()["normal"].ops, ops)
    assert FixedRows(plain, partial=False).weights()["normal"].edges is None


class Given:
    """An endless loader of these two batches."""

    def __init__(self) -> None:
        self.given = 0

    def __len__(self) -> int:
        return 2

    def __next__(self) -> Batch:
        self.given += 1
        return batch(self.given % 2, count=4 - self.given % 2)


@pytest.mark.parametrize("figure", ["loss", "accuracy", "own"])
def test_figures_match_formulas(figure: str) -> None:
    """Of each candidate's and each edge's absence: the row is not normalised again, batch statistics normalise."""
    pair, loader = Pair("supervised", FEW, k=1), Given()
    rows = FixedRows(pair.relaxation, partial=False)
    rows.decided["normal"][4] = 3
    before, drawn = deepcopy(pair.supernet.state_dict()), torch.get_rng_state()
    s = SearchSettings(select_figure=figure, select_batches=2)
    scores = Scores(pair.bilevel, loader, s, Hooks(), None)
    parts = [("normal", 7, 2), ("normal", 7, 3), ("reduce", 3, None)]
    got = scores(rows.weights(), parts)
    for (kind, edge, candidate), value in zip(parts, got, strict=True):
        mix = {k: w.ops.detach().clone() for k, w in rows.weights().items()}
        mix[kind][edge] = 0 if candidate is None else mix[kind][edge].index_fill(0, torch.tensor(candidate), 0)
        figures = []
        for number in (1, 2):
            b = batch(number % 2, count=4 - number % 2)
            x = naive.normalised(b.images, pair.objective.mean, pair.objective.std, b.flip.tolist())
            feature = naive.Run(pair.theta, pair.stats).network(pair.net, x, mix, None)[-1]
            logits = naive.head(feature, pair.theta["classifier.weight"], pair.theta["classifier.bias"])
            loss, right = naive.cross_entropy(logits, b.labels), (logits.argmax(1) == b.labels).double().mean()
            figures += [loss if figure == "loss" else right] * len(b.index)
        assert_close(torch.tensor(value, dtype=torch.float64), torch.stack(figures).mean().detach())
    assert scores.name == ("loss" if figure == "loss" else "top1") and loader.given == 2
    assert all(torch.equal(t, before[n]) for n, t in pair.supernet.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


class Told:
    """Figures as told, in place of Scores."""

    worst = Scores.worst

    def __init__(self, name: str, *figures: float) -> None:
        self.name, self.figures, self.asked = name, list(figures), []

    def __call__(self, weights: Any, parts: list[Any]) -> list[float]:
        self.asked = parts
        return self.figures


def test_worst_absence_decides() -> None:
    """Lowest accuracy or highest loss, of equals the first; losses that are no number hurt most."""
    assert Told("top1").worst([0.5, 0.25, 0.75, 0.25]) == [1, 3, 0, 2]
    assert Told("loss").worst([0.5, 0.25, math.nan, 0.75, 0.75]) == [2, 3, 4, 0, 1]
    selection = Perturbation(SearchSettings(), SMALL)
    rows = FixedRows(SoftmaxRelaxation(SMALL, edge_normalization=False), partial=False)
    told = Told("top1", 0.5, 0.25)
    selection.operation(told, rows, "normal", 3)
    assert told.asked == [("normal", 3, 1), ("normal", 3, 2)]  # none is no choice
    assert rows.decided["normal"].tolist() == [OPEN, OPEN, OPEN, 2, OPEN]
    told = Told("loss", 0.5, 0.75, 0.5)
    selection.topology(told, rows, "reduce", 1)
    assert told.asked == [("reduce", edge, None) for edge in (2, 3, 4)]
    assert rows.decided["reduce"].tolist() == [OPEN, OPEN, OPEN, OPEN, 3]
    assert selection.facts == [
        {"kind": "normal", "edge": 3, "chosen": "dil_conv_3x3", "top1": {"max_pool_3x3": 0.5, "dil_conv_3x3": 0.25}},
        {"kind": "reduce", "node": 1, "kept": [0, 1], "loss": {0: 0.5, 1: 0.75, 2: 0.5}},
    ]
    assert list(map(sentence, selection.facts)) == [
        "normal edge 3 keeps dil_conv_3x3; top1 without max_pool_3x3 0.5000, dil_conv_3x3 0.2500",
        "reduce node 1 keeps inputs 0, 1; loss without 0 0.5000, 1 0.7500, 2 0.5000",
    ]


def make(method: str = "darts-1st", space: Space = SMALL, **changes: Any) -> Search:
    torch.manual_seed(0)
    supernet = NASBench201Supernet(space, C=4, cells_per_stage=1) if space is NASBENCH201 else Supernet(space, C=4, layers=3)
    return Search(supernet, masked(supernet), Loader(0), Loader(1), settings(**PT | changes), method=METHODS[method])


def test_cell_consists_of_decisions() -> None:
    search = make()
    records = list(search.epochs())
    made = [(d["kind"], "edge" in d) for r in records for d in r.get("decisions", [])]
    assert len(records) == 1 + 6 and made == [("normal", True), ("reduce", True)] * 5 + [("normal", False), ("reduce", False)]
    assert [r["lr"] for r in records[1:]] == pytest.approx([0.005] * 6)
    assert all(r["alpha_loss"] is not None for r in records)
    cell = search.result()
    assert isinstance(cell, Genotype)
    for kind in ("normal", "reduce"):
        facts = [d for r in records[1:] for d in r["decisions"] if d["kind"] == kind]
        chosen = {d["edge"]: d["chosen"] for d in facts if "edge" in d}
        (kept,) = [d["kept"] for d in facts if "node" in d]
        assert list(cell.genes(kind))[:2] == [(chosen[0], 2, 0), (chosen[1], 2, 1)]
        assert list(cell.genes(kind))[2:] == [(chosen[2 + state], 3, state) for state in kept]
    assert search.over and search.done == search.total
    for cell in search.supernet.cells:  # what was ruled out is not computed any more
        lists = [edge.candidates for edge in cell._ops._part.graph.edges]
        assert [len(each) for each in lists] == [1] * 5 and lists.count((Candidate.NONE,)) == 1  # the removed edge


def test_benchmark_cell_may_have_none() -> None:
    search = make(space=NASBENCH201, select_batches=1)
    records = list(search.epochs())
    assert [len(r.get("decisions", [])) for r in records] == [0, 1, 1, 1, 1, 2]
    chosen = {d["edge"]: d["chosen"] for r in records[1:] for d in r["decisions"]}
    assert all(set(d["loss"]) == set(NASBENCH201.normal[0]) for r in records[1:] for d in r["decisions"])
    assert search.result() == Architecture(tuple(chosen[edge] for edge in range(6)))


def test_fixed_alpha_never_moves() -> None:
    search = make(begin=1, seed=4)
    alpha = search.relaxation.alpha["normal"].detach().clone()
    assert all(r["alpha_loss"] is None for r in search.epochs())
    assert torch.equal(search.relaxation.alpha["normal"], alpha)


def whole(**changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a search, and its state after each step."""
    search, states = make(**changes), []
    records = timeless(list(search.epochs(Hooks(lambda report: states.append(deepcopy(search.state_dict()))))))
    return records, states


@pytest.mark.parametrize(("method", "at"), [("darts-1st", (1, 4, 7)), ("sdarts-adv", (9,))])
def test_resume_between_decisions_is_bitwise_identical(method: str, at: tuple[int, ...]) -> None:
    want, states = whole(method=method)
    for number in at:  # finished steps, two an epoch
        again = make(method)
        again.load_state_dict(states[number - 1])
        assert timeless(list(again.epochs())) == want[(number - 1) // 2 :]
        assert torch.equal(again.relaxation.alpha["reduce"], states[-1]["relaxation"]["alpha"]["reduce"])


def test_resume_inside_decision_is_bitwise_identical() -> None:
    """The evaluation of the third one breaks off; statistics and batches are those before it."""
    want, _ = whole()
    first, asked = make(), []

    class Broken(Exception):
        pass

    def batches(taken: Any) -> Any:
        asked.append(taken)
        yield from taken if len(asked) < 4 else breaking(taken)

    def breaking(taken: Any) -> Any:
        yield next(iter(taken))
        raise Broken

    with pytest.raises(Broken):
        list(first.epochs(Hooks(batches=batches)))
    assert first.epoch == 2 and int((first.relaxation.decided["normal"] != OPEN).sum()) == 2
    again = make()
    again.load_state_dict(deepcopy(first.state_dict()))
    assert timeless(list(again.epochs())) == want[2:]


def test_finished_search_is_continued() -> None:
    want, _ = whole()
    plain, again = make(select="argmax"), make()
    assert timeless(list(plain.epochs())) == want[:1] and plain.over
    again.load_state_dict(deepcopy(plain.state_dict()))
    assert timeless(list(again.epochs())) == want[1:]
    with pytest.raises(ValueError, match="of stage 2, this search has 1; continue it with --select perturbation"):
        plain.load_state_dict(again.state_dict())


def test_state_before_selection_can_be_loaded() -> None:
    """As --on_bad rewind does."""
    want, states = whole()
    search = make()
    list(search.epochs())
    search.load_state_dict(states[0])
    assert search.selection is None and not isinstance(search.relaxation, FixedRows)
    assert all(cell._ops._part is None for cell in search.supernet.cells)
    assert timeless(list(search.epochs())) == want


@pytest.mark.parametrize(
    ("changes", "relaxation", "says"),
    [
        ({}, GreedyEdges, "SGAS decides every edge while it searches"),
        ({"early_stop": "skips"}, SoftmaxRelaxation, "leave out --early_stop, it chooses a cell of its own"),
        ({"skip_limit": 2}, SoftmaxRelaxation, "leave out --skip_limit, it ranks candidates by alpha"),
        ({"select_figure": "accuracy"}, SoftmaxRelaxation, "--select_figure accuracy: the objective reads no labels"),
    ],
)
def test_unsuitable_searches_are_rejected(changes: dict[str, Any], relaxation: type[SoftmaxRelaxation], says: str) -> None:
    s = SearchSettings(**{"select": "perturbation"} | changes)
    with pytest.raises(ConfigError, match=says):
        check_selection(s, relaxation, needs_labels=False)
    check_selection(SearchSettings(), relaxation, needs_labels=False)


def test_figures_are_means_over_ranks() -> None:
    """Of images: the other rank's share of the sums takes part."""
    pair = Pair("supervised", FEW, k=1)

    class Ranks:
        size, is_main = 2, True

        def average(self, flat: Tensor) -> None:
            flat.copy_((flat + torch.tensor([0.0, 7.0])) / 2)  # the other rank: a sum of 0 over seven images

        def broadcast(self, tensors: Any) -> None: ...

    one, both = (Scores(pair.bilevel, Given(), SearchSettings(), Hooks(), ranks) for ranks in (None, Ranks()))
    alone, shared = (scores(pair.relaxation.weights(), [("normal", 0, 1)]) for scores in (one, both))
    assert shared[0] == pytest.approx(alone[0] / 2)
