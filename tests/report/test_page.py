"""The report of a run folder: complete, self-contained, escaped, and true about what it shows."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from fastdarts.objectives import OBJECTIVES
from fastdarts.report import ReportError, draw_alpha, draw_collapse, draw_losses, write_report
from fastdarts.report.facts import headline, key_figures
from fastdarts.report.heatmap import candidate_columns, edge_pairs, spread
from fastdarts.report.page import _notices
from fastdarts.report.run import read_run
from fastdarts.spaces.genotype import Genotype

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags and text; fails on a tag that is not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def change(path, **given):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | given))


def change_epochs(path, **given):
    """Change keys of every epoch's record of a metrics.jsonl."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [record | given if record["kind"] == "epoch" else record for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_finished_run(new_run):
    run = new_run()
    report = write_report(run)
    assert report == run / "report.html"
    for name in ("cell_normal", "cell_reduce", "losses", "alpha", "collapse"):
        ElementTree.parse(run / f"{name}.svg")
        assert (run / f"{name}.png").stat().st_size > 1000
    html = report.read_text()
    page = Page(html)
    genotype = Genotype.from_json((run / "genotype.json").read_text())
    known = ["not ImageNet", "12\u202f811", "57.5 % below baseline 0.9", "412 images/s", "2 min 38 s", "0123abc", "2.15"]
    for text in (str(genotype), *known, "train/a/broken.JPEG: truncated", "2 files excluded", "mask_ratio"):
        assert text in page.text
    assert "Unfinished" not in page.text and "collapsed" not in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 5
    assert not re.search(r"https?:|<script|<link|@import|\bsrc=\"(?!data:)|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:url\(#|href=\"#)([^\")]+)", html)
    assert set(used) <= set(ids)
    assert not list(run.glob("*.tmp"))


def test_output_is_bytewise_reproducible(new_run):
    run = new_run(epochs=1)
    first, second = ({p.name: p.read_bytes() for p in (write_report(run), *run.glob("*.[sp][vn]g"))} for _ in range(2))
    assert first == second and len(first) == 12  # the page, five figures twice, the reconstruction


def test_unfinished_run_without_optional_files(new_run):
    run = new_run(epochs=1, planned=50)
    for name in ("genotype.json", "reconstruction.png", "excluded.txt", "timing.jsonl"):
        (run / name).unlink()
    page = Page(write_report(run).read_text())
    assert "1 of 50 epochs are done" in page.text
    assert "Genotype(normal=" in page.text and (run / "cell_reduce.png").is_file()
    assert "Reconstruction" not in page.text and "0 files excluded" in page.text


def test_run_with_metrics_only(new_run):
    run = new_run(epochs=2)
    for path in run.iterdir():
        if path.name != "metrics.jsonl":
            path.unlink()
    change_epochs(run / "metrics.jsonl", ops=None, edges=None, cells=None, genotype="", valid=None, train_loss=None)
    page = Page(write_report(run).read_text())
    assert "No genotype is recorded yet" in page.text and not (run / "alpha.svg").exists()


def test_supervised_run_on_real_data(new_run):
    run = new_run(epochs=2, planned=2, objective="supervised")
    change(run / "settings.json", data={"root": "/data/imagenet", "is_sample": False}, note={"a": [1, None]})
    valid = {"loss": 2.5, "baseline": 2.0, "top1": 12.5, "top5": None}
    change_epochs(run / "metrics.jsonl", valid=valid, hessian=3.5, ops=None)
    page = Page(write_report(run).read_text())
    for text in ("Supervised search on imagenet", "25.0 % above baseline 2", "12.5", '{"a": [1, null]}'):
        assert text in page.text
    assert "not ImageNet" not in page.text
    assert "Hessian" in (run / "collapse.svg").read_text() and "validation top1" in (run / "losses.svg").read_text()


def test_sample_search_has_notice(new_run):
    run = new_run(epochs=1)
    for command in ("search_cifar", "search_imagenet"):
        change(run / "settings.json", command=command)
        notice, *_ = _notices(read_run(run))
        assert "This is not ImageNet and not CIFAR" in notice


def test_every_objective_has_own_title(new_run):
    run, headlines = new_run(epochs=1), set()
    for objective in OBJECTIVES:
        change(run / "settings.json", settings={"objective": objective})
        headlines.add(headline(read_run(run)))
    assert len(headlines) == len(OBJECTIVES) and not any(h.startswith("Architecture") for h in headlines)


