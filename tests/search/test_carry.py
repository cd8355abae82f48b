"""DrNAS' stages: what the second one takes over, the learning rate, and a search that is continued."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdarts.objectives import Objective
from fastdarts.search import METHODS, Hooks, Progressive, Search, Stage, stages_of
from fastdarts.search.carry import Carried
from fastdarts.search.progressive import rate_of
from fastdarts.search.setup import bilevel_of
from fastdarts.settings import ConfigError, SearchSettings
from fastdarts.spaces import NASBENCH201, S0, S5, Space
from fastdarts.supernet import NASBench201Supernet, Network, Supernet
from tests.search.test_progressive import Loader, masked, settings, timeless

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")
SPACE = Space.uniform("few", NAMES, nodes=1)
DRNAS = {"progressive_layers": "0,0", "progressive_candidates": "2", "progressive_dropout": "0,0", "progressive_carry": True}
DRNAS |= {"progressive_channels": "4,2", "progressive_rate": "whole", "epochs": 4, "begin": 0}


def network(space: Space, k: int) -> Network:
    if space.skeleton == "nasbench201":
        return NASBench201Supernet(space, C=8, cells_per_stage=1, partial_channels=k, batch_norm="running")
    return Supernet(space, C=8, layers=3, partial_channels=k)


def make(space: Space = SPACE, **changes: Any) -> Search:
    s = settings(**DRNAS | changes)

    def build(space: Space, stage: Stage) -> tuple[Network, Objective]:
        supernet = network(space, stage.partial_channels or 1)
        return supernet.double(), masked(supernet).double()

    progressive = Progressive(stages_of(s, 3, space), build, s.seed)
    loaders = Loader(0), Loader(1), s
    return Search(*progressive.begin(0, space), *loaders, progressive=progressive, method=METHODS["drnas"])


def pair(after: Space, k: int, before: Space = SPACE) -> tuple[Any, Any]:
    """Bilevels of two stages, the first one after two steps, with k = 4."""
    sides = []
    for space, divisor in ((before, 4), (after, k)):
        torch.manual_seed(divisor)
        supernet = network(space, divisor).double()
        sides.append(bilevel_of(supernet, masked(supernet).double(), settings(progressive=False), seed=divisor))
    train, val = next(Loader(0)), next(Loader(1))
    for step in range(2):
        sides[0](torch.tensor([step]), train, val)
    return sides[0], sides[1]


def momentum(bilevel: Any) -> dict[str, Tensor]:
    named = {id(p): name for name, p in bilevel.supernet.named_parameters()}
    of = {named[id(w)]: bilevel.weight_optimizer.state[w]["momentum_buffer"] for w in bilevel.weights if id(w) in named}
    packed = {name: m for name, m in bilevel.supernet.named_modules() if hasattr(m, "unpacked")}
    views = {f"{p}.{n}": t for p, m in packed.items() for n, t in m.unpacked(of.pop(f"{p}.weights")).items()}
    return of | views


def test_wider_candidates_are_copies_of_one_draw() -> None:
    """Outputs, inputs, statistics and momentum: the draw is read off the running means, which are all different."""
    lists = (("skip_connect", "sep_conv_3x3"), ("sep_conv_3x3", "dil_conv_5x5"))
    old, new = pair(Space("fewer", lists, lists, nodes=1), 2)
    Carried(old).put_into(new, seed=5)
    before, after = ({n: t.double() for n, t in b.supernet.state_dict().items()} for b in (old, new))
    moved, moves = momentum(old), momentum(new)
    for cell, (C, strided) in enumerate([(8, False), (16, True), (32, True)]):  # of three cells two reduce
        for edge, names in enumerate(lists):
            for place, name in enumerate(names):
                here, there = (f"cells.{cell}._ops.{edge}._ops.{p}" for p in (place, NAMES.index(name)))
                norms = ("op.3", "op.7") if name == "sep_conv_3x3" else ("op.3",)
                convolutions = ("op.1", "op.2", "op.5", "op.6")[: 2 * len(norms)]
                if name == "skip_connect":
                    norms, convolutions = (("bn",), ("conv_1", "conv_2")) if strided else ((), ())
                rows = []
                for norm in norms:
                    means, wider = before[f"{there}.{norm}.running_mean"], after[f"{here}.{norm}.running_mean"]
                    assert (len(means), len(wider), len(set(means.tolist()))) == (C // 4, C // 2, C // 4)
                    rows.append([means.tolist().index(mean) for mean in wider.tolist()])
                    assert torch.equal(after[f"{here}.{norm}.running_var"], before[f"{there}.{norm}.running_var"][rows[-1]])
                assert all(row == rows[0] for row in rows)
                if rows and name != "skip_connect":
                    assert rows[0][: C // 4] == list(range(C // 4))
                for part, names_of in ((before, after), (moved, moves)):
                    for conv in convolutions:
                        was, now = part[f"{there}.{conv}.weight"], names_of[f"{here}.{conv}.weight"]
                        if name != "skip_connect":
                            want = was[rows[0]] if conv in ("op.1", "op.5") else was[rows[0]][:, rows[0]]
                            assert torch.equal(now, want) and want.count_nonzero()
                        else:  # each half of its outputs for itself, in the order of its BatchNorm
                            half, first = (C // 8, 0 if conv == "conv_1" else C // 4)
                            drawn = [r % half for r in rows[0][first : first + C // 4]]
                            assert torch.equal(now[:, : C // 4], was[drawn])
    for name, tensor in after.items():
        if "._ops." not in name:
            assert torch.equal(tensor, before[name]), name
    for ours, theirs in zip(new.objective.parameters(), old.objective.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_alpha_and_moments_of_kept_candidates_stay() -> None:
    lists = (("skip_connect", "sep_conv_3x3"), ("sep_conv_3x3", "dil_conv_5x5"))
    old, new = pair(Space("fewer", lists, lists, nodes=1), 2)
    Carried(old).put_into(new, seed=5)
    places = torch.tensor([[1, 2], [2, 3]])
    for kind in ("normal", "reduce"):
        a, b = old.relaxation.alpha[kind], new.relaxation.alpha[kind]
        assert torch.equal(b, a.gather(1, places))
        was, now = old.arch_optimizer.state[a], new.arch_optimizer.state[b]
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(now[name], was[name].gather(1, places)) and now[name].count_nonzero() == 4
        assert float(now["step"]) == float(was["step"]) == 2


@pytest.mark.parametrize("space", [SPACE, NASBENCH201], ids=["darts", "nasbench201"])
def test_same_candidates_and_width_are_same_search(space: Space) -> None:
    """Nothing to drop and nothing to widen: the next step is the one that the stage before would have made."""
    old, new = pair(space, 4, space)
    Carried(old).put_into(new, seed=5)
    train, val = next(Loader(2)), next(Loader(3))
    losses = [bilevel(torch.tensor([2]), train, val) for bilevel in (old, new)]
    assert losses[0] == losses[1]
    states = [bilevel.supernet.state_dict() for bilevel in (old, new)]
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    for a, b in zip(old.relaxation.parameters(), new.relaxation.parameters(), strict=True):
        assert torch.equal(a, b)


def test_published_learning_rates() -> None:
    """One cosine over both stages; the released code's second stage begins at the full rate again."""
    s = {"epochs": 50, "learning_rate": 0.1, "learning_rate_min": 0.0, "warmup_epochs": 0}
    stages = (Stage(25, 10), Stage(25, 10))
    whole, released = (SearchSettings(**s, progressive_rate=rate) for rate in ("whole", "released"))
    assert [rate_of(whole, stages, *at) for at in ((0, 0), (1, 0), (1, 1))] == pytest.approx([0.1, 0.05, 0.04686], rel=1e-4)
    assert [rate_of(released, stages, *at) for at in ((0, 24), (1, 0), (1, 1))] == pytest.approx(
        [0.05314, 0.1, 0.09372], rel=1e-4
    )
    bench = {"epochs": 100, "learning_rate": 0.025, "learning_rate_min": 0.001, "warmup_epochs": 0}
    stages = (Stage(50, 10), Stage(50, 10))
    assert rate_of(SearchSettings(**bench, progressive_rate="whole"), stages, 1, 0) == pytest.approx(0.013)
    assert rate_of(SearchSettings(**bench, progressive_rate="released"), stages, 1, 0) == pytest.approx(0.025)


