"""Generate one self-contained page about a retraining from its run folder alone."""

import json
from pathlib import Path
from typing import Any

from fastdarts.report import markup, parts
from fastdarts.report.facts import duration, number
from fastdarts.report.run import ReportError, Run, read_run

_CURVES = {
    "losses": "Training loss (pale: single steps) and losses of the evaluations, without label smoothing and auxiliary head.",
    "accuracy": "Top-1 accuracy after each evaluated epoch; dashed: of the moving average.",
}
_CHOSEN = {"valid": "on held-back training images", "test": "on the TEST images: optimistic"}
_MOST_CLASSES = 1000  # rows of the table


def write_retrain_report(run: str | Path) -> Path:
    """Draw cells and curves into the run folder of a retraining, finished or not, and write its report.html.

    Writes cell_KIND for each kind of cell, losses and accuracy (.svg and .png each), and then report.html. Returns its path.
    A failed drawing is logged, noted on the page and omitted there. Raises ReportError if the folder is not that of a
    retraining with at least one epoch, OSError if it is not writable.
    """
    content = read_run(run)
    missing = parts.draw_all(content, {"losses": _losses, "accuracy": _accuracy} | parts.cells(content))
    return parts.publish(content, _page(content, _result(content.folder), missing))


def _losses(run: Run, path: Path) -> None:
    from fastdarts.report.curves import draw_retrain_losses

    draw_retrain_losses(run.records, path)


def _accuracy(run: Run, path: Path) -> None:
    from fastdarts.report.curves import draw_accuracy

    draw_accuracy(run.records, path)


def _result(folder: Path) -> dict[str, Any]:
    """Return result.json, {} without it. Raises ReportError if it is damaged."""
    path = folder / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error


def _page(run: Run, result: dict[str, Any], missing: dict[str, str]) -> str:
    where = "the generated sample" if run.is_sample else run.data_name or "unnamed data"
    title, name = f"Retraining on {where}", run.folder.resolve().name
    remark = " · ".join(map(str, (name, run.part("settings").get("recipe", ""))))
    figures = markup.key_figures(_key_figures(run, result))
    cells = parts.genotype(run, missing) if run.genotype else []
    curves = [parts.drawn(run, drawing, drawing, missing, caption) for drawing, caption in _CURVES.items()]
    return markup.page(
        f"{title} · {name}",
        markup.header(title, remark),
        *_notices(run),
        markup.section("Result", figures, *cells),
        markup.section("Curves", *curves),
        *_by_class(result),
        *parts.tables(run),
        markup.section("Files left out", *parts.left_out(run)),
    )


def _notices(run: Run) -> list[str]:
    notices = parts.sample_notice(run, "a training", "the accuracies")
    done = run.epochs[-1]["epoch"]
    if run.planned and done < run.planned:
        text = f"{done} of {run.planned} epochs are done; this report shows the results so far."
        notices.append(markup.notice("Unfinished training", text))
    return notices


def _key_figures(run: Run, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of epochs, images, accuracies, sizes and time, if known."""
    data, last = run.part("data"), run.epochs[-1]
    figures = [("Epochs", str(last["epoch"]), f"of {run.planned}" if run.planned else "")]
    if "train_images" in data:
        tests = (data.get("test") or {}).get("images")
        held = f"{number(data['val_images'])} held back, " if data.get("val_images") else ""
        figures.append(("Training images", number(data["train_images"]), f"{held}{number(tests)} to test"))
    for name, row in result.get("accuracies", {}).items():
        chosen = f", chosen {_CHOSEN[row['chosen_on']]}" if "chosen_on" in row else ""
        remark = f"{row['images']}, top-5 {row['top5']:.2%}, epoch {row['epoch']}{chosen}"
        figures.append((f"Top-1, {name}", f"{row['top1']:.2%}", remark))
    figures.append(("Training loss", number(last.get("train_loss")), ""))
    sizes = (
        ("Parameters", "params", "without the auxiliary head"),
        ("Multiply-adds", "macs", "convolutions and linear layers"),
    )
    figures += [(title, number(run.result[key]), remark) for title, key, remark in sizes if key in run.result]
    seconds = sum(line.get("seconds") or 0 for line in run.timing)
    if seconds:
        images = sum((line.get("seconds") or 0) * (line.get("images_per_s") or 0) for line in run.timing)
        figures.append(("Time", duration(seconds), f"{number(images / seconds)} images/s"))
    return figures


def _by_class(result: dict[str, Any]) -> list[str]:
    """Return the accuracy of each class in the last evaluation."""
    found, classes = result.get("by_class") or {}, result.get("classes") or []
    name = next((name for name in ("test", "valid") if name in found), None)
    if name is None:
        return []
    rows = {
        label: f"{correct / images:.2%} ({correct} of {images})" if images else "no image"
        for label, (correct, images) in list(zip(classes, found[name], strict=False))[:_MOST_CLASSES]
    }
    return [markup.section(f"Top-1 by class, {name} images, epoch {result.get('epoch')}", markup.table(rows))]
