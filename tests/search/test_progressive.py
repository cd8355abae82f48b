"""P-DARTS: pruning, dropout schedule and skip limit by hand, and a tiny search in three stages."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.batch import Batch
from fastdarts.objectives import MaskedReconstruction, Objective
from fastdarts.runs.memory_search import search_bytes
from fastdarts.search import METHODS, Bilevel, Hooks, Progressive, Search, SoftmaxRelaxation, Stage, limit_skips, stages_of
from fastdarts.search.progressive import heaviest, moving_epochs, shrink, skip_dropout_rate
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import NASBENCH201, S0, Space
from fastdarts.spaces.genotype import Genotype
from fastdarts.steps import meta_batch
from fastdarts.supernet import CellWeights, Network, Supernet
from fastdarts.supernet.eager_candidates import SkipDropout

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("none", "max_pool_3x3", "skip_connect", "dil_conv_3x3", "sep_conv_3x3")
SPACE = Space.uniform("few", NAMES, nodes=2)  # five edges
CLOCK = ("seconds", "input_seconds", "images_per_s")
SIDE, BATCH = 8, 2


def weights(rows: list[list[float]], edges: list[float] | None = None) -> CellWeights:
    return CellWeights(torch.tensor(rows, dtype=torch.float64), None if edges is None else torch.tensor(edges))


# pruning


def test_three_weakest_of_eight_are_dropped_in_order() -> None:
    rows = [[0.30, 0.01, 0.02, 0.20, 0.05, 0.10, 0.04, 0.28]] * 14
    rows[3] = [0.01, 0.20, 0.30, 0.02, 0.03, 0.14, 0.15, 0.15]  # none may go, too
    normal = weights(rows)
    shrunk = shrink(S0, {"normal": normal, "reduce": weights([[0.125] * 8] * 14)}, 5)
    assert shrunk.normal[0] == ("none", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5")
    assert shrunk.normal[3] == ("max_pool_3x3", "avg_pool_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
    assert shrunk.normal[13] == shrunk.normal[0]
    # of equal ones the earlier
    assert set(shrunk.reduce) == {("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")}
    assert (shrunk.name, shrunk.nodes) == ("S0", 4)
    again = shrink(shrunk, {"normal": weights([[0.1, 0.3, 0.15, 0.25, 0.2]] * 14), "reduce": weights([[0.2] * 5] * 14)}, 3)
    assert again.normal[0] == ("skip_connect", "sep_conv_5x5", "dil_conv_5x5")
    assert again.normal[3] == ("avg_pool_3x3", "dil_conv_3x3", "dil_conv_5x5")


def test_short_lists_are_kept_and_padding_ignored() -> None:
    lists = (("skip_connect", "sep_conv_3x3"), ("none", "max_pool_3x3", "skip_connect"))
    space = Space("mixed", lists, lists, nodes=1)
    rows = weights([[0.6, 0.4, 0.0], [0.5, 0.2, 0.3]])
    shrunk = shrink(space, {"normal": rows, "reduce": rows}, 2)
    assert shrunk.normal == (("skip_connect", "sep_conv_3x3"), ("none", "skip_connect"))


# dropout


def test_dropout_rate_schedule() -> None:
    """Linear before alpha's first update, exponential from there on (P-DARTS' code)."""
    stage = Stage(25, 10, 11, 5, 0.4)
    rates = [skip_dropout_rate(stage, epoch) for epoch in range(25)]
    assert rates[0] == pytest.approx(0.384)  # 0.4 * 24 / 25
    assert rates[9] == pytest.approx(0.24)  # 0.4 * 15 / 25
    assert rates[10] == 0.4
    assert rates[11] == pytest.approx(0.4 * 0.8187307531)
    assert rates[15] == pytest.approx(0.4 * 0.3678794412)
    assert rates[24] == pytest.approx(0.0243240251)  # 0.4 * exp(-2.8)
    assert skip_dropout_rate(Stage(25, 10, 5), 3) == 0


# the limit of skips


ROWS = [  # of none, skip_connect, sep_conv_3x3; edges 0 and 1 lead to the first node, 2 to 4 to the second
    [0.10, 0.60, 0.30],
    [0.10, 0.50, 0.40],
    [0.10, 0.70, 0.20],
    [0.20, 0.55, 0.25],
    [0.90, 0.20, 0.45],
]
THREE = Space.uniform("three", ("none", "skip_connect", "sep_conv_3x3"), nodes=2)
ALL_SKIPS = weights([[0.0, 1.0, 0.5]] * 5)
S, C = "skip_connect", "sep_conv_3x3"


def limited(rows: list[list[float]], most: int, edges: list[float] | None = None) -> list[tuple[str, int]]:
    genotype = limit_skips(THREE, {"normal": weights(rows, edges), "reduce": ALL_SKIPS}, most)
    assert genotype.operations("reduce") == [S] * 4  # never limited
    return list(genotype.normal)


def test_weakest_skip_is_removed_and_cell_rederived() -> None:
    assert limited(ROWS, 8) == limited(ROWS, 4) == [(S, 0), (S, 1), (S, 0), (S, 1)]
    assert limited(ROWS, 3) == [(S, 0), (C, 1), (S, 0), (S, 1)]  # edge 1 (0.5) takes its convolution
    assert limited(ROWS, 2) == [(S, 0), (C, 1), (S, 0), (C, 2)]  # edge 3 (0.55) is weaker than edge 4 without its skip
    assert limited(ROWS, 1) == [(C, 1), (C, 0), (S, 0), (C, 2)]  # edge 0 (0.6), now behind edge 1
    assert limited(ROWS, 0) == [(C, 1), (C, 0), (C, 2), (C, 1)]


def test_replacement_skip_is_also_removed() -> None:
    rows = [*ROWS[:4], [0.90, 0.45, 0.20]]
    assert limited(rows, 3) == [(S, 0), (C, 1), (S, 0), (S, 1)]
    assert limited(rows, 2) == [(S, 0), (C, 1), (S, 0), (C, 1)]  # edge 3, then edge 4, which had come in


def test_edge_weights_scale_skip_strength() -> None:
    factors = [0.2, 0.8, 0.3, 0.4, 0.3]  # skips 0.12, 0.40, 0.21, 0.22; edge 4 has 0.135
    assert limited(ROWS, 3, factors) == [(S, 1), (C, 0), (S, 1), (S, 0)]
    assert limited(ROWS, 2, factors) == [(S, 1), (C, 0), (S, 1), (C, 2)]


def test_irreplaceable_skips_are_rejected() -> None:
    lists = ((S, C), ("none", S))
    space = Space("mixed", lists, lists, nodes=1)
    rows = weights([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="normal edge 1 of space mixed needs its skip"):
        limit_skips(space, {"normal": rows, "reduce": rows}, 1)
    with pytest.raises(ConfigError, match="--skip_limit: normal edge 0 of space few needs"):
        stages_of(settings(skip_limit=1, progressive_candidates="4,2"), 3, SPACE)
    with pytest.raises(ConfigError, match="--skip_limit: skips are limited in DARTS' cells only"):
        stages_of(settings(skip_limit=1, progressive=False, skip_dropout=False), 3, NASBENCH201)


# the stages of settings


def settings(**changes: Any) -> SearchSettings:
    base: dict[str, Any] = {"epochs": 6, "begin": 1, "warmup_epochs": 0, "learning_rate": 0.05, "arch_learning_rate": 0.1}
    base |= {"progressive": True, "progressive_layers": "0,1,2", "progressive_candidates": "4,3", "edge_normalization": False}
    return SearchSettings(**(base | changes))


def test_published_stages() -> None:
    published = {"epochs": 75, "begin": 10, "progressive": True, "skip_dropout": True, "skip_limit": 2}
    stages = stages_of(SearchSettings(**published), 5, S0)
    assert stages == (Stage(25, 10, 5), Stage(25, 10, 11, 5, 0.4), Stage(25, 10, 17, 3, 0.7))
    assert [moving_epochs(stages, n) for n in (0, 10, 11, 25, 35, 36, 50, 75)] == [0, 0, 1, 15, 15, 16, 30, 45]
    without = stages_of(SearchSettings(**(published | {"skip_dropout": False})), 5, S0)
    assert [stage.dropout for stage in without] == [0, 0, 0]
    assert stages_of(SearchSettings(epochs=7, begin=3), 8, S0) == (Stage(7, 3, 8),)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 7}, "--epochs 7: 3 stages of equal length need a multiple of 3"),
        ({"begin": 2}, "--begin 2: alpha would never be updated in a stage of 2 epochs"),
        (
            {"progressive_layers": "0,1"},
            "--progressive_layers has 2 stages: --progressive_dropout needs 2 numbers, got 3",
        ),
        ({"progressive_candidates": "4"}, "--progressive_candidates 2, all stages but the first, got 1"),
        ({"progressive_candidates": "2,3"}, "--progressive_candidates 2,3: dropped candidates never return"),
        ({"progressive_candidates": "4,x"}, "--progressive_candidates 4,x: expected integers separated by commas"),
        ({"progressive_candidates": "4,1"}, "--progressive_candidates 4,1: 1 is out of range, it must be at least 2"),
        (
            {"progressive_dropout": "0,0.5,1"},
            "--progressive_dropout 0,0.5,1: 1.0 is out of range, it must be at least 0 and below 1",
        ),
        ({"progressive_dropout": "0,0.5,nan"}, "nan is out of range"),
        ({"progressive": False, "skip_dropout": True}, "--skip_dropout belongs to P-DARTS' stages"),
        ({"progressive_layers": ""}, "--progressive_layers has 0 stages"),
        ({"early_stop": "skips"}, "--early_stop: it follows one alpha, but each stage has a new one"),
    ],
)
def test_invalid_stages_are_rejected(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stages_of(settings(**changes), 3, SPACE)
    assert says in str(caught.value)


def test_fixed_depth_network_has_no_stages() -> None:
    with pytest.raises(ConfigError, match="--progressive: space nasbench201 has a network of fixed depth"):
        stages_of(settings(), 3, NASBENCH201)


def test_heaviest_candidates_of_stage() -> None:
    assert heaviest(S0, Stage(25, 10, 5)) == [S0]
    convolutions, skip = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_5x5"), ("skip_connect", "sep_conv_3x3", "sep_conv_5x5")
    assert [s.normal[2] for s in heaviest(S0, Stage(25, 10, 17, 3))] == [convolutions]
    assert [s.reduce[0] for s in heaviest(S0, Stage(25, 10, 17, 3, 0.7))] == [skip, convolutions]
    five = [s.normal[13] for s in heaviest(S0, Stage(25, 10, 11, 5, 0.4))]
    assert five == [S0.normal[13][3:], ("max_pool_3x3", *S0.normal[13][4:])]


@pytest.mark.parametrize("backend", ["auto", "definition"])
def test_heaviest_space_bounds_stage_memory(backend: str) -> None:
    def memory(space: Space) -> int:
        with torch.device("meta"):
            supernet = Supernet(space, C=8, layers=3, backend=backend, skip_dropout=True)
            objective = masked(supernet, backend)
        relaxation = SoftmaxRelaxation(space, edge_normalization=False, device="meta")
        return search_bytes(supernet, objective, relaxation, meta_batch(8, 16), "cpu")

    space = Space.uniform("few", NAMES, nodes=1)
    most = max(map(memory, heaviest(space, Stage(25, 10, 3, 3, 0.7))))
    for row in ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.2, 0.4, 0.5]):
        kept = shrink(space, {kind: weights([row] * 2) for kind in space.kinds}, 3)
        assert memory(kept) <= most


# a search


class Loader:
    """Two batches an epoch, endless."""

    def __init__(self, split: int) -> None:
        self.split, self.given = split, 0

    def __len__(self) -> int:
        return 2

    def __next__(self) -> Batch:
        g = torch.Generator().manual_seed(1000 * self.split + self.given)
        self.given += 1
        images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)
        index = torch.randint(0, 999, (BATCH,), generator=g)
        return Batch(images, index % 3, index, index % 2 == 0)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def masked(supernet: Network, backend: str = "auto") -> MaskedReconstruction:
    return MaskedReconstruction(supernet.tap_channels, patch_size=2, backend=backend)


def searched(method: str, s: SearchSettings) -> Search:
    """A search of one stage by a method of the table."""
    torch.manual_seed(0)
    supernet = Supernet(SPACE, C=4, layers=3)
    return Search(supernet, masked(supernet), Loader(0), Loader(1), s, method=METHODS[method])


def make(s: SearchSettings, backend: str = "auto", **kwargs: Any) -> Search:
    """A search in float64."""

    def build(space: Space, stage: Stage) -> tuple[Network, Objective]:
        dropout = stage.dropout > 0
        supernet = Supernet(space, C=4, layers=stage.layers or 3, backend=backend, skip_dropout=dropout)
        return supernet.double(), masked(supernet, backend).double()

    progressive = Progressive(stages_of(s, 3, SPACE), build, s.seed)
    loaders = Loader(0), Loader(1), s
    return Search(*progressive.begin(0, SPACE), *loaders, progressive=progressive, **kwargs)


def noted(note: Callable[[Bilevel], object]) -> Callable[[Bilevel], Bilevel]:
    """For a search's `captured`: notes each stage's Bilevel."""

    def captured(bilevel: Bilevel) -> Bilevel:
        note(bilevel)
        return bilevel

    return captured


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{n: v for n, v in r.items() if n not in CLOCK} for r in records]


def dropouts(search: Search) -> list[SkipDropout]:
    return [m for m in search.supernet.modules() if isinstance(m, SkipDropout)]


def test_three_stages_grow_depth_and_drop_candidates() -> None:
    stepped: list[Bilevel] = []
    search, seen = make(settings(skip_dropout=True, skip_limit=1), captured=noted(stepped.append)), []
    bilevels: list[Bilevel] = []
    for record in search.epochs():
        rate = max((float(m.rate) for m in dropouts(search)), default=0.0)
        alpha = search.relaxation.alpha["normal"]
        lr, moved = record["lr"], record["alpha_loss"] is not None
        seen.append((record["stage"], len(search.supernet.cells), tuple(alpha.shape), lr, moved, round(rate, 6)))
        bilevels.append(search.bilevel)
        lists = record["candidates"]["normal"]
        assert [tuple(names) for names in lists] == list(search.supernet.space.normal)
        assert len(record["ops"]["normal"]) == 5
        assert all(len(row) == len(names) for row, names in zip(record["ops"]["normal"], lists, strict=True))
        assert Genotype.from_text(record["genotype"]).operations("normal").count("skip_connect") <= 1
        if search.epoch in (2, 4):  # the weakest of these are dropped
            keep = {2: 4, 4: 3}[search.epoch]
            before = {kind: CellWeights(torch.tensor(rows)) for kind, rows in record["ops"].items()}
            following = shrink(search.supernet.space, before, keep)
        if search.epoch in (3, 5):
            assert search.supernet.space == following
    half = 0.025  # the cosine after one of two epochs
    assert seen == [
        (1, 3, (5, 5), 0.05, False, 0.0),
        (1, 3, (5, 5), half, True, 0.0),
        (2, 4, (5, 4), 0.05, False, 0.2),  # 0.4 * 1/2
        (2, 4, (5, 4), half, True, 0.4),
        (3, 5, (5, 3), 0.05, False, 0.35),
        (3, 5, (5, 3), half, True, 0.7),
    ]
    assert stepped == bilevels[::2]
    assert bilevels[0] is bilevels[1] and len({id(b) for b in bilevels}) == 3
    assert int(search.step) == 12
    assert all(names != NAMES for names in search.supernet.space.normal)


def test_plain_variant_has_no_dropout_and_no_limit() -> None:
    search = make(settings())
    for record in search.epochs():
        assert not dropouts(search)
        skips = Genotype.from_text(record["genotype"]).operations("normal").count("skip_connect")
        assert record["cells"]["normal"]["skips"] == skips


def test_skip_limit_changes_cell_not_collapse_figures() -> None:
    search = make(settings(skip_limit=1))
    with torch.no_grad():
        search.relaxation.alpha["normal"][:, NAMES.index("skip_connect")] = 5.0
    record = search._architecture()
    assert record["cells"]["normal"]["skips"] == 4
    assert search.genotype().operations("normal").count("skip_connect") == 1


def test_stages_reinitialise_weights_and_alpha_with_own_seed() -> None:
    firsts: list[tuple[Tensor, Network, Objective]] = []
    begins = noted(
        lambda b: firsts.append((b.relaxation.alpha["normal"].detach().clone(), *deepcopy((b.supernet, b.objective))))
    )
    search = make(settings(seed=3, begin=0), captured=begins)
    for _ in range(3):
        search.run_epoch()
    _, (alpha, *modules) = firsts
    g = torch.Generator().manual_seed(4)
    assert torch.equal(alpha, 1e-3 * torch.randn(5, 4, generator=g, dtype=torch.float64))
    for seed, same in ((4, True), (3, False)):
        torch.manual_seed(seed)
        fresh = search.progressive.make(search.supernet.space, search.progressive.stages[1])
        for module, other in zip(modules, fresh, strict=True):
            ours, theirs = dict(module.named_parameters()), dict(other.named_parameters())
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[n], theirs[n]) for n in ours) == same


@pytest.mark.parametrize("when", [1, 4, 5, 7, 8, 11], ids=lambda n: f"step{n}")
def test_resume_in_any_stage_is_bitwise_identical(when: int, tmp_path: Path) -> None:
    s = settings(seed=5, skip_dropout=True)
    whole = make(s)

    def save(report: Any) -> None:
        if report.step == when:
            torch.save(whole.state_dict() | {"rng": torch.get_rng_state()}, tmp_path / "state.pt")

    want = timeless(list(whole.epochs(Hooks(save))))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = make(s)
    second.load_state_dict(state)
    torch.set_rng_state(state["rng"])
    assert second.epoch * 2 + second.part.steps == when
    assert second.stage == (when - 1) // 4
    assert timeless(list(second.epochs())) == want[(when - 1) // 2 :]
    ours, theirs = second.state_dict(), whole.state_dict()
    for part in ("supernet", "objective"):
        assert all(torch.equal(t, theirs[part][n]) for n, t in ours[part].items())
    assert second.genotype() == whole.genotype()


def test_state_of_earlier_stage_can_be_loaded(tmp_path: Path) -> None:
    s = settings(seed=5, skip_dropout=True)
    cells: list[int] = []
    search = make(s, captured=noted(lambda bilevel: cells.append(len(bilevel.supernet.cells))))
    search.run_epoch()
    torch.save(search.state_dict() | {"rng": torch.get_rng_state()}, tmp_path / "state.pt")
    want = timeless(list(search.epochs()))
    assert search.stage == 2
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    search.load_state_dict(state)
    torch.set_rng_state(state["rng"])
    assert (search.stage, search.epoch, len(search.supernet.cells)) == (0, 1, 3)
    assert timeless(list(search.epochs())) == want
    assert cells == [3, 4, 5] * 2


def test_state_of_missing_stage_is_rejected() -> None:
    search = make(settings())
    state = search.state_dict()
    with pytest.raises(ValueError, match="of stage 4, this search has 3"):
        search.load_state_dict(state | {"stage": 4})
    torch.manual_seed(0)
    supernet = Supernet(SPACE, C=4, layers=3).double()
    single = Search(supernet, masked(supernet).double(), Loader(0), Loader(1), settings(progressive=False))
    assert not {"stage", "candidates"} & single.state_dict().keys()
    with pytest.raises(ValueError, match="of stage 2, this search has 1"):
        single.load_state_dict(state | {"stage": 2})


def test_stage_epochs_must_add_up() -> None:
    progressive = make(settings()).progressive
    given = (*progressive.begin(0, SPACE), Loader(0), Loader(1), settings(epochs=9))
    with pytest.raises(ValueError, match=r"the stages have \[2, 2, 2\] epochs, which do not add up to 9"):
        Search(*given, progressive=progressive)


def test_stages_recapture_steps_and_broadcast_weights() -> None:
    copied: list[int] = []

    class Ranks:
        size, is_main = 2, True

        def average(self, flat: Tensor) -> None: ...

        def broadcast(self, tensors: Any) -> None:
            copied.append(sum(t.numel() for t in tensors))

    made: list[Bilevel] = []

    def captured(bilevel: Bilevel) -> Any:
        made.append(bilevel)
        return lambda *batches: bilevel(*batches)

    search = make(settings(skip_dropout=True), captured=captured, ranks=Ranks())
    list(search.epochs())
    assert len(made) == 3 and made[-1] is search.bilevel
    assert len(copied) == 2
    modules = search.supernet, search.objective
    held = [t for m in modules for t in (*m.parameters(), *m.buffers())] + search.relaxation.parameters()
    assert copied[-1] == sum(t.numel() for t in held)


def test_fused_ops_match_definition() -> None:
    s = settings(seed=1, skip_dropout=True, skip_limit=2)
    fused, defined = (list(make(s, backend).epochs()) for backend in ("auto", "definition"))
    for mine, want in zip(fused, defined, strict=True):
        assert mine["genotype"] == want["genotype"]
        assert mine["candidates"] == want["candidates"]
        for kind, rows in want["ops"].items():
            difference = torch.tensor(mine["ops"][kind]) - torch.tensor(rows)
            assert difference.abs().max() < 1e-8
        assert math.isclose(mine["train_loss"], want["train_loss"], rel_tol=1e-9)