def test_published_stages() -> None:
    s = SearchSettings(**{k: v for k, v in METHODS["drnas-progressive"].settings.items() if k in vars(SearchSettings())})
    assert stages_of(s, 20, S5) == (
        Stage(25, 10, 20, partial_channels=6),
        Stage(25, 10, 20, candidates=4, partial_channels=4, carry=True),
    )


@pytest.mark.parametrize("space", [SPACE, NASBENCH201], ids=["darts", "nasbench201"])
def test_resume_in_either_stage_is_bitwise_identical(space: Space) -> None:
    whole, states = make(space), []
    hooks = Hooks(lambda report: states.append((deepcopy(whole.state_dict()), torch.get_rng_state())))
    want = timeless(list(whole.epochs(hooks)))
    assert [(r["stage"], len(r["candidates"]["normal"][0]), round(r["lr"], 6)) for r in want] == [
        (1, len(space.normal[0]), 0.05),
        (1, len(space.normal[0]), 0.042678),
        (2, 2, 0.025),
        (2, 2, 0.007322),
    ]
    assert whole.supernet.k == 2 and whole.relaxation.alpha["normal"].shape[1] == 2
    for number in (3, 4, 7):
        state, drawn = states[number - 1]
        again = make(space)
        again.load_state_dict(state)
        torch.set_rng_state(drawn)
        assert timeless(list(again.epochs())) == want[(number - 1) // 2 :]


@pytest.mark.parametrize(
    ("changes", "space", "says"),
    [
        ({"progressive_layers": "0,1"}, S0, "--progressive_carry: stages of different depths"),
        ({"progressive_channels": "2,4"}, S0, "--progressive_channels 2,4: candidates only grow, so k must not increase"),
        ({"progressive_channels": "4"}, S0, "--progressive_channels 4: --progressive_layers has 2 stages"),
        ({"progressive_channels": "4,x"}, S0, "--progressive_channels 4,x: expected integers"),
        ({"progressive_layers": "0,1"}, NASBENCH201, "has a network of fixed depth, so no stages of different depths"),
    ],
)
def test_unsuitable_stages_are_rejected(changes: dict[str, Any], space: Space, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        stages_of(settings(**DRNAS | changes), 3, space)
