"""What searches in NAS-Bench-201 found, compared with random choice: `python -m bench.nasbench201 FOLDER... --benchmark TABLE`.

A FOLDER is that of a finished run of search_cifar, or one of such runs, as a sweep's. The cells that they found, and those
that they stood at after each epoch, are looked up in the table, a .csv file or the files of nats_bench. Random choice takes
one cell a seed, each as likely as the other; what it comes to in the mean is known, since all cells are.

It prints a table in Markdown. --record appends to nasbench201.jsonl, of `kind` search a record a recipe and seed, random one
a seed, recipe the summary of a recipe, all that of the whole table; it draws the searches into nasbench201.svg and .png, and of
each recipe's first one what the collapse monitor shows into nasbench201-RECIPE.svg and .png.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median, pstdev, stdev
from typing import Any

from bench.nasbench201_report import COLUMN, RANDOM, draw, markdown
from bench.records import RESULTS, append, tagged
from fastdarts.objectives import OBJECTIVES
from fastdarts.report import draw_collapse
from fastdarts.report.run import ReportError, Run, read_run
from fastdarts.search_cifar import resolve
from fastdarts.settings import ConfigError, SearchCifarSettings
from fastdarts.settings.recipes import RECIPES
from fastdarts.spaces import Architecture, nats
from fastdarts.spaces.genotype import Genotype, read_architecture
from fastdarts.spaces.lookup import ACCURACIES, CELLS, Lookup, TableError

PROG = "python -m bench.nasbench201"
PICTURES = RESULTS.parent.parent / "docs" / "images"
DRAWS = 20_000  # of as many random cells as a recipe has seeds
Record = dict[str, Any]


class RunsError(ValueError):
    """Run folders that cannot be compared; the message names them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run, or of runs")
    parser.add_argument("--benchmark", required=True, help="table of true accuracies")
    parser.add_argument("--record", action="store_true", help="append the records, draw the picture")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of --record (default: bench/results)")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of its drawings (default: docs/images)")
    args = parser.parse_args(argv)
    try:
        runs = runs_in(args.folders)
        records = collect(runs, nats.read(args.benchmark))
        print(markdown(records), end="")
        if args.record:
            tag = tagged({})
            for record in records:
                append(args.results / "nasbench201.jsonl", record | tag)
            draw(records, args.pictures / "nasbench201")
            for name, run in first_of_each(runs).items():
                draw_collapse(run.records, args.pictures / f"nasbench201-{name}")
    except (RunsError, ReportError, TableError, ConfigError, OSError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0


def runs_in(paths: Iterable[Path]) -> list[Run]:
    """Return the runs in the folders given, or in those directly below them.

    Raises RunsError for a path without any, and for runs that have not finished, are of another space, or are not alike but
    for recipe and seed; ReportError for what cannot be read, ConfigError, OSError.
    """
    folders: list[Path] = []
    for path in paths:
        below = [path] if _is_run(path) else sorted(folder for folder in path.glob("*/") if _is_run(folder))
        if not below:
            raise RunsError(f"{path} holds no run folder, nor is it one")
        folders += below
    runs = [read_run(folder) for folder in folders]
    _check(runs)
    return runs


def _is_run(path: Path) -> bool:
    return (path / "settings.json").is_file()


def collect(runs: Iterable[Run], benchmark: Lookup) -> list[Record]:
    """All records: of the searches by recipe and seed, of random choice with the same seeds, of the whole table.

    Raises TableError.
    """
    searches = [search(run, benchmark) for run in runs]
    order = list(dict.fromkeys(record["recipe"] for record in searches))
    searches.sort(key=lambda record: (order.index(record["recipe"]), record["seed"]))
    seeds = sorted({record["seed"] for record in searches})
    chosen: list[Record] = [
        {"kind": "random", "recipe": RANDOM, "seed": seed} | looked_up(random_cell(seed), benchmark) for seed in seeds
    ]
    everything = [benchmark.accuracies(benchmark.architecture(index)) for index in range(CELLS)]
    values = {column: [row[column] for row in everything] for column in ACCURACIES if column.endswith("_test")}
    whole = {"kind": "all", "cells": CELLS, "benchmark": Path(benchmark.source).name}
    figures = {"mean": fmean, "deviation": pstdev, "median": median}
    whole |= {name: {column: of(v) for column, v in values.items()} for name, of in figures.items()}
    found = [*searches, *chosen]
    by_seed = {record["seed"]: record["accuracies"][COLUMN] for record in chosen}
    groups = [[record for record in found if record["recipe"] == recipe] for recipe in [*order, RANDOM]]
    summaries = [summary(group, by_seed, values[COLUMN]) for group in groups]
    return [*found, *summaries, whole]


def first_of_each(runs: Iterable[Run]) -> dict[str, Run]:
    """Of each recipe the run of the smallest seed."""
    ordered = sorted(runs, key=lambda run: _settings(run)["seed"], reverse=True)
    return {_recipe(run): run for run in ordered}


def random_cell(seed: int) -> Architecture:
    """Random choice with that seed: each of the 15,625 cells is as likely."""
    return Architecture.from_number(random.Random(seed).randrange(CELLS))


def looked_up(cell: Architecture, benchmark: Lookup) -> Record:
    """Of a cell its true accuracies in percent, and its ranks by the test accuracies, 1 the best."""
    known = benchmark.accuracies(cell)
    return {
        "cell": str(cell),
        "skips": _skips(cell),
        "accuracies": {column: known[column] for column in ACCURACIES},
        "ranks": {column: benchmark.rank(cell, column)[0] for column in ACCURACIES if column.endswith("_test")},
    }


def search(run: Run, benchmark: Lookup) -> Record:
    """Return a run's result, its skips and true accuracy after each epoch, and how it was made."""
    s, data, found = _settings(run), run.part("data"), _cell(run.genotype)
    cells = [_cell(read_architecture(epoch["genotype"])) for epoch in run.epochs]
    by_epoch = {"epoch": [epoch["epoch"] for epoch in run.epochs], "skips": [_skips(cell) for cell in cells]}
    by_epoch[COLUMN] = [benchmark.accuracies(cell)[COLUMN] for cell in cells]
    masks = {"mask_ratio": s["mask_ratio"], "patch_size": s["patch_size"]}
    return (
        {"kind": "search", "recipe": _recipe(run), "method": s["method"], "objective": s["objective"], "seed": s["seed"]}
        | masks
        | looked_up(found, benchmark)
        | {
            "by_epoch": by_epoch,
            "epochs": run.epochs[-1]["epoch"],
            "train_images": data["train_images"],
            "val_images": data["val_images"],
            "batch_size": s["batch_size"],
            "init_channels": s["init_channels"],
            "stage_cells": s["stage_cells"],
            "data": run.data_name,
            "minutes": round(sum(line.get("seconds") or 0.0 for line in run.timing) / 60, 2),
            "threads": s["threads"],
            "device": s["device"],
            "run": {name: run.settings.get(name) for name in ("commit", "versions", "machine")},
        }
    )


def summary(records: Sequence[Record], chosen: Mapping[int, float], everything: Sequence[float]) -> Record:
    """Of one recipe's searches the mean and sample deviation of the true accuracy, compared with random choice.

    chosen      the accuracies of random choice, by seed
    everything  those of all cells

    above        points of the mean above that of all cells, which is random choice's in the long run
    above_seeds  above that of random choice with the same seeds
    chance       the share of DRAWS draws of as many cells whose mean is at least as high
    """
    values, drawn = [record["accuracies"][COLUMN] for record in records], random.Random(0)
    seeds, n, mean = [record["seed"] for record in records], len(values), fmean(values)
    least = sum(values) - 1e-9
    reached = sum(sum(drawn.choices(everything, k=n)) >= least for _ in range(DRAWS))
    return {
        "kind": "recipe",
        "recipe": records[0]["recipe"],
        "seeds": seeds,
        "mean": mean,
        "deviation": stdev(values) if n > 1 else None,
        "above": mean - fmean(everything),
        "above_seeds": mean - fmean(chosen[seed] for seed in seeds),
        "chance": reached / DRAWS,
    }


def _cell(found: Genotype | Architecture | None) -> Architecture:
    """Return a cell of NAS-Bench-201. Raises TypeError for any other."""
    if not isinstance(found, Architecture):
        raise TypeError(f"{found} is no cell of NAS-Bench-201")
    return found


def _skips(cell: Architecture) -> int:
    return cell.operations("normal").count("skip_connect")


def _recipe(run: Run) -> str:
    """Return the first recipe in this space with the run's settings, apart from the number of epochs."""
    s = _settings(run)
    here = {name: recipe.settings for name, recipe in RECIPES.items() if recipe.settings.get("space") == s["space"]}
    chosen = {setting for settings in here.values() for setting in settings} - {"epochs"}  # by any of them

    def is_of(name: str) -> bool:
        published = asdict(resolve({"recipe": name, "data": "images", "device": "cpu"}).settings)
        read = chosen if OBJECTIVES[here[name]["objective"]].masks else chosen - {"mask_ratio", "patch_size"}
        return all(s.get(setting) == published[setting] for setting in read)

    named = [s["recipe"]] if s.get("recipe") in here else []
    for name in [*named, *here]:
        if is_of(name):
            return name
    return f"{s['method']} {s['objective']}"


def _settings(run: Run) -> dict[str, Any]:
    """Of a run; the first ones knew no method but the default, and have the space's name as it was typed."""
    s = run.part("settings")
    return {"method": SearchCifarSettings.method} | s | {"space": str(s.get("space")).lower()}


def _check(runs: Sequence[Run]) -> None:
    """Raise RunsError unless all have finished, are of NAS-Bench-201 and may be compared."""
    firsts: dict[str, Run] = {}
    places: dict[tuple[str, int], Path] = {}
    for run in runs:
        status = run.folder / "status"
        if not (status.is_file() and status.read_text(encoding="utf-8").startswith("finished")):
            raise RunsError(f"{run.folder} has not finished: continue it, or name the finished runs one by one")
        if not (run.part("settings") and run.part("data")):
            raise RunsError(f"{run.folder / 'settings.json'} does not say how the run was made")
        if not isinstance(run.genotype, Architecture):
            raise RunsError(f"{run.folder} is no search in NAS-Bench-201")
        seed, recipe = run.part("settings")["seed"], _recipe(run)
        twin = places.setdefault((recipe, seed), run.folder)
        if twin != run.folder:
            raise RunsError(f"{run.folder} and {twin} are both {recipe} with seed {seed}: name one of them")
        _check_alike(firsts.setdefault(recipe, run), run)
        if _length(run) != _length(runs[0]):
            label = " and ".join(
                f"{r.folder.name} {', '.join(f'{v} {k}' for k, v in _length(r).items())}" for r in (runs[0], run)
            )
            raise RunsError(f"runs of different lengths cannot be compared: {label}")


def _check_alike(first: Run, run: Run) -> None:
    """Raise RunsError where two runs of a recipe differ in a setting besides the seed."""
    settings = SearchCifarSettings.make(_settings(first))
    same = {"seed": settings.seed, "data": settings.data}
    if differences := settings.differences(_settings(run) | same):
        raise RunsError(f"{first.folder} and {run.folder} are of one recipe, but {'; '.join(differences)}")


def _length(run: Run) -> dict[str, Any]:
    data = run.part("data")
    images = {name.replace("_", " "): data.get(name) for name in ("train_images", "val_images")}
    names = {"a batch": "batch_size", "channels": "init_channels", "cells a stage": "stage_cells"}
    sizes = {label: run.part("settings")[name] for label, name in names.items()}
    return {"epochs": run.epochs[-1]["epoch"]} | images | sizes


if __name__ == "__main__":
    sys.exit(main())
