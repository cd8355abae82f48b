"""Early stopping: rules that end a search before its cells collapse, from the statistics of each finished epoch.

Both rules ignore the epochs before alpha's first update, whose cells come from alpha's random initialisation.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple, TypedDict

from fastdarts.settings import ConfigError, SearchSettings, groups
from fastdarts.spaces import Space

WINDOW = 5  # k: epochs in each eigenvalue average (R-DARTS, Zela et al., ICLR 2020, section 4.3)
RATIO = 0.75  # of two averages k epochs apart; below it the eigenvalue has grown too fast (same section)
NORMAL = "normal"  # the kind of cell whose skips count (DARTS+, Liang et al., 2019)


class Seen(TypedDict):
    """An epoch's statistics that the rules read: plain values, part of a search's state."""

    epoch: int  # from 1
    genotype: str
    skips: float  # skip connections of the derived normal cell
    hessian: float  # largest eigenvalue of the validation Hessian in alpha, NaN where there is none


class Stop(NamedTuple):
    """A rule's decision to end the search."""

    rule: str  # "eigenvalue" or "skips"
    after: int  # the last epoch of the search
    epoch: int  # its genotype is the search's result
    genotype: str
    why: str

    def facts(self) -> dict[str, Any]:
        """Return rule, both epochs and the reason, as metrics.jsonl and genotype.json store them under "stopped"."""
        return {"rule": self.rule, "after": self.after, "epoch": self.epoch, "why": self.why}


def seen(record: Mapping[str, Any]) -> Seen:
    """Extract an epoch's statistics from its metrics.jsonl record."""
    value = record.get("hessian")
    return Seen(
        epoch=record["epoch"],
        genotype=record["genotype"],
        skips=float(record["cells"][NORMAL]["skips"]),
        hessian=nan if value is None else float(value),
    )


def needs_hessian(settings: SearchSettings, epoch: int) -> bool:
    """Return whether the rule needs the eigenvalue after this epoch (from 1): after each epoch that updates alpha, no other."""
    return settings.early_stop == "eigenvalue" and epoch > settings.begin


def judge(settings: groups.EarlyStop, history: Sequence[Seen]) -> Stop | None:
    """Return the Stop if the rule that `settings` name ends the search after the last epoch of `history`, else None.

    history  of the epochs that updated alpha so far, in order
    """
    if not history or settings.early_stop == "off":
        return None
    if settings.early_stop == "skips":
        return by_skips(history, settings.early_stop_skips)
    return by_eigenvalue(history, settings.early_stop_from)


def by_skips(history: Sequence[Seen], limit: int = 2) -> Stop | None:
    """DARTS+ (Liang et al., 2019), criterion 1: stop when the normal cell has `limit` or more skip connections.

    The result is the architecture of the last epoch.
    """
    last = history[-1]
    if last["skips"] < limit:
        return None
    why = f"the {NORMAL} cell has {last['skips']:g} skip connections, the limit is {limit}"
    return Stop("skips", last["epoch"], last["epoch"], last["genotype"], why)


def by_eigenvalue(history: Sequence[Seen], first: int = 1) -> Stop | None:
    """R-DARTS (Zela et al., ICLR 2020), section 4.3: stop when mean(i - k) / mean(i) < RATIO.

    mean(i) averages the eigenvalues of the k = WINDOW epochs around epoch i, so it is available k // 2 epochs after i. The
    result is the architecture of epoch i - k, which must be `first` or later: eigenvalues also grow during the first epochs
    of fresh weights, and R-DARTS' code waits for the eleventh epoch. The rule uses the eigenvalues' magnitudes. It decides
    nothing if any of the 2k values in the two means is missing or not finite. The values are as exact as
    collapse.dominant_eigenvalue's: with small networks and small batches their noise may trigger the rule.
    """
    recent = history[-2 * WINDOW :]
    values = [abs(epoch["hessian"]) for epoch in recent]
    consecutive = recent[-1]["epoch"] - recent[0]["epoch"] == 2 * WINDOW - 1 == len(recent) - 1
    if not consecutive or not all(map(isfinite, values)):
        return None
    chosen, centre = recent[WINDOW // 2], recent[WINDOW + WINDOW // 2]
    before, now = (sum(part) / WINDOW for part in (values[:WINDOW], values[WINDOW:]))
    if chosen["epoch"] < first or not before < RATIO * now:
        return None
    why = (
        f"the Hessian's largest eigenvalue, averaged over {WINDOW} epochs, grew from {before:.4g} around epoch "
        f"{chosen['epoch']} to {now:.4g} around epoch {centre['epoch']}: the ratio {before / now:.3f} is below {RATIO}"
    )
    return Stop("eigenvalue", recent[-1]["epoch"], chosen["epoch"], chosen["genotype"], why)


def check_early_stop(settings: SearchSettings, space: Space) -> None:
    """Raise ConfigError if the rule can never end a search of that space."""
    moving = settings.epochs - settings.begin
    if settings.early_stop == "eigenvalue" and moving < 2 * WINDOW:
        raise ConfigError(
            f"--early_stop eigenvalue: it compares two means over {WINDOW} epochs with updates of alpha, and here there "
            f"are {max(moving, 0)}: use more --epochs or a smaller --begin"
        )
    last = settings.epochs - WINDOW - WINDOW // 2  # the last epoch that the rule can return
    if settings.early_stop == "eigenvalue" and last < settings.early_stop_from:
        raise ConfigError(
            f"--early_stop_from {settings.early_stop_from}: in {settings.epochs} epochs the eigenvalue can choose the cell of "
            f"epoch {last} at the latest: use more --epochs or a smaller --early_stop_from"
        )
    if settings.early_stop == "skips":
        if moving < 1:
            raise ConfigError(
                "--early_stop skips: it looks at epochs that update alpha, and here none does: use more --epochs or a "
                "smaller --begin"
            )
        if not any("skip_connect" in names for names in space.candidates(NORMAL)):
            raise ConfigError(f"--early_stop skips: no edge of space {space.name} can be a skip connection")
        if settings.early_stop_skips > 2 * space.nodes:
            raise ConfigError(
                f"--early_stop_skips {settings.early_stop_skips}: a cell of space {space.name} has {2 * space.nodes} operations"
            )
