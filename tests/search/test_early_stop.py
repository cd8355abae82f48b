"""When a search ends early: both rules on histories made by hand, and tiny searches that they end."""

from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts.search import Search
from fastdarts.search.early_stop import (
    RATIO,
    WINDOW,
    Seen,
    by_eigenvalue,
    by_skips,
    check_early_stop,
    judge,
    needs_hessian,
    seen,
)
from fastdarts.settings import ConfigError
from fastdarts.spaces import S0, Space
from fastdarts.spaces.genotype import Genotype
from tests.search.test_search import make, same, settings, timeless

pytestmark = pytest.mark.usefixtures("one_thread")


def history(values: list[float], first: int = 1, skips: list[int] | None = None) -> list[Seen]:
    """Epochs from `first` with these eigenvalues; the genotype of epoch n is "gn"."""
    skips = skips or [0] * len(values)
    return [
        Seen(epoch=e, genotype=f"g{e}", skips=s, hessian=v) for e, (v, s) in enumerate(zip(values, skips, strict=True), first)
    ]


def stops(values: list[float], first: int = 1) -> tuple[int, int] | None:
    """(last epoch, epoch of the result) of the search that has these eigenvalues epoch by epoch, or None."""
    whole = history(values, first)
    found = [stop for n in range(1, len(whole) + 1) if (stop := by_eigenvalue(whole[:n]))]
    return (found[0].after, found[0].epoch) if found else None


def test_constants_match_paper() -> None:
    assert (WINDOW, RATIO) == (5, 0.75)


def test_grown_eigenvalue_stops() -> None:
    """The means are 3 around epoch 3 and 4.2 around epoch 8: 3 / 4.2 = 0.714 < 0.75."""
    stop = by_eigenvalue(history([1, 2, 3, 4, 5, 3, 3, 3, 5, 7]))
    assert stop is not None and stop[:4] == ("eigenvalue", 10, 3, "g3")
    assert "from 3 around epoch 3 to 4.2 around epoch 8: the ratio 0.714" in stop.why
    assert stop.facts() == {"rule": "eigenvalue", "after": 10, "epoch": 3, "why": stop.why}


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([3] * 5 + [4] * 5, None),  # exactly 0.75
        ([3] * 5 + [4] * 4 + [4.01], (10, 3)),
        ([1] * 30, None),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1], None),  # falls
        ([1] * 12 + [100], (13, 6)),  # means of epochs 4 to 8 and 9 to 13
        ([1] * 4 + [0.5] * 5, None),  # too few
        ([-3] * 5 + [-5] * 5, (10, 3)),  # magnitudes
        ([0] * 12, None),
        ([0] * 5 + [1e-30] * 5, (10, 3)),
    ],
)
def test_eigenvalue_histories(values: list[float], want: tuple[int, int] | None) -> None:
    """Epochs at which the rule stops and which it chooses, by history."""
    assert stops(values) == want


def test_epochs_are_counted_from_first_alpha_update() -> None:
    assert stops([1] * 12 + [100], first=36) == (48, 41)


def test_chosen_epoch_is_not_before_first() -> None:
    """Each ten epochs in a row have grown; the first to choose epoch 11 ends after epoch 18."""
    whole = history([2.0**n for n in range(30)])
    for first, after in ((1, 10), (3, 10), (4, 11), (11, 18), (20, 27)):
        ends = [stop for n in range(1, 31) if (stop := by_eigenvalue(whole[:n], first))]
        assert (ends[0].after, ends[0].epoch) == (after, after - 7)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_missing_or_non_finite_values_do_not_stop(bad: float) -> None:
    """Not as long as one of the two means takes it: ten epochs, the bad one among them, do not stop; ten after it do."""
    assert stops([1, 1, 1, bad] + [2] * 9) is None  # the first ten that are finite are all 2
    assert stops([1] * 4 + [bad] + [1] * 5 + [2] * 5) == (15, 8)
    assert stops([1] * 5 + [2] * 4 + [bad]) is None


