"""bench.nasbench201: records of fake runs, arithmetic by hand, the table, the figure, invalid input."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path

import pytest

from bench.nasbench201 import _recipe, collect, main, random_cell, runs_in, summary
from bench.nasbench201_report import RANDOM, markdown, verdict
from bench.records import RESULTS, read
from fastdarts import search_cifar
from fastdarts.settings.recipes import RECIPES
from fastdarts.spaces import Architecture
from fastdarts.spaces.lookup import CELLS, Table

DARTS, MAE, MIM = "darts-nasbench201", "mae-nas-nasbench201", "mim-darts-nasbench201"
SKIPS = Architecture(("skip_connect",) * 6)
CONVS = Architecture(("nor_conv_3x3",) * 6)


def accuracy(cell: Architecture) -> float:
    """In the made-up table: 100 for number 15,624, 0 for number 0, and even steps between: 50 in the mean."""
    return 100 * cell.number / (CELLS - 1)


def write_run(folder: Path, recipe: str, seed: int, cells: Sequence[Architecture], images: int = 10, **more: object) -> Path:
    """A finished run that stood at each of the cells after an epoch."""
    folder.mkdir(parents=True)
    given = {"recipe": recipe, "seed": seed, "data": "cifar-10-batches-py", "epochs": len(cells), "device": "cpu"}
    settings = asdict(search_cifar.resolve(given | {"threads": 1} | more).settings)
    data = {"root": "cifar-10-batches-py", "train_images": images, "val_images": 20, "is_sample": False}
    facts = {"settings": settings, "data": data, "commit": "0123abc", "versions": {"torch": "2"}, "machine": {"cores": 2}}
    (folder / "settings.json").write_text(json.dumps(facts))
    epochs = [
        {"kind": "epoch", "epoch": n, "step": n, "genotype": str(cell), "cells": {"normal": {"skips": 1, "operations": 6}}}
        for n, cell in enumerate(cells, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"kind": "step", "step": 1}, *epochs]))
    (folder / "timing.jsonl").write_text('{"epoch": 1, "seconds": 60}\n{"epoch": 2, "seconds": 30}\n')
    (folder / "genotype.json").write_text(cells[-1].to_json())
    (folder / "status").write_text("finished  epoch 2/2\n")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three seeds each: DARTS ends with skips alone, MAE-NAS with convolutions, of 1 x 1 pixels in the first seed."""
    folder = tmp_path / "sweep"
    for seed in range(3):
        write_run(folder / f"recipe={DARTS},seed={seed}", DARTS, seed, [CONVS, SKIPS])
        last = Architecture(("nor_conv_1x1" if seed == 0 else "nor_conv_3x3",) * 6)
        write_run(folder / f"recipe={MAE},seed={seed}", MAE, seed, [SKIPS, last])
    (folder / "logs").mkdir()
    (folder / "sweep.json").write_text("{}")
    return folder


