"""The figure of collapse: values, marks, and the early stop."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fastdarts.report import ReportError, collapse, draw_collapse, write_report
from tests.report.test_page import Page, change_epochs

STOPPED = {"rule": "eigenvalue", "after": 5, "epoch": 2, "why": "the eigenvalue grew <b>"}
TITLES = [
    "skip connections in the derived cell",
    "entropy of the operations' weights (nats)",
    "weight of skip minus mean weight of convolutions",
    "largest eigenvalue of the validation Hessian in alpha",
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function of records: the figure that draw_collapse saves."""
    figures = []
    monkeypatch.setattr(collapse, "save", lambda figure, path: figures.append(figure))

    def draw(records):
        draw_collapse(records, tmp_path / "collapse")
        return figures[-1]

    return draw


def epochs(skips, operations=8, hessian=None, **last):
    """Records with the skips of each kind of cell epoch by epoch."""
    records = []
    for number, row in enumerate(zip(*skips.values(), strict=True), 1):
        cells = {
            kind: {"operations": operations, "skips": n, "entropy": 2 - n / 10, "skip_minus_conv": n / 100}
            for kind, n in zip(skips, row, strict=True)
        }
        record = {"kind": "epoch", "epoch": number, "cells": cells}
        records.append(record | ({} if hessian is None else {"hessian": hessian[number - 1]}))
    records[-1] |= last
    return records


def data(axes):
    """{label: [xs, ys]} of the lines of a panel."""
    return {line.get_label(): [np.asarray(v, float).tolist() for v in line.get_data()] for line in axes.lines}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_figures_and_marks(drawn):
    figure = drawn(epochs({"normal": [0, 4, 5, 6], "reduce": [1, 1, 2, 5]}, hessian=[None, 0.5, float("nan"), 2.0]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == TITLES
    skips, entropy, difference, eigenvalue = map(data, figure.axes)
    assert skips["normal"] == [[1, 2, 3, 4], [0, 4, 5, 6]] and skips["reduce"] == [[1, 2, 3, 4], [1, 1, 2, 5]]
    assert skips["collapse: 5 of 8"][1] == [5, 5]
    assert skips["warning"] == [[3, 4, 4], [5, 6, 5]]
    assert entropy["normal"][1] == [2.0, 1.6, 1.5, 1.4] and difference["reduce"][1] == [0.01, 0.01, 0.02, 0.05]
    assert eigenvalue["eigenvalue"][0] == [2, 3, 4] and eigenvalue["eigenvalue"][1][::2] == [0.5, 2.0]
    assert np.isnan(eigenvalue["eigenvalue"][1][1])
    assert legend(figure) == ["normal", "reduce", "collapse: 5 of 8", "warning"]
    first = figure.axes[0]
    assert all(axes.get_shared_x_axes().joined(first, axes) for axes in figure.axes[1:])
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", "epoch"]


def test_single_kind_of_cell_with_six_operations(drawn):
    figure = drawn(epochs({"normal": [3, 4]}, operations=6))
    skips = data(figure.axes[0])
    assert len(figure.axes) == 3
    assert skips["collapse: 4 of 6"][1] == [4, 4] and skips["warning"] == [[2], [4]]
    assert legend(figure) == ["normal", "collapse: 4 of 6", "warning"]


def test_cells_of_older_runs_have_eight_operations(drawn):
    records = epochs({"normal": [4]})
    del records[0]["cells"]["normal"]["operations"]
    assert legend(drawn(records)) == ["normal", "collapse: 5 of 8"]


@pytest.mark.parametrize(("chosen", "more"), [(2, ["result: epoch 2"]), (4, [])])
def test_early_stop_line_crosses_all_panels(drawn, chosen, more):
    stopped = STOPPED | {"after": 4, "epoch": chosen}
    figure = drawn(epochs({"normal": [0, 1, 1, 2]}, hessian=[1, 1, 2, 3], stopped=stopped))
    label = "early stop (eigenvalue) after epoch 4"
    for axes in figure.axes:
        lines = data(axes)
        assert lines[label][0] == [4, 4]
        assert [lines[name][0] for name in more] == [[2, 2]] * len(more)
    assert legend(figure)[-1 - len(more) :] == [label, *more]


def test_records_without_cells_are_drawn(drawn):
    assert len(drawn([{"kind": "epoch", "epoch": 1, "cells": None}]).axes) == 1


def test_report_of_early_stop(new_run):
    run = new_run(planned=50)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1]) | {"stopped": STOPPED}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    change_epochs(run / "metrics.jsonl", ops=None)
    page = Page(write_report(run).read_text())
    assert "Early stop (eigenvalue)" in page.text and "Unfinished search" not in page.text
    assert "the eigenvalue grew <b>. The search ended after epoch 5 of 50; its result is the genotype of epoch 2." in page.text
    assert "of 50, stopped early" in page.text
    svg = (run / "collapse.svg").read_text()
    ElementTree.fromstring(svg)
    assert {"stop", "result", "warning"} <= set(re.findall(r'<g id="(\w+)">', svg)) and "result: epoch 2" in svg


def test_missing_genotype_file_falls_back_to_chosen_epoch(new_run):
    run = new_run()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "epoch":
            line |= {"ops": None, "genotype": line["genotype"].replace("normal=[('", f"normal=[('op{line['epoch']}_")}
    lines[-1]["stopped"] = STOPPED
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "genotype.json").unlink()
    page = Page(write_report(run).read_text())
    assert "op2_" in page.text.partition("Curves")[0] and "op5_" not in page.text.partition("Curves")[0]


@pytest.mark.parametrize("stopped", [{"rule": "skips"}, STOPPED | {"after": "5"}, STOPPED | {"more": 1}, "skips"])
def test_damaged_early_stop_record_is_named(tmp_path, stopped):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "epoch", "epoch": 1, "stopped": stopped}) + "\n")
    with pytest.raises(ReportError, match="line 1: stopped is"):
        write_report(tmp_path)