def test_missing_epoch_does_not_stop() -> None:
    whole = history([1] * 6 + [2] * 5)
    assert by_eigenvalue(whole) is not None
    assert by_eigenvalue(whole[:4] + whole[5:]) is None


@pytest.mark.parametrize(("skips", "limit", "stop"), [(1, 2, False), (2, 2, True), (3, 2, True), (3, 4, False), (1, 1, True)])
def test_skip_limit_stops(skips: int, limit: int, stop: bool) -> None:
    found = by_skips(history([nan, nan], first=4, skips=[8, skips]), limit)
    assert (found is not None) == stop
    if found:
        assert found[:4] == ("skips", 5, 5, "g5")
        assert found.why == f"the normal cell has {skips} skip connections, the limit is {limit}"


def test_judge_applies_configured_rule() -> None:
    both = history([1] * 5 + [2] * 5, skips=[2] * 10)
    assert judge(settings(), both) is None
    assert judge(settings(early_stop="skips"), both)[0] == "skips"
    assert judge(settings(early_stop="skips", early_stop_skips=3), both) is None
    assert judge(settings(early_stop="eigenvalue", early_stop_from=3), both)[0] == "eigenvalue"
    assert judge(settings(early_stop="eigenvalue", early_stop_from=4), both) is None
    assert judge(settings(early_stop="eigenvalue"), []) is None


def test_seen_of_record_with_one_kind_of_cell() -> None:
    record = {"epoch": 7, "genotype": "g", "cells": {"normal": {"skips": 3}}, "train_loss": 1.0}
    known = seen(record)
    assert (known["epoch"], known["genotype"], known["skips"]) == (7, "g", 3) and known["hessian"] != known["hessian"]
    assert seen(record | {"hessian": -2.5})["hessian"] == -2.5


def test_eigenvalue_is_estimated_when_alpha_is_updated() -> None:
    s = settings(begin=2, early_stop="eigenvalue")
    assert [needs_hessian(s, epoch) for epoch in (1, 2, 3, 4)] == [False, False, True, True]
    assert not needs_hessian(settings(early_stop="skips"), 3)


SEP = ("sep_conv_3x3",)


