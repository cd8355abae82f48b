"""Key figures of a search, as text."""

import math
from typing import Any

from fastdarts.registry import OBJECTIVES
from fastdarts.report.run import Run, valid_of
from fastdarts.spaces.genotype import collapse_line

_SIZE = (("Parameters", "params"), ("Multiply-adds", "macs"))  # and their keys in genotype.json


def headline(run: Run) -> str:
    """Return what was searched, and on which data."""
    where = "the generated sample" if run.is_sample else run.data_name or "unnamed data"
    row = OBJECTIVES.get(str(run.part("settings").get("objective")))
    return f"{row.title if row else 'Architecture search'} on {where}"


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of epochs, images, losses, true accuracy, skips and time, if known.

    Losses are those of the result's epoch; if it was not evaluated, those of the previous evaluation.
    """
    data, last, chosen = run.part("data"), run.epochs[-1], run.chosen
    figures = [("Epochs", str(last["epoch"]), _of(run))]
    if "train_images" in data:
        figures.append(("Training images", number(data["train_images"]), f"{number(data.get('val_images'))} to validate"))
    figures.append(("Training loss", number(chosen.get("train_loss")), "" if chosen is last else f"of epoch {chosen['epoch']}"))
    valid = dict(valid_of(run.epochs))
    loss, baseline = valid.pop("loss", None), valid.pop("baseline", None)
    figures.append(("Validation loss", number(loss), _against(loss, baseline)))
    figures += [(f"Validation {name}", number(value), "") for name, value in valid.items()]
    if (truth := run.truth.get("cifar10_test")) is not None:
        figures.append(("True accuracy", f"{number(truth)} %", "CIFAR-10 test, as NAS-Bench-201 has it"))
    if run.genotype:
        skips = [run.skips(kind) for kind in run.kinds]
        genes = skips[0][1]
        remark = f"{' | '.join(run.kinds)}, of {genes}; {collapse_line(genes)} is a collapse"
        figures.append(("Skips", " | ".join(str(count) for count, _ in skips), remark))
    figures += [(name, number(run.result[key]), str(run.result.get("network", ""))) for name, key in _SIZE if key in run.result]
    seconds = sum(line.get("seconds") or 0 for line in run.timing)
    if seconds:
        images = sum((line.get("seconds") or 0) * (line.get("images_per_s") or 0) for line in run.timing)
        figures.append(("Time", duration(seconds), f"{number(images / seconds)} images/s"))
    return figures


def number(value: Any) -> str:
    """Format an integer with thousands separators, another number with four digits, None as a dash."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "—" if value is None else str(value)
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:.4g}"


def _of(run: Run) -> str:
    planned = f"of {run.planned}" if run.planned else ""
    return ", ".join(filter(None, (planned, "stopped early" if run.stopped else "")))


def _against(loss: float | None, baseline: float | None) -> str:
    if loss is None or not baseline:
        return ""
    share = 100 * (1 - loss / baseline)
    return f"{abs(share):.1f} % {'above' if share < 0 else 'below'} baseline {number(baseline)}"


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