def test_true_accuracy_belongs_to_result(new_run):
    run = new_run(epochs=2)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "epoch":
            record["benchmark"] = {"cifar10_test": 90.25 + record["epoch"]}
    records[-1]["stopped"] = {"rule": "skips", "after": 2, "epoch": 1, "why": "too many"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert ("True accuracy", "91.25 %") in [figure[:2] for figure in key_figures(read_run(run))]
    del records[-1]["stopped"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert ("True accuracy", "92.25 %") in [figure[:2] for figure in key_figures(read_run(run))]


def test_losses_belong_to_result(new_run):
    """Of the epoch that an early stop chose, and the evaluation that was known then."""
    run = new_run(epochs=3)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "epoch":
            number = record["epoch"]
            record |= {"train_loss": 10.0 + number, "valid": None if number == 2 else {"loss": 20.0 + number}}
    records[-1]["stopped"] = {"rule": "eigenvalue", "after": 3, "epoch": 2, "why": "it grew"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = key_figures(read_run(run))
    assert ("Training loss", "12", "of epoch 2") in figures and ("Validation loss", "21") in [f[:2] for f in figures]
    write_report(run)
    assert "weights after epoch 2" in (run / "alpha.svg").read_text()


def test_later_lookup_is_read_from_genotype_json(new_run):
    run = new_run(epochs=2)
    found = json.loads((run / "genotype.json").read_text()) | {"benchmark": {"cifar10_test": 93.5, "cifar10_test_rank": 7}}
    (run / "genotype.json").write_text(json.dumps(found))
    assert ("True accuracy", "93.5 %") in [figure[:2] for figure in key_figures(read_run(run))]


def test_incomplete_last_line_is_ignored(new_run):
    run = new_run(epochs=2)
    whole = (run / "metrics.jsonl").read_text()
    records = read_run(run).records
    for ending in ('{"kind": "step", "epo', '{"kind"', '{"kind": "epoch", "valid": {"loss": 1.0}'):
        (run / "metrics.jsonl").write_text(whole + ending)
        assert read_run(run).records == records
    (run / "metrics.jsonl").write_text(whole.rstrip("\n"))  # by hand, say
    assert read_run(run).records == records


@pytest.mark.parametrize(("skips", "loud"), [(4, False), (5, True)])
def test_collapse_has_notice(new_run, skips, loud):
    run = new_run(epochs=1)
    change_epochs(run / "metrics.jsonl", ops=None)
    genes = [("skip_connect" if number < skips else "sep_conv_3x3", 0) for number in range(8)]
    plain = [("sep_conv_3x3", 1)] * 8
    fields = {"normal": plain, "normal_concat": [2, 3, 4, 5], "reduce": genes, "reduce_concat": [2, 3, 4, 5]}
    (run / "genotype.json").write_text(Genotype.from_fields(fields).to_json())
    text = Page(write_report(run).read_text()).text
    assert ("The reduce cell has collapsed" in text) == loud
    assert "The normal cell has collapsed" not in text


def test_html_in_text_is_escaped(new_run):
    hostile = "</td><script>alert('x')</script><img src=x onerror=y>&amp;"
    run = new_run(epochs=1, objective=hostile, **{hostile: hostile})
    change_epochs(run / "metrics.jsonl", ops=None)
    change(run / "settings.json", commit=hostile, command=hostile, machine={hostile: hostile})
    (run / "excluded.txt").write_text(hostile + "\n")
    html = write_report(run).read_text()
    page = Page(html)
    assert "<script" not in html and "onerror=y>" not in html
    assert page.text.count(hostile) >= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no epoch is finished yet"),
        ('{"kind": "step", "step": 1, "epoch": 1, "train_loss": 1}\n', "no epoch is finished yet"),
        ('{"kind": "epoch", "epoch": 1}\n{"kind": "epo\n', "line 2 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"kind": "month"}\n', "line 1: kind is epoch or step"),
        ('{"kind": "epoch", "epoch": 0}\n', "line 1: epoch is 0"),
        ('{"kind": "epoch"}\n', "line 1: epoch is None"),
        ('{"kind": "epoch", "epoch": 1, "train_loss": "low"}\n', "line 1: train_loss is 'low'"),
        ('{"kind": "epoch", "epoch": 1, "valid": {"loss": "low"}}\n', "line 1: valid is"),
        ('{"kind": "epoch", "epoch": 1, "genotype": "Genotype()"}\n', "a genotype has the fields"),
    ],
)
def test_invalid_metrics_are_named(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_figures_need_finished_epoch(tmp_path):
    step = {"kind": "step", "step": 1, "epoch": 1, "train_loss": 1.0, "alpha_loss": None}
    for draw in (draw_losses, draw_collapse, lambda records, path: draw_alpha(records, {}, path)):
        with pytest.raises(ValueError, match="no epoch is finished yet"):
            draw([step], tmp_path / "figure")
    with pytest.raises(ValueError, match="weights"):
        draw_alpha([{"kind": "epoch", "epoch": 1}], {}, tmp_path / "figure")


def test_weights_are_assigned_to_operations():
    rows = [[0.75, 0.25, 0.0], [0.5, 0.3, 0.2]]
    ops, columns = candidate_columns(rows, [["b", "c"], ["a", "b", "c"]])
    assert ops == ["b", "c", "a"]
    table = spread(rows, columns, 3)
    np.testing.assert_array_equal(table.filled(-1), [[0.75, 0.25, -1], [0.3, 0.2, 0.5]])
    assert candidate_columns(rows, None)[0] == ["op 0", "op 1", "op 2"]
    assert edge_pairs(14)[:6] == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (0, 2)] and edge_pairs(14)[-1] == (4, 3)
