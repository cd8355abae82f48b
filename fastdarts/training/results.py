"""Results of a training from its records: the last, the best and the averaged network's accuracies, separately."""

from collections.abc import Mapping, Sequence
from typing import Any


def results(epochs: Sequence[Mapping[str, Any]], best_on_test: bool) -> dict[str, dict[str, Any]]:
    """Return, by name, the figures to report, each with its epoch and its images, "test" or "valid".

    last       network of the last evaluated epoch
    last, EMA  its moving average
    best       network of the epoch with the highest top-1 on the held-back images, or where asked for on the test images;
               absent without either
    """
    known = [epoch for epoch in epochs if epoch.get("test") or epoch.get("valid")]
    if not known:
        return {}
    images = "test" if known[-1].get("test") else "valid"
    last = known[-1]
    found = {"last": last[images] | {"epoch": last["epoch"], "images": images}}
    if averaged := last.get(f"{images}_ema"):
        found["last, EMA"] = averaged | {"epoch": last["epoch"], "images": images}
    judged = "test" if best_on_test else "valid"
    if candidates := [epoch for epoch in known if epoch.get(judged) and epoch.get(images)]:
        best = max(candidates, key=lambda epoch: epoch[judged]["top1"])  # the first of equals
        found["best"] = best[images] | {"epoch": best["epoch"], "images": images, "chosen_on": judged}
    return found


def accuracies(row: Mapping[str, Any]) -> str:
    """Format the figures of an evaluation."""
    return f"top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%}, loss {row['loss']:.4f}"
