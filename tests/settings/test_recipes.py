"""Published searches by name, and the spaces, methods and objectives of the commands: each runs, bad ones are refused."""

import json
import os
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastdarts import search_cifar, search_imagenet
from fastdarts.cli.resolve_search import without_effect
from fastdarts.networks import STANDARD, count
from fastdarts.registry import METHODS
from fastdarts.runs.build_search import build
from fastdarts.runs.plan_search import _rate
from fastdarts.settings import ConfigError, SearchCifarSettings
from fastdarts.settings.recipes import RECIPES
from fastdarts.spaces import NASBENCH201, Architecture
from fastdarts.spaces.lookup import Table
from fastdarts.supernet.eager_candidates import SkipDropout
from fastdarts.sweep.grid import COMMANDS as SWEPT
from fastdarts.sweep.grid import Combination, Grid
from tests.support import runs

COMMANDS = {"search_cifar": search_cifar, "search_imagenet": search_imagenet}
CIFAR = [name for name, recipe in RECIPES.items() if recipe.command == "search_cifar"]
IMAGENET = [name for name, recipe in RECIPES.items() if recipe.command == "search_imagenet"]
TINY = {
    "batch_size": 4,
    "layers": 3,
    "stage_cells": 1,
    "init_channels": 4,
    "patch_size": 2,
    "epochs": 1,
    "begin": 0,
    "threads": 1,
}
STAGED = TINY | {"epochs": 3, "progressive_layers": "0,1,2"}
TABLE = Path(__file__).parents[2] / "shared" / "data" / "nasbench201.csv"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images of 16 pixels in two classes."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(16) % 2)
    return path


