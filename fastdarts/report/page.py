"""Generate one self-contained page about a search from its run folder alone."""

import json
from pathlib import Path

from fastdarts.report import markup, parts
from fastdarts.report.facts import headline, key_figures
from fastdarts.report.run import Run, read_run
from fastdarts.spaces.genotype import collapse_line

_COLLAPSED = """{skips} of {genes} operations are skip connections. Such cells usually train badly:
stop earlier, warm up longer, or use a method that resists collapse."""
_LOSSES = "Training and architecture step (pale: single steps), and validation with its baseline."
_ALPHA = "The relaxed weight of each operation: mean over the edges by epoch, and edge by edge where the result was read."
_COLLAPSE = """Signs of collapse after each epoch: skips of the derived cell (dashed: where the warning begins, ringed: warned),
how decided the weights are, how far skip outweighs convolutions, and, where it was asked for, the Hessian's eigenvalue."""
_STOPPED = "{why}. The search ended after epoch {after}{of}; its result is the genotype of epoch {epoch}."
_PICTURES = "Validation images: masked input, reconstruction, and original."


def write_report(run: str | Path) -> Path:
    """Draw cells and curves into the run folder of a search, finished or not, and write its report.html.

    Writes cell_KIND for each kind of cell, losses, alpha, collapse (.svg and .png each), and then report.html atomically, by
    renaming a finished file. Returns the path of report.html. A failed drawing is logged, noted on the page and omitted there.
    Raises ReportError if the folder is not that of a search with at least one epoch, OSError if it is not writable.
    """
    content = read_run(run)
    drawings = {"losses": _losses, "collapse": _collapse} | ({"alpha": _alpha} if content.has_weights else {})
    missing = parts.draw_all(content, drawings | parts.cells(content))
    return parts.publish(content, _page(content, missing))


def _losses(run: Run, path: Path) -> None:
    from fastdarts.report.curves import draw_losses

    draw_losses(run.records, path)


def _collapse(run: Run, path: Path) -> None:
    from fastdarts.report.collapse import draw_collapse

    draw_collapse(run.records, path)


def _alpha(run: Run, path: Path) -> None:
    from fastdarts.report.curves import draw_alpha

    draw_alpha(run.records, run.settings, path)


def _page(run: Run, missing: dict[str, str]) -> str:
    title, name = headline(run), run.folder.resolve().name
    remark = " · ".join(map(str, (name, run.settings.get("command", "search"))))
    content = [markup.header(title, remark), *_notices(run), _result(run, missing), _curves(run, missing), _pictures(run)]
    return markup.page(f"{title} · {name}", *content, *parts.tables(run), _lists(run))


def _notices(run: Run) -> list[str]:
    notices = parts.sample_notice(run, "a search", "the cells or the losses")
    done = run.epochs[-1]["epoch"]
    if run.stopped:
        of = f" of {run.planned}" if run.planned else ""
        notices.append(markup.notice(f"Early stop ({run.stopped['rule']})", _STOPPED.format(of=of, **run.stopped)))
    elif run.planned and done < run.planned:
        text = f"{done} of {run.planned} epochs are done; this report shows the results so far."
        notices.append(markup.notice("Unfinished search", text))
    for kind in run.kinds:
        skips, genes = run.skips(kind)
        if genes and skips >= collapse_line(genes):
            text = _COLLAPSED.format(skips=skips, genes=genes)
            notices.append(markup.notice(f"The {kind} cell has collapsed", text))
    return notices


def _result(run: Run, missing: dict[str, str]) -> str:
    figures = markup.key_figures(key_figures(run))
    if run.genotype is None:
        return markup.section("Result", figures, markup.paragraph("No genotype is recorded yet."))
    return markup.section("Result", figures, *parts.genotype(run, missing))


def _curves(run: Run, missing: dict[str, str]) -> str:
    captions = {"losses": _LOSSES} | ({"alpha": _ALPHA} if run.has_weights else {}) | {"collapse": _COLLAPSE}
    return markup.section("Curves", *(parts.drawn(run, name, name, missing, caption) for name, caption in captions.items()))


def _pictures(run: Run) -> str:
    path = run.folder / "reconstruction.png"
    if not path.is_file():
        return ""
    return markup.section("Reconstruction", markup.image(path, "masked, reconstructed, original", _PICTURES))


def _lists(run: Run) -> str:
    genotypes = [f"{epoch['epoch']}  {epoch['genotype']}" for epoch in run.epochs if epoch.get("genotype")]
    decisions = [f"{epoch['epoch']}  {json.dumps(each)}" for epoch in run.epochs for each in epoch.get("decisions") or ()]
    return markup.section(
        "Excluded files, genotypes by epoch",
        *parts.left_out(run),
        markup.details("Genotype after each epoch", genotypes),
        *([markup.details("Decisions of the selection, before each epoch", decisions)] if decisions else []),
    )