def run_command(argv: list[object], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    status = main(list(map(str, argv)))
    return status, *capsys.readouterr()


def test_sweep_gives_records_table_and_figure(
    sweep: Path, made_up_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "results"
    status, out, _ = run_command(
        [sweep, "--benchmark", made_up_table, "--record", "--results", results, "--pictures", results], capsys
    )
    assert status == 0
    records = read(results / "nasbench201.jsonl")
    kinds = [record["kind"] for record in records]
    assert kinds == ["search"] * 6 + ["random"] * 3 + ["recipe"] * 3 + ["all"]
    assert all(record["commit"] and record["machine"] and record["date"] == records[0]["date"] for record in records)
    first = records[3]
    assert [(r["recipe"], r["seed"]) for r in records[:6]] == [(recipe, s) for recipe in (DARTS, MAE) for s in range(3)]
    assert (first["cell"], first["skips"], first["epochs"], first["minutes"]) == (
        str(Architecture(("nor_conv_1x1",) * 6)),
        0,
        2,
        1.5,
    )
    assert first["accuracies"]["cifar10_test"] == pytest.approx(50)  # number 222222 to base 5 is 7812, half of 15,624
    assert first["ranks"] == dict.fromkeys(("cifar10_test", "cifar100_test", "imagenet16_test"), 15625 - 7812)
    assert first["by_epoch"] == {"epoch": [1, 2], "skips": [6, 0], "cifar10_test": pytest.approx([25, 50])}
    assert (first["mask_ratio"], first["patch_size"], first["objective"], first["method"]) == (0.5, 4, "mae", "darts-1st")
    assert first["run"]["commit"] == "0123abc" and (first["train_images"], first["val_images"]) == (10, 20)
    assert out == markdown(records)
    svg = (results / "nasbench201.svg").read_text()
    for text in (f"{DARTS}, 3 seeds", f"{MAE}, 3 seeds", "a collapse begins", "random choice, mean"):
        assert f">{text}<" in svg
    assert (results / "nasbench201.png").is_file()
    for recipe in (DARTS, MAE):
        assert "skip connections in the derived cell" in (results / f"nasbench201-{recipe}.svg").read_text()


def test_figures_match_hand_computation(sweep: Path, made_up_table: Path) -> None:
    """25, 25, 25 for DARTS; 50, 75, 75 for MAE-NAS: mean 200/3, squared deviations 2500/9 + 2 * 625/9 = 1250/3, over n - 1."""
    records = collect(runs_in([sweep]), Table.read(made_up_table))
    darts, mae, chosen = (record for record in records if record["kind"] == "recipe")
    assert (darts["mean"], darts["deviation"], darts["above"]) == (pytest.approx(25), 0, pytest.approx(-25))
    assert (mae["mean"], mae["deviation"]) == (pytest.approx(200 / 3, abs=1e-3), pytest.approx(sqrt(1250 / 6), abs=1e-3))
    assert mae["above"] == pytest.approx(200 / 3 - 50, abs=1e-3) and mae["seeds"] == [0, 1, 2]
    # of three numbers even in 0..1 the sum is at least 0.75 in 1 - 0.75^3 / 6 of cases, and at least 2 in 1/6 of them
    assert darts["chance"] == pytest.approx(1 - 0.75**3 / 6, abs=0.01) and mae["chance"] == pytest.approx(1 / 6, abs=0.01)
    cells = [Architecture.from_number(random.Random(seed).randrange(15625)) for seed in range(3)]
    assert [record["cell"] for record in records if record["kind"] == "random"] == list(map(str, cells))
    assert darts["above_seeds"] == pytest.approx(25 - sum(map(accuracy, cells)) / 3, abs=1e-5) and chosen["above_seeds"] == 0
    assert chosen["recipe"] == RANDOM and chosen["mean"] == pytest.approx(sum(map(accuracy, cells)) / 3, abs=1e-5)
    (whole,) = (record for record in records if record["kind"] == "all")
    assert whole["mean"]["cifar10_test"] == pytest.approx(50)
    # even steps of d: d^2 (n^2 - 1) / 12
    assert whole["deviation"]["cifar10_test"] == pytest.approx(100 / 15624 * sqrt((15625**2 - 1) / 12), abs=1e-4)


def test_table_marks_recipes_not_better_than_random(sweep: Path, made_up_table: Path) -> None:
    lines = markdown(collect(runs_in([sweep]), Table.read(made_up_table))).splitlines()
    # random choice with these seeds: 88.55, 14.09 and 90.51, 64.38 in the mean
    assert lines[2].startswith(f"| `{DARTS}` | 25.00 ± 0.00 | 25.00, 25.00, 25.00 | 11719, 11719, 11719 | 6, 6, 6 | **does not")
    assert lines[3].startswith(f"| `{MAE}` | 66.67 ± 14.43 | 50.00, 75.00, 75.00 | 7813, 3907, 3907 | 0, 0, 0 | **not shown")
    assert lines[4].startswith("| random choice, seeds 0, 1, 2 | ") and lines[5].startswith("| random choice, all 15,625 cells")
    assert "| 50.00 ± 28.87, median 50.00 |" in lines[5] and len({line.count("|") for line in lines[:6]}) == 1
    assert lines[7] == (
        "2 epochs on 10 + 20 images of cifar-10-batches-py, batch 64, C = 16, 5 cells a stage, at most 1.5 minutes a run; "
        "looked up in made_up.csv."
    )


def test_verdicts() -> None:
    """A recipe beats random choice only if above both means with a chance below 5 %."""

    def group(above: float, above_seeds: float, chance: float) -> dict:
        return {"above": above, "above_seeds": above_seeds, "chance": chance, "seeds": [0, 1, 2]}

    figures = "+5.00 points to its mean, +1.00 to that of the same seeds; 3 random cells do as well in 1.2 % of draws"
    assert verdict(group(5.0, 1.0, 0.012)) == f"beats it: {figures}"
    assert verdict(group(5.0, 1.0, 0.05)).startswith("**not shown to beat it**: +5.00 points to its mean")
    assert verdict(group(-0.5, 2.0, 0.6)).startswith("**does not beat it**: -0.50 points to its mean, +2.00 to that")
    assert verdict(group(0.5, -2.0, 0.01)).startswith("**does not beat it**: +0.50 points to its mean, -2.00 to that")


def test_single_seed_has_no_deviation() -> None:
    one = summary([{"recipe": MAE, "seed": 4, "accuracies": {"cifar10_test": 90.0}}], {4: 80.0}, [80.0, 90.0, 90.0, 10.0])
    assert (one["deviation"], one["mean"], one["above"], one["above_seeds"], one["seeds"]) == (None, 90, 22.5, 10, [4])
    assert one["chance"] == pytest.approx(0.5, abs=0.02)


def test_individual_runs_are_accepted(sweep: Path, made_up_table: Path, capsys: pytest.CaptureFixture) -> None:
    runs = sorted(sweep.glob("recipe=*"))
    status, out, _ = run_command([*runs, "--benchmark", made_up_table], capsys)
    assert status == 0 and out == markdown(collect(runs_in([sweep]), Table.read(made_up_table)))
    status, out, _ = run_command([runs[0], "--benchmark", made_up_table], capsys)
    assert status == 0 and f"| `{DARTS}` | 25.00 | 25.00 |" in out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: (s / "a/status").write_text("stopped\n"), "a has not finished"),
        (lambda s: (s / "a/status").unlink(), "a has not finished"),
        (lambda s: write_run(s / "b", MAE, 0, [CONVS]), "are both mae-nas-nasbench201 with seed 0"),
        (lambda s: write_run(s / "b", DARTS, 0, [CONVS, CONVS]), "different lengths cannot be compared: a 1 epochs, 10 train"),
        (lambda s: write_run(s / "b", DARTS, 0, [CONVS], images=9), "b 1 epochs, 9 train images"),
        (lambda s: write_run(s / "b", MAE, 1, [CONVS], momentum=0.8), "are of one recipe, but --momentum is 0.9 but was 0.8"),
        (lambda s: write_run(s / "b", DARTS, 0, [CONVS], init_channels=8), "64 a batch, 8 channels, 5 cells a stage"),
        (lambda s: (s / "a/settings.json").write_text("{}"), "does not say how the run was made"),
        (lambda s: (s / "a/metrics.jsonl").unlink(), "not a search's run folder"),
        (lambda s: (s / "a").rename(s.parent / "a"), "holds no run folder, nor is it one"),
    ],
)
def test_incomparable_runs_exit_with_one_line(change, reason: str, tmp_path: Path, made_up_table: Path, capsys) -> None:
    folder = tmp_path / "runs"
    write_run(folder / "a", MAE, 0, [CONVS])
    change(folder)
    status, out, err = run_command([folder, "--benchmark", made_up_table], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("python -m bench.nasbench201: error: ") and reason in err


def test_other_spaces_and_tables_are_rejected(tmp_path: Path, made_up_table: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / "a", MAE, 0, [CONVS])
    assert "no such file" in run_command([run, "--benchmark", tmp_path / "no_table"], capsys)[2]
    genotype = "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1)], normal_concat=[2], "
    genotype += "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2])"
    line = {"kind": "epoch", "epoch": 1, "step": 1, "genotype": genotype}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (run / "genotype.json").unlink()
    assert "is no search in NAS-Bench-201" in run_command([run, "--benchmark", made_up_table], capsys)[2]


def test_random_choice_figures_of_real_table(shared_data: Path) -> None:
    table = Table.read(shared_data / "nasbench201.csv")
    one = table.accuracies(random_cell(0))["cifar10_test"]
    values = [table.accuracies(table.architecture(index))["cifar10_test"] for index in range(CELLS)]
    assert 10 <= one <= max(values) < 95
    assert sum(values) / CELLS == pytest.approx(87.1, abs=0.5)  # a tenth of the cells learn nothing


@pytest.mark.skipif(not (RESULTS / "nasbench201.jsonl").is_file(), reason="no record has been made yet")
def test_committed_records_are_complete() -> None:
    """Of each collection: its table can be made from them, and every search has a recipe and its epochs."""
    records = read(RESULTS / "nasbench201.jsonl")
    for date in dict.fromkeys(record["date"] for record in records):
        own = [record for record in records if record["date"] == date]
        assert markdown(own).count("\n| ") == 2 + sum(record["kind"] == "recipe" for record in own)
        for record in own:
            assert record["commit"] and "+changes" not in record["commit"]
            if record["kind"] == "search":
                assert record["recipe"] in RECIPES and len(record["by_epoch"]["epoch"]) == record["epochs"]
                assert record["run"]["commit"]


def test_run_with_overridden_recipe_flags_is_not_of_recipe(tmp_path: Path, made_up_table: Path) -> None:
    changed = {"a": (MAE, {"objective": "supervised"}), "b": (MIM, {"nesterov": True}), "c": (MIM, {})}
    names = []
    for folder, (recipe, more) in changed.items():
        run = write_run(tmp_path / folder, recipe, 1, [CONVS], **more)
        names += [r["recipe"] for r in collect(runs_in([run]), Table.read(made_up_table)) if r["kind"] == "search"]
    assert names == [DARTS, "darts-1st joint", MIM]


def test_run_without_recipe_matches_equal_recipe(tmp_path: Path, made_up_table: Path) -> None:
    folder = write_run(tmp_path / "run", MAE, 1, [CONVS])
    saved = json.loads((folder / "settings.json").read_text())
    for gone in ("recipe", "method"):  # as in runs from before there were any
        del saved["settings"][gone]
    for change, name in (({}, MAE), ({"patch_size": 2}, "darts-1st mae")):
        (folder / "settings.json").write_text(json.dumps(saved | {"settings": saved["settings"] | change}))
        (record,) = [r for r in collect(runs_in([folder]), Table.read(made_up_table)) if r["kind"] == "search"]
        assert (record["recipe"], record["method"]) == (name, "darts-1st")


def test_space_spelling_is_normalised(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), MAE, seed, [CONVS]) for seed in range(3)]
    saved = [json.loads((run / "settings.json").read_text()) for run in runs]
    saved[1]["settings"]["space"] = "NASBench201"
    del saved[2]["settings"]["space"]
    for run, facts in zip(runs, saved, strict=True):
        (run / "settings.json").write_text(json.dumps(facts))
    assert [_recipe(run) for run in runs_in(runs)] == [MAE, MAE, "darts-1st mae"]