@pytest.fixture(autouse=True)
def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take longer than all the rest, and have tests of their own."""
    runs.hasten(monkeypatch)


def flags(values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def search(data: Path, folder: Path, *more: str, **tiny: object) -> int:
    return search_cifar.main(["--data", str(data), "--save", str(folder), *more, *flags(TINY | tiny)])


def epochs(folder: Path) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_values_and_flags_override(name: str, data: Path) -> None:
    recipe, command = RECIPES[name], COMMANDS[RECIPES[name].command]
    settings = command.resolve({"recipe": name, "data": str(data), "seed": 7}).settings
    assert {k: getattr(settings, k) for k in recipe.settings} == dict(recipe.settings)
    assert settings.seed == 7 and settings.recipe == name
    other = command.resolve({"recipe": name, "data": str(data), "batch_size": 5, "mask_ratio": 0.25}).settings
    assert (other.batch_size, other.mask_ratio) == (5, 0.25)
    assert recipe.source and recipe.published


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_learning_rate_is_for_its_batch_size(name: str) -> None:
    resolve = COMMANDS[RECIPES[name].command].resolve
    whole, half = (resolve({"recipe": name, "data": "x"} | more) for more in ({}, {"batch_size": 48}))
    assert _rate(whole) == []
    (line,) = _rate(half)
    whole, half = whole.settings, half.settings
    assert f"was published for batch {whole.batch_size}; scaled linearly, 48 images" in line
    assert line.endswith(f"{whole.learning_rate * 48 / whole.batch_size:.3g}")


@pytest.mark.parametrize("name", CIFAR)
def test_every_recipe_runs(name: str, data: Path, tmp_path: Path) -> None:
    staged = "p-darts" in RECIPES[name].settings["method"]
    wide = {"init_channels": 8} if RECIPES[name].settings["method"] == "pc-darts" else {}
    wide |= {"init_channels": 12, "epochs": 2} if RECIPES[name].settings["method"] == "drnas-progressive" else {}
    wide |= {"select": "argmax"} if "select" in RECIPES[name].settings else {}  # which has tests of its own
    assert search(data, tmp_path / "run", "--recipe", name, **((STAGED if staged else TINY) | wide)) == 0
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert saved["settings"]["recipe"] == name
    space = RECIPES[name].settings.get("space", "s0")
    assert saved["space"]["name"].lower() == space
    last = epochs(tmp_path / "run")[-1]
    assert last["alpha_loss"] is not None and last["valid"]["loss"] > 0
    assert last["genotype"].startswith("|" if space == "nasbench201" else "Genotype(")


@pytest.mark.parametrize("name", IMAGENET)
def test_every_imagenet_recipe_runs(name: str, tmp_path: Path) -> None:
    tree, folder = runs.write_tree(tmp_path / "images"), tmp_path / "run"
    argv = ["--recipe", name, *runs.TINY, *runs.SPLIT, *flags({"epochs": 2, "begin": 1, "threads": 1})]
    assert search_imagenet.main(["--data", str(tree), "--save", str(folder), *argv]) == 0
    saved = json.loads((folder / "settings.json").read_text())["settings"]
    values = dict(RECIPES[name].settings)
    assert {setting: saved[setting] for setting in values} == values
    assert (saved["recipe"], saved["partial_channels"], saved["edge_normalization"]) == (name, 2, True)
    last = epochs(folder)[-1]
    assert last["alpha_loss"] > 0 and last["valid"]["loss"] > 0 and last["genotype"].startswith("Genotype(")


def test_published_values_reach_settings(data: Path) -> None:
    given = {"data": str(data)}

    def cifar(**more: object) -> SearchCifarSettings:
        return search_cifar.resolve(given | more).settings

    bench = cifar(recipe="darts-nasbench201")
    assert (bench.epochs, bench.batch_size, bench.nesterov, bench.weight_decay) == (100, 64, True, 5e-4)
    assert (bench.step_order, bench.learning_rate, bench.learning_rate_min, bench.begin) == ("weights-first", 0.025, 0.001, 0)
    mim = cifar(recipe="mim-darts-cifar100")
    assert (mim.objective, mim.mask_ratio, mim.patch_size, mim.space) == ("joint", 0.7, 8, "s0")
    stages = cifar(recipe="mae-nas-p-darts")
    assert (stages.progressive, stages.epochs, stages.skip_dropout, stages.skip_limit) == (True, 75, False, 0)
    assert cifar(method="pc-darts").partial_channels == 4
    assert cifar(method="pc-darts", epochs=10).begin == 3
    assert cifar(recipe="pc-darts", epochs=10).begin == 3
    assert cifar().method == "darts-1st" and search_imagenet.resolve(given).settings.method == "pc-darts"
    assert search_imagenet.resolve(given | {"recipe": "mae-nas-imagenet"}).settings.batch_size == 1024


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_sample(method: str) -> None:
    for command in COMMANDS.values():
        settings = command.resolve({"method": method}).settings
        ks = [settings.partial_channels, *map(int, filter(None, settings.progressive_channels.split(",")))]
        assert all(settings.init_channels % k == 0 for k in (2, *ks))
        assert settings.epochs <= 6 and settings.epochs > settings.begin


REFUSED = [
    ({"recipe": "mae"}, "--recipe mae: fastdarts.search_cifar has mae-nas-cifar10"),
    ({"recipe": "mae-nas-imagenet"}, "--recipe mae-nas-imagenet belongs to fastdarts.search_imagenet"),
    ({"recipe": "p-darts", "method": "pc-darts"}, "--recipe p-darts sets another method"),
    ({"space": "s6"}, "--space: no space 's6': give s0, s1, s2, s3, s4, s5, nasbench201"),
    ({"space": "missing.yaml"}, "missing.yaml cannot be read"),
]


@pytest.mark.parametrize(("given", "reason"), REFUSED, ids=str)
def test_invalid_choices_are_rejected(given: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        search_cifar.resolve(given)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            ["--space", "nasbench201", "--method", "pc-darts"],
            "weights of edges are of DARTS' cells only: take another --method than pc-darts",
        ),
        (["--method", "pc-darts", "--partial_channels", "3"], "C/k must be an integer"),
        (["--benchmark", "{table}"], "no table contains the cells of space S0"),
        (["--space", "nasbench201", "--benchmark", "{wrong}"], "wrong.csv"),
        (["--objective", "jigsaw", "--image_size", "12"], "tiles of 6 pixels a side"),
        (["--method", "p-darts", "--epochs", "4"], "3 stages of equal length need a multiple of 3"),
        (["--space", "{file}"], "normal edge 3: unknown sep_conv_9x9; known are none"),
        (["--patch_size", "3"], "patch"),
        (["--method", "sgas-1", "--space", "s5"], "--method sgas-1: space S5, normal edge 0 has max_pool_3x3"),
        (["--select", "perturbation", "--select_figure", "accuracy"], "the objective reads no labels"),
        (["--mask_ratio", "0.001"], "hides none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_combinations_are_rejected_at_start(
    more: list[str], reason: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "wrong.csv").write_text("index,arch_str,accuracy\n0,Genotype(),1\n")
    edges = [["skip_connect"]] * 3 + [["sep_conv_9x9"]] + [["skip_connect"]] * 10
    (tmp_path / "own.json").write_text(json.dumps({"normal": edges, "reduce": ["skip_connect"]}))
    names = {"table": TABLE, "wrong": tmp_path / "wrong.csv", "file": tmp_path / "own.json"}
    argv = [part.format(**names) for part in more]
    tiny = {name: value for name, value in TINY.items() if f"--{name}" not in argv}
    status = search_cifar.main(["--data", str(data), "--save", str(tmp_path / "run"), *flags(tiny), *argv])
    assert status == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_finished_run_continues_with_selection(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And not without it any more."""
    folder, given = tmp_path / "run", ["--space", "nasbench201", "--objective", "supervised"]
    more = ["--select", "perturbation", "--select_interval", "1", "--select_batches", "1", "--select_figure", "accuracy"]
    assert search(data, folder, *given) == 0
    assert search(data, folder, *given, *more) == 0
    out = capsys.readouterr().out
    assert "then selection by perturbation: 5 epochs more, 10 steps at learning rate 0.0025" in out
    assert out.count(" keeps ") == 6
    found, last = json.loads((folder / "genotype.json").read_text()), epochs(folder)[-1]
    assert (found["select"], found["epoch"], found["text"]) == ("perturbation", 6, last["genotype"])
    assert [len(record.get("decisions", ())) for record in epochs(folder)] == [0, 1, 1, 1, 1, 2]
    assert search(data, folder, *given) == 2
    assert "continue it with --select perturbation" in capsys.readouterr().err