@pytest.mark.parametrize(
    ("changes", "space", "message"),
    [
        ({"early_stop": "eigenvalue", "epochs": 12, "begin": 3}, S0, "are 9: use more --epochs or a smaller --begin"),
        ({"early_stop": "eigenvalue", "epochs": 2, "begin": 3}, S0, "are 0"),
        ({"early_stop": "eigenvalue", "epochs": 17}, S0, "choose the cell of epoch 10 at the latest"),
        ({"early_stop": "skips"}, Space("s", (SEP,) * 14, (("skip_connect",),) * 14), "no edge of space s can be a skip"),
        ({"early_stop": "skips", "early_stop_skips": 9}, S0, "--early_stop_skips 9: a cell of space S0 has 8 operations"),
    ],
)
def test_rule_that_can_never_stop_is_rejected(changes: dict[str, Any], space: Space, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_early_stop(settings(**changes), space)
    check_early_stop(settings(**changes | {"early_stop": "off"}), space)


def test_shortest_search_with_eigenvalue_rule() -> None:
    check_early_stop(settings(early_stop="eigenvalue", epochs=18), S0)
    check_early_stop(settings(early_stop="eigenvalue", epochs=12, begin=2, early_stop_from=5), S0)


def test_search_checks_rule_at_construction() -> None:
    with pytest.raises(ConfigError, match="are 3"):
        make(settings(early_stop="eigenvalue"))
    with pytest.raises(ValueError, match="eval_loader"):
        make(settings(early_stop="eigenvalue", epochs=18), eval_loader=None)


# --------------------------------------------------------------------------------------------------- tiny searches

GROWING = [5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]  # after epochs 1, 2, ...


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Search.hessian gives GROWING; yields the epochs after which it was asked for."""
    asked: list[int] = []

    def hessian(self: Search) -> float:
        asked.append(self.epoch + 1)
        return GROWING[self.epoch]

    monkeypatch.setattr(Search, "hessian", hessian)
    return asked


EIGENVALUE = {"epochs": 13, "begin": 1, "early_stop": "eigenvalue", "early_stop_from": 4, "eval_every": 5, "hessian_every": 4}


def test_eigenvalue_rule_ends_search(growing: list[int]) -> None:
    """Epochs 2 to 6 have mean 1, epochs 7 to 11 mean 2: it ends after epoch 11 with the cell of epoch 4."""
    search = make(settings(**EIGENVALUE))
    records = list(search.epochs())
    assert [r["epoch"] for r in records] == list(range(1, 12)) and growing == list(range(2, 12))
    assert [r["epoch"] for r in records if "stopped" in r] == [11]
    assert records[-1]["stopped"] == search.stop.facts() and search.stop[:3] == ("eigenvalue", 11, 4)
    assert [r["epoch"] for r in records if r["valid"]] == [5, 10, 11]  # the last epoch is always evaluated
    assert search.result() == Genotype.from_text(records[3]["genotype"]) == search.run()
    assert search.genotype() == Genotype.from_text(records[-1]["genotype"])
    assert search.epoch == 11 and not list(search.epochs())


def test_resume_at_any_time_stops_identically(growing: list[int], tmp_path: Path) -> None:
    whole = make(settings(**EIGENVALUE))
    states, want = [], []
    for record in whole.epochs():
        want.append(record)
        states.append(tmp_path / f"{len(want)}.pt")
        torch.save(whole.state_dict(), states[-1])
    for done in (1, 2, 7, 10, 11):
        second = make(settings(**EIGENVALUE), weights_seed=1234)
        second.load_state_dict(torch.load(states[done - 1], weights_only=True))
        assert timeless(list(second.epochs())) == timeless(want[done:])
        assert (second.stop, second.result()) == (whole.stop, whole.result())
        assert same(second.state_dict(), whole.state_dict())


def test_skip_rule_waits_for_first_alpha_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two skips from the first epoch on, and alpha is updated from the third."""
    figures = {"operations": 8, "skips": 2, "entropy": 1.0, "skip_minus_conv": None}
    monkeypatch.setattr("fastdarts.search.search.collapse_figures", lambda *_: {"normal": figures})
    search = make(settings(epochs=6, begin=2, early_stop="skips"))
    records = list(search.epochs())
    assert len(records) == 3 and search.stop[:3] == ("skips", 3, 3)
    assert search.result() == search.genotype()
    assert "hessian" not in records[-1]


def test_skip_only_search_stops_after_first_epoch() -> None:
    """Nothing stubbed: with alpha far on the side of skips, the cell is all skips after the first epoch."""
    search = make(settings(epochs=4, early_stop="skips", early_stop_skips=8))
    with torch.no_grad():
        search.relaxation.alpha["normal"][:, 2] = 9.0
    assert [r["cells"]["normal"]["skips"] for r in search.epochs()] == [8]
    assert search.stop.why == "the normal cell has 8 skip connections, the limit is 8"


def test_no_rule_keeps_no_history() -> None:
    search = make(settings())
    assert not any("stopped" in record for record in search.epochs())
    assert search.stop is None and search.result() == search.genotype() and "history" not in search.state_dict()


class Another:
    """Two ranks, the other of which has figures of its own."""

    size, is_main = 2, True

    def __init__(self, skips: float) -> None:
        self.skips = skips

    def average(self, flat: torch.Tensor) -> None:
        if flat.dtype == torch.float64 and flat.shape == (2,) and flat[1].isnan():
            flat[0] = (flat[0] + self.skips) / 2


def test_ranks_judge_by_mean() -> None:
    """One rank alone would go on; the mean of both ends the search on both."""
    mine = make(settings(epochs=2, early_stop="skips", early_stop_skips=2), ranks=Another(1000.0))
    theirs = make(settings(epochs=2, early_stop="skips", early_stop_skips=2), ranks=Another(-1000.0))
    assert (len(list(mine.epochs())), len(list(theirs.epochs()))) == (1, 2)