def test_images_of_33_pixels_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "odd.npz", images=np.zeros((16, 33, 33, 3), np.uint8), labels=np.arange(16) % 2)
    assert search(tmp_path / "odd.npz", tmp_path / "run", "--objective", "jigsaw") == 2
    assert "--image_size 33 does not fit" in capsys.readouterr().err


def test_nas_bench_201_rejects_large_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search_imagenet.main(["--space", "nasbench201", "--method", "darts-1st", "--save", str(tmp_path / "run")]) == 2
    assert "use fastdarts.search_cifar" in capsys.readouterr().err


def test_custom_space_is_searched(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"candidates": ["none", "skip_connect", "sep_conv_3x3"], "nodes": 2}))
    assert search(data, tmp_path / "run", "--space", str(file)) == 0
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert saved["candidates"] == {kind: [["none", "skip_connect", "sep_conv_3x3"]] * 5 for kind in ("normal", "reduce")}
    assert len(epochs(tmp_path / "run")[-1]["ops"]["normal"]) == 5
    file.write_text(json.dumps({"candidates": ["none", "skip_connect", "dil_conv_3x3"], "nodes": 2}))
    capsys.readouterr()
    assert search(data, tmp_path / "run", "--space", str(file)) == 2
    assert "its candidates are not those" in capsys.readouterr().err


@pytest.mark.skipif(not TABLE.is_file(), reason="no table of NAS-Bench-201 next to the project")
def test_found_cell_is_looked_up(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = ["--space", "nasbench201", "--benchmark", str(TABLE)]
    assert search(data, tmp_path / "run", *given, epochs=2) == 0
    found = json.loads((tmp_path / "run" / "genotype.json").read_text())
    cell = Architecture.from_text(found["text"])
    assert cell.ops == tuple(found["ops"]) and set(cell.ops) <= set(NASBENCH201.normal[0])
    counts = count(cell, STANDARD["nasbench201"])
    assert (found["params"], found["macs"]) == (counts["params"], counts["macs"])
    truth = found["benchmark"]
    assert f"cifar10_test {truth['cifar10_test']:.2f} % (rank {truth['cifar10_test_rank']} of 15625)" in capsys.readouterr().out
    assert epochs(tmp_path / "run")[-1]["benchmark"]["cifar10_test"] == truth["cifar10_test"]
    assert 10 <= truth["cifar10_test"] <= 94.37 and 1 <= truth["cifar10_test_rank"] <= 15625
    assert search(data, tmp_path / "run", *given, epochs=2) == 0  # nothing left: the same is said again
    assert json.loads((tmp_path / "run" / "genotype.json").read_text())["benchmark"] == truth


def test_run_finishes_with_ranks(data: Path, made_up_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nats_bench's files all cells are read for them, which takes minutes."""
    given, folder = ["--space", "nasbench201", "--benchmark", str(made_up_table)], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Table, "rank", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert search(data, folder, *given, epochs=1) == 75
    assert not (folder / "status").read_text().startswith("finished")
    assert "cifar10_test_rank" not in json.loads((folder / "genotype.json").read_text())["benchmark"]
    assert search(data, folder, *given, epochs=1) == 0
    assert (folder / "status").read_text().startswith("finished")
    assert json.loads((folder / "genotype.json").read_text())["benchmark"]["cifar10_test_rank"] > 0


def test_plain_p_darts_has_no_dropout(data: Path) -> None:
    counts = []
    for recipe in ("p-darts", "p-darts-without-tricks"):
        resolved = search_cifar.resolve({"recipe": recipe, "data": str(data), "init_channels": 4, "image_size": 16})
        supernet, _ = build(resolved, 2, resolved.stages[1])
        counts.append(sum(isinstance(m, SkipDropout) for m in supernet.modules()))
    assert counts[0] > 0 and counts[1] == 0


def test_every_recipe_is_documented(root: Path) -> None:
    described, _, measured = (root / "docs/recipes.md").read_text(encoding="utf-8").partition("\n## Measured here")
    assert measured  # its table begins its rows with recipes too
    for name, recipe in RECIPES.items():
        (row,) = [line for line in described.splitlines() if line.startswith(f"| `{name}` |")]
        assert recipe.source in row and recipe.published in row
        for setting, value in recipe.settings.items():
            flag = (f"--{setting} " if value else f"--no-{setting}") if isinstance(value, bool) else f"--{setting} {value}"
            assert flag in row.replace("`", " ")


IMAGES = {"data": "PATH", "image_size": 32}  # CIFAR's


def sweeps(root: Path) -> dict[str, list[Combination]]:
    """The combinations of each row of docs/recipes.md's table of sweeps."""
    described = (
        (root / "docs/recipes.md").read_text(encoding="utf-8").partition("\n| of | axes | flags |\n")[2].partition("\n\n")[0]
    )
    rows, command, checked = {}, SWEPT["search_cifar"], set()
    for line in described.splitlines()[1:]:
        name, axes, behind = line.strip("| ").split(" | ")
        given = shlex.split(axes.strip("`"))
        assert given[-2] == "--metric" and set(given[:-2:2]) == {"--grid"}
        chosen = re.match(r"`(.*)`$|none: ", behind)
        grid = Grid.parse(command, given[1:-2:2], [*flags(IMAGES), *shlex.split(chosen[1] or "")], "test")
        rows[name] = grid.combinations(elsewhere=True)
        for combination in rows[name]:
            command.check(combination.resolved, True, checked)
            assert combination.settings.recipe in RECIPES
            assert not without_effect(combination.resolved, {*grid.fixed, *combination.values})
    return rows


def test_documented_sweeps_are_valid(root: Path) -> None:
    rows = sweeps(root)
    counts = {name: len(combinations) for name, combinations in rows.items()}
    assert list(counts.values()) == [12, 12, 12, 108, 108, 16, 20, 15, 12]
    assert all(c.settings.objective == "mae" for name in rows if name.startswith("MAE-NAS") for c in rows[name])
    assert {c.settings.decoder for c in rows["MAE-NAS, table 1 (skips by mask ratio)"]} == {"single-scale"}
    ablations = [name for name, recipe in RECIPES.items() if recipe.source == "MIM-DARTS, table 7"]
    by_objective = {RECIPES[name].settings["objective"]: name for name in ("darts-1st", "mim-darts-cifar10", *ablations)}
    alike = [(c, c.values["recipe"]) for c in rows["MIM-DARTS, table 6"]]
    alike += [(c, by_objective[c.values["objective"]]) for c in rows["MIM-DARTS, table 7"]]
    for combination, name in alike:
        ours, recipe = combination.settings, RECIPES[name].settings
        assert {setting: getattr(ours, setting) for setting in recipe} == dict(recipe)
        alone = search_cifar.resolve({"recipe": name, "seed": ours.seed} | IMAGES).settings
        # a mask is of no effect on those whose recipes have none
        assert replace(ours, recipe=name, mask_ratio=alone.mask_ratio, patch_size=alone.patch_size) == alone
    padding = {c.settings.objective: c.settings.crop_padding for c in rows["MIM-DARTS, table 6"]}
    others = {"supervised+colourisation": 0, "supervised+jigsaw": 0}
    assert padding == {"supervised+rotation": 4, "joint": 4} | others
