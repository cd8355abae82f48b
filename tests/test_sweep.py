"""The sweep as a user meets it: grids, tables, continuing, failures, submitit, and everything that can be wrong.

Most runs are of tests/support/pretend_search.py, which takes no time, and most are started without submitit, which takes half a
second each; some are real searches.
"""

import csv
import json
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
from dataclasses import asdict
from math import isclose, sqrt
from subprocess import DEVNULL, PIPE, Popen

import numpy as np
import pytest

from fastdarts.engine import RunFolder
from fastdarts.inputs.images import ImageFiles
from fastdarts.sweep import __main__ as command
from fastdarts.sweep import jobs
from fastdarts.sweep.__main__ import main
from fastdarts.sweep.folder import SweepFolder
from fastdarts.sweep.grid import COMMANDS, Grid, SweepError, SweptCommand
from fastdarts.sweep.plot import draw_sweep, lines
from fastdarts.sweep.results import Spread, aggregate, figures, markdown
from tests.support.pretend_search import PretendSettings
from tests.support.runs import SAME, SPLIT, TINY, Run, write_tree

RATIOS, SEEDS = ["--grid", "mask_ratio=0.2,0.6"], ["--grid", "seed=0,1"]


@pytest.fixture(autouse=True)
def pretend(monkeypatch, root):
    monkeypatch.setitem(COMMANDS, "pretend", SweptCommand("tests.support.pretend_search", PretendSettings, lambda *_: None))
    monkeypatch.chdir(root)  # where `python -m tests.support.pretend_search` is found
    monkeypatch.setattr(command, "Executor", lambda *_: Direct())


class Direct:
    """An executor of one process at a time, in place of submitit's jobs."""

    jobs, pause = 1, 0.02

    def start(self, name, command, log):
        with open(log, "ab") as file:
            return Process(command, stdin=DEVNULL, stdout=file, stderr=file, start_new_session=True)


class Process(Popen):
    stop = Popen.terminate


@pytest.fixture
def submitit(monkeypatch):
    """Jobs as a user has them."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(command, "Executor", jobs.Executor)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def sweep(folder, *argv, flags=()):
    return main(["pretend", "--save", str(folder), *argv, "--", *flags])


def starts(folder):
    """How often each run was started."""
    return {log.stem: log.read_text().count("started") for log in (folder / "logs").glob("*.txt")}


def soon(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def when(condition, then):
    """A thread that calls `then` once `condition` holds."""
    thread = threading.Thread(target=lambda: (soon(condition), then()), daemon=True)
    thread.start()
    return thread


def finished(values, **figures):
    return {"run": str(values), "state": "finished"} | values | figures


def test_mean_and_deviation_match_hand_computation():
    """1, 2, 4: mean 7/3, squared deviations 16/9 + 1/9 + 25/9 = 14/3, over n - 1 = 2: 7/3."""
    losses = {"valid.loss": Spread(7 / 3, sqrt(7 / 3), 3)}
    rows = [finished({"ratio": 0.5, "seed": s}, **{"valid.loss": x}) for s, x in enumerate((1.0, 2.0, 4.0))]
    rows += [finished({"ratio": 0.1, "seed": 0}, **{"valid.loss": 8.0}), {"ratio": 0.5, "seed": 3, "state": "failed"}]
    low, high = aggregate(rows, ["ratio", "seed"])
    assert (low.values, low.n, low.figures) == ({"ratio": 0.1}, 1, {"valid.loss": Spread(8.0, None, 1)})
    assert (high.values, high.n) == ({"ratio": 0.5}, 3)
    (got,), (want,) = high.figures.values(), losses.values()
    assert isclose(got.mean, want.mean) and isclose(got.deviation, want.deviation) and got.n == 3
    assert markdown([low, high], "valid.loss").splitlines()[2:] == ["| 0.1 | 1 | 8 |", "| 0.5 | 3 | 2.333 ± 1.528 |"]


def test_partial_figures_state_number_of_runs():
    rows = [finished({"a": 1, "seed": s}, **({"hessian": 2.0 * s} if s else {}), minutes=1.0) for s in range(3)]
    assert "| 1 | 3 | 3 ± 1.414 (of 2) | 1 ± 0 |" in markdown(aggregate(rows, ["a", "seed"]), "hessian")
    assert "| 1 | 3 | — | 1 ± 0 |" in markdown(aggregate(rows, ["a", "seed"]), "valid.loss")


def test_groups_and_lines_follow_value_order():
    rows = [finished({"a": a, "b": b}, minutes=a) for b in ("y", "x") for a in (10.0, 9.0, 0.5)]
    groups = aggregate(rows, ["a", "b"])
    assert [group.values["a"] for group in groups] == [0.5, 0.5, 9.0, 9.0, 10.0, 10.0]
    drawn = lines(groups, "minutes")
    assert {label: [x for x, _ in points] for label, points in drawn.items()} == {
        label: [0.5, 9.0, 10.0] for label in ("b x", "b y")
    }


@pytest.mark.parametrize("xs", [(0.1, 0.5), ("l1", "l2"), (False, True)])
def test_plot_has_ticks_labels_and_legend(xs, tmp_path):
    rows = [finished({"x": x, "patch": p, "seed": s}, minutes=1.0 + s + p) for x in xs for p in (2, 4) for s in (0, 1)]
    draw_sweep(aggregate(rows, ["x", "patch", "seed"]), "minutes", tmp_path / "plot")
    svg = (tmp_path / "plot.svg").read_text()
    for text in (*map(str, xs), "patch 2", "patch 4", "minutes", "mean ± standard deviation, n = 2"):
        assert f">{text}<" in svg
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no finished run has a hessian"):
        draw_sweep(aggregate(rows, ["x", "patch", "seed"]), "hessian", tmp_path / "none")


def test_grid_gives_folders_table_and_plot(folder, capsys):
    argv = [*RATIOS, "--grid", "patch-size=2,4", *SEEDS]
    assert sweep(folder, *argv, "--metric", "cells.normal.skips", flags=["--epochs", "3"]) == 0
    names = [f"mask_ratio={r},patch_size={p},seed={s}" for r in (0.2, 0.6) for p in (2, 4) for s in (0, 1)]
    assert {entry.name for entry in folder.iterdir() if "=" in entry.name} == set(names)
    saved = json.loads((folder / "sweep.json").read_text())
    assert (saved["command"], saved["fixed"], saved["axes"]) == ("pretend", {"epochs": 3}, ["mask_ratio", "patch_size", "seed"])
    assert [row["run"] for row in saved["runs"]] == names and saved["commit"]
    row = saved["runs"][-1]
    assert row["settings"]["epochs"] == 3 and row["settings"]["patch_size"] == 4 and row["genotype"] == "Genotype(new)"
    assert (row["state"], row["status"], row["epoch"], row["minutes"]) == ("finished", 0, 3, 3.0)
    assert (row["valid.loss"], row["cells.reduce.skips"], row["cells.normal.entropy"]) == (1.6, 5, 1.5)
    assert (row["benchmark.cifar10_test"], row["benchmark.rank"]) == (91, 7)
    assert not {"valid.top1", "cells.normal.skip_minus_conv", "benchmark.table", "alpha_loss"} & set(row)
    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and (rows[0]["valid.loss"], rows[0]["valid.top1"], rows[1]["valid.top1"]) == ("0.2", "0.5", "")
    table = (folder / "sweep.md").read_text().splitlines()
    columns = "mask_ratio patch_size n cells.normal.skips valid.loss valid.top1 cells.normal.entropy cells.reduce.skips"
    assert table[0].strip("| ").split(" | ")[:8] == columns.split()
    assert table[2].startswith("| 0.2 | 2 | 2 | 2.5 ± 0.7071 | 0.7 ± 0.7071 | 0.5 (of 1) | 1.5 ± 0 |")
    assert "| 90.5 ± 0.7071 | 7 ± 0 | 3 ± 0 |" in table[2] and len(table) == 6
    assert "| 0.2 | 2 | 2 |" in capsys.readouterr().out
    svg = (folder / "sweep.svg").read_text()
    assert ">cells.normal.skips<" in svg and ">patch_size 4<" in svg and ">mask_ratio<" in svg


def test_finished_runs_are_kept_and_new_values_add_runs(folder, capsys):
    assert sweep(folder, *SEEDS) == 0  # seeds alone: one row, a point for each
    assert "| 2 | 0.5" not in (folder / "sweep.md").read_text() and "| 2 | 1 ± 0.7071 |" in (folder / "sweep.md").read_text()
    assert ">seed<" in (folder / "sweep.svg").read_text()
    assert sweep(folder, "--grid", "seed=1,2", flags=["--workers", "3"]) == 0
    assert "2 runs in" in (out := capsys.readouterr().out) and "1 of them finished" in out
    assert starts(folder) == {f"seed={s}": 1 for s in range(3)}
    assert "| 3 | 1.5 ± 1 |" in (folder / "sweep.md").read_text()


def test_changed_flags_are_rejected_without_writing(folder, capsys):
    assert sweep(folder, *SEEDS, flags=["--epochs", "3"]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for argv, flags, message in (
        (["--grid", "seed=5"], ["--epochs", "4"], "contains a sweep with other settings: --epochs is 4 but was 3"),
        (["--grid", "seed=5"], [], "--epochs is not given but was 3"),
        (RATIOS, ["--epochs", "3"], "contains a sweep over seed, not over mask_ratio"),
    ):
        assert sweep(folder, *argv, flags=flags) == 2
        assert message in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert main(["search_imagenet", "--save", str(folder), *SEEDS]) == 2
    assert "contains a sweep of pretend" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "sweep.json").write_text("{")
    assert sweep(folder, *SEEDS, flags=["--epochs", "3"]) == 2 and "sweep.json is damaged" in capsys.readouterr().err


def test_sizes_decided_by_images_are_accepted(tmp_path):
    """12 divides no image of 32 pixels, but one of 96: what --image_size auto comes to is not known yet."""
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 96, 96, 3), np.uint8), labels=np.arange(4) % 2)
    flags = ["--data", str(tmp_path / "a.npz"), "--patch_size", "12", "--mask_ratio", "0.02"]
    grid = Grid.parse(COMMANDS["search_cifar"], ["seed=0,1"], flags, "test")
    grid.check(grid.combinations())


def test_benchmark_table_is_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("fastdarts.sweep.grid.benchmark_of", lambda resolved: read.append(resolved.settings.benchmark))
    flags = ["--space", "nasbench201", "--benchmark", "a.csv", "--stage_cells", "1"]
    axes = ["mask_ratio=0.2,0.5", "patch_size=4,8", "seed=0,1"]
    grid = Grid.parse(COMMANDS["search_cifar"], axes, flags, "test")
    grid.check(combinations := grid.combinations())
    assert len(combinations) == 8 and read == ["a.csv"]


def test_sweep_continues_with_moved_images(tmp_path):
    tree = write_tree(tmp_path / "a")
    axes, command = ["seed=0,1"], COMMANDS["search_imagenet"]

    def opened(root, elsewhere=False):
        grid = Grid.parse(command, axes, ["--data", str(root), "--train_fraction", "0.5", "--val_fraction", "0.5"], "test")
        return grid, (runs := grid.combinations()), SweepFolder.open(tmp_path / "s", "search_imagenet", grid, runs, elsewhere)

    grid, (first, _), folder = opened(tree)
    run = RunFolder(tmp_path / "s" / first.name)
    images = ImageFiles.choose(first.settings, run).ready(first.settings, 1, False)
    images.write(run)
    run.create({"settings": asdict(first.settings), "data": images.facts()})
    folder.write(
        {"command": "search_imagenet", "fixed": grid.fixed, "axes": list(grid.axes), "runs": list(folder.rows.values())}
    )
    shutil.copytree(tree, tmp_path / "b")
    opened(tmp_path / "b")
    with pytest.raises(SweepError, match=r"--data is .*/b' but was .*/a'"):
        opened(tmp_path / "b", elsewhere=True)
    (tmp_path / "b" / images.index.files[int(images.train[0])]).write_bytes(b"other")
    with pytest.raises(SweepError, match=r"seed=0: the images of .*/b are not those that"):
        opened(tmp_path / "b")


@pytest.fixture
def done(folder):
    """A sweep of search_cifar whose only run has finished, with images and a table that are no longer there; its flags."""
    flags = ["--data", "/gone/images", "--space", "nasbench201", "--benchmark", "/gone/table.csv"]
    grid = Grid.parse(COMMANDS["search_cifar"], ["seed=0"], flags, "test")
    (combination,) = grid.combinations()
    (run := folder / combination.name).mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps({"settings": asdict(combination.settings)}))
    (run / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1, "train_loss": 1.5, "valid": {"loss": 2.5}}\n')
    (run / "genotype.json").write_text('{"text": "g", "benchmark": {"cifar10_test": 93.5}}')
    (run / "status").write_text("finished\n")
    sweep = {"command": "search_cifar", "fixed": grid.fixed, "axes": ["seed"], "runs": []}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return flags


def test_finished_runs_need_no_images_or_table(done, folder, capsys):
    command = ["search_cifar", "--save", str(folder), "--grid"]
    assert main([*command, "seed=0", "--metric", "train_loss", "--", *done]) == 0
    assert main([*command, "seed=0", "--metric", "benchmark.cifar10_test", "--", *done[:4]]) == 0
    assert "| 1 | 93.5 |" in (folder / "sweep.md").read_text()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for flags, message in (
        (done, "seed=1: --benchmark /gone/table.csv: "),
        (done[:4], "seed=1: --data /gone/images: no such file"),
    ):
        assert main([*command, "seed=0,1", "--", *flags]) == 2
        assert message in (err := capsys.readouterr().err) and err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("axes", "flags", "says"),
    [
        (["partial_channels=1,3"], [], "partial_channels=3: "),
        (["patch_size=4,5"], [], "patch_size=5: "),
        (["space=s0,s5"], ["--method", "sgas-1"], "space=s5: "),
        (["seed=0,1"], ["--data", "/nowhere"], "seed=0: --data /nowhere: no such file or folder"),
        (["seed=0,1"], ["--space", "nasbench201", "--benchmark", "/nowhere.csv"], "/nowhere.csv"),
        (["space=S1,s1"], [], "--grid: space=S1 and space=s1 are the same search"),
    ],
)
def test_invalid_search_is_rejected_before_any_starts(axes, flags, says, folder, capsys):
    argv = [part for axis in axes for part in ("--grid", axis)]
    assert main(["search_cifar", "--save", str(folder), *argv, "--", *flags]) == 2
    assert says in (err := capsys.readouterr().err) and err.count("\n") == 1 and not folder.exists()


def test_impossible_metric_is_rejected_at_once(folder, capsys):
    argv = ["search_cifar", "--save", str(folder), *SEEDS, "--metric", "benchmark.cifar10_test"]
    assert main([*argv, "--", "--space", "nasbench201"]) == 2
    assert "no run looks up its cell, give --benchmark after --" in capsys.readouterr().err and not folder.exists()


def test_row_of_early_stop_is_of_chosen_epoch(tmp_path):
    stopped = {"rule": "eigenvalue", "after": 3, "epoch": 2, "why": "it grew"}
    lines = [{"kind": "epoch", "epoch": n, "genotype": f"g{n}", "train_loss": float(n)} for n in (1, 2, 3)]
    for line, valid in zip(lines, ({"loss": 8.0}, None, {"loss": 9.0}), strict=True):  # evaluated in every second epoch
        line["valid"] = valid
    lines[2]["stopped"] = stopped
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "genotype.json").write_text(json.dumps({"text": "g2", "stopped": stopped}))
    row = figures(tmp_path, True)
    assert (row["genotype"], row["epoch"], row["train_loss"], row["valid.loss"]) == ("g2", 2, 2.0, 8.0)


def test_run_with_other_settings_is_named(folder, capsys):
    assert sweep(folder, *SEEDS) == 0
    (saved := folder / "seed=1" / "settings.json").write_text(saved.read_text().replace('"l1"', '"l2"'))
    assert sweep(folder, *SEEDS) == 2
    assert "seed=1: --save:" in (err := capsys.readouterr().err) and "--loss is 'l1' but was 'l2'" in err


@pytest.mark.parametrize(
    ("argv", "flags", "message"),
    [
        ("--grid mask_ratio=0.2,1.5", "", "mask_ratio=1.5: --mask_ratio: 1.5 is out of range, it must be above 0 and below 1"),
        ("--grid patch_size=4,16 --grid mask_ratio=0.4,0.6", "", "patch_size=16,mask_ratio=0.6: --patch_size: too big"),
        (
            "--grid mask_ratio=0.2,x",
            "",
            "--grid mask_ratio: error: argument --mask_ratio/--mask-ratio: invalid float value: 'x'",
        ),
        ("--grid loss=l1,l3", "", "--grid loss: error: argument --loss: invalid choice: 'l3'"),
        ("--grid flip=true,yes", "", "--grid flip: 'yes' is not true or false"),
        ("--grid mask_ration=0.2", "", "unknown setting mask_ration"),
        ("--grid seed", "", "--grid seed: expected SETTING=VALUE,VALUE,..."),
        ("--grid seed=0,,1", "", "expected SETTING=VALUE"),
        ("--grid mask_ratio=0.2,0.20", "", "--grid mask_ratio: 0.2 is given twice"),
        ("--grid data=a/b,a:b", "", "two combinations have the name data=a_b"),
        ("--grid seed=0 --grid seed=1", "", "--grid seed is given twice"),
        ("--grid save=a,b", "", "the sweep names its runs' folders"),
        ("--grid seed=0", "--seed 3", "seed is swept by --grid and fixed by --seed"),
        ("--grid seed=0", "--save there", "--save after --: the sweep names"),
        ("--grid seed=0", "--dry_run", "--dry_run after --: a sweep always runs its searches"),
        ("--grid seed=0", "--epoch 3", "unrecognized arguments: --epoch 3"),
        ("--grid seed=0 --epochs 3", "", "unrecognized arguments: --epochs 3; the search's own flags go after --"),
        ("--grid seed=0", "--device cuda", "seed=0: --device cuda: there is none"),
        ("--grid seed=0 --jobs 0", "", "argument --jobs: 0 is out of range, it must be at least 1"),
        ("--grid seed=0 --slurm partition=gpu", "", "--slurm requires --executor slurm"),
        ("--grid seed=0 --slurm partition --executor slurm", "", "'partition' is not NAME=VALUE"),
    ],
)
def test_invalid_input_exits_with_status_2_before_start(argv, flags, message, folder, capsys):
    try:
        status = sweep(folder, *argv.split(), flags=flags.split())
    except SystemExit as ended:  # argparse's way
        status = ended.code
    err = capsys.readouterr().err
    assert status == 2 and message in err and err.count("\n") == 1 and err.startswith("python -m fastdarts.sweep")
    assert not folder.exists()


def test_foreign_folders_are_rejected(folder, capsys):
    folder.mkdir()
    (folder / "settings.json").touch()
    assert sweep(folder, *SEEDS) == 2 and "contains a run, not a sweep" in capsys.readouterr().err
    (folder / "settings.json").rename(folder / "sweep.csv")
    assert (
        sweep(folder, *SEEDS) == 2
        and "is not a sweep folder, and a sweep would overwrite its sweep.csv" in capsys.readouterr().err
    )
    (folder / "sweep.csv").rename(folder / "seed=1")
    assert (
        sweep(folder, *SEEDS) == 2
        and "is not a sweep folder, and a sweep would overwrite its seed=1" in capsys.readouterr().err
    )
    (folder / "seed=1").rename(folder / "notes")
    assert sweep(folder / "notes", *SEEDS) == 2 and "is a file, choose a folder" in capsys.readouterr().err


def test_foreign_files_are_kept(folder, capsys):
    folder.mkdir()
    (folder / "console.txt").write_text("mine")
    assert sweep(folder, *SEEDS) == 0 and sweep(folder, *SEEDS) == 0
    assert (folder / "console.txt").read_text() == "mine"


def test_missing_metric_lists_known_ones(folder, capsys):
    assert sweep(folder, *SEEDS, "--metric", "valid.accuracy") == 2
    assert "--metric valid.accuracy: no finished run has it; known are train_loss, valid.loss" in capsys.readouterr().err
    assert sweep(folder, *SEEDS) == 0 and starts(folder) == {"seed=0": 1, "seed=1": 1}


@pytest.mark.parametrize(
    ("trouble", "message", "status"),
    [
        ("fail", "failed with status 3: pretend: error: no luck", 3),
        ("die", "was killed by SIGKILL: started", -9),
        ("lie", "failed with status 0", 0),
    ],
)
def test_failed_run_is_named_and_others_continue(trouble, message, status, folder, capsys):
    argv = [*RATIOS, *SEEDS]
    assert sweep(folder, *argv, flags=["--trouble", trouble]) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 2 and f"mask_ratio=0.2,seed=1 {message}" in err and "mask_ratio=0.6,seed=1.txt" in err
    assert "| 0.6 | 1 | 0.6 |" in out
    row = next(r for r in json.loads((folder / "sweep.json").read_text())["runs"] if r["run"] == "mask_ratio=0.2,seed=1")
    assert (row["state"], row["status"]) == ("failed", status) and "valid.loss" not in row
    (folder / "healed").touch()
    assert sweep(folder, *argv, flags=["--trouble", "no"]) == 0
    assert starts(folder) == {f"mask_ratio={r},seed={s}": 1 + s for r in (0.2, 0.6) for s in (0, 1)}
    assert "mask_ratio=0.2,seed=1 continues" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_stops_runs_and_same_command_continues(number, folder, capsys):
    argv, flags = ["--grid", "seed=0,1,2"], ["--trouble", "wait"]
    waits = folder / "seed=1" / "status"
    thread = when(waits.exists, lambda: os.kill(os.getpid(), number))
    assert sweep(folder, *argv, flags=flags) == (130 if number == signal.SIGINT else 75)
    thread.join()
    assert (folder / "logs" / "seed=1.txt").read_text().endswith("stopped by SIGTERM\n")
    assert f"stopped by {number.name}; the same command continues" in capsys.readouterr().err
    states = {row["run"]: row["state"] for row in json.loads((folder / "sweep.json").read_text())["runs"]}
    assert states == {"seed=0": "finished", "seed=1": "stopped", "seed=2": "waiting"} and (folder / "sweep.md").exists()
    (folder / "healed").touch()
    assert sweep(folder, *argv, flags=flags) == 0 and starts(folder) == {"seed=0": 1, "seed=1": 2, "seed=2": 1}


def test_concurrent_sweeps_are_rejected(folder, capsys):
    """The lock is the process', so another process takes it."""
    folder.mkdir()
    holds = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); input()"
    with Popen([sys.executable, "-c", holds, folder / ".lock"], stdin=PIPE, stdout=PIPE) as other:
        other.stdout.readline()
        assert sweep(folder, *SEEDS) == 2
        assert f"another process is writing to {folder}" in capsys.readouterr().err
        other.communicate(b"\n")
    assert sweep(folder, *SEEDS) == 0


def test_run_outside_grid_is_named_without_failure(folder, capsys):
    assert sweep(folder, *SEEDS, flags=["--trouble", "fail"]) == 1
    capsys.readouterr()
    assert sweep(folder, "--grid", "seed=0") == 0
    assert capsys.readouterr().err == "python -m fastdarts.sweep: seed=1, of an earlier --grid, has not finished\n"


def test_missing_submitit_is_reported(folder, capsys, submitit, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep(folder, *SEEDS) == 2
    says = "python -m fastdarts.sweep: error: a sweep starts its runs through submitit: pip install 'fastdarts[sweep]'\n"
    assert capsys.readouterr().err == says and not folder.exists()


def test_missing_slurm_is_reported(folder, capsys, submitit):
    assert sweep(folder, *SEEDS, "--executor", "slurm") == 2
    assert "--executor slurm: Could not detect" in capsys.readouterr().err


def test_submitit_runs_jobs_concurrently(folder, submitit):
    """Both wait for the file that is made when both run."""
    argv = [*RATIOS, "--grid", "seed=1", "--jobs", "2"]
    both = [folder / f"mask_ratio={r},seed=1" / "status" for r in (0.2, 0.6)]
    when(lambda: all(path.exists() for path in both), (folder / "healed").touch)
    assert sweep(folder, *argv, flags=["--trouble", "wait"]) == 0
    assert "| 0.6 | 1 | 1.6 |" in (folder / "sweep.md").read_text()


def test_submitit_failures_and_signals(folder, capsys, submitit):
    for trouble, message in (
        ("fail", "failed with status 3: pretend: error: no luck"),
        ("die", "was killed by SIGKILL: started"),
    ):
        assert sweep(folder, *SEEDS, flags=["--trouble", trouble]) == 1
        assert f"seed=1 {message}" in capsys.readouterr().err
    when((folder / "seed=1" / "status").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep(folder, *SEEDS, flags=["--trouble", "wait"]) == 75
    assert (folder / "logs" / "seed=1.txt").read_text().endswith("stopped by SIGTERM\n")


def test_local_jobs_share_or_divide_gpus(tmp_path, submitit, monkeypatch):
    def seen(*gpus):
        executor = jobs.Executor("local", tmp_path / "submitit", 2, 5, {}, gpus)
        log = tmp_path / "seen.txt"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-c", f"import os; print(os.environ.get('{jobs.VISIBLE}'))"]
        started = [executor.start("job", command, log) for _ in gpus or "1"]
        soon(lambda: all(job.poll() is not None for job in started))
        return sorted(log.read_text().split())

    monkeypatch.setenv(jobs.VISIBLE, "3")
    assert seen() == ["3"] and seen("GPU-a", "GPU-b") == ["GPU-a", "GPU-b"]
    monkeypatch.delenv(jobs.VISIBLE)
    assert seen() == ["None"]


def test_timed_out_job_is_requeued(folder, submitit, monkeypatch):
    """The signal of submitit before the end: the run is asked to end, and begins again in the same job."""
    begun = []
    plain = jobs.Executor.start
    monkeypatch.setattr(jobs.Executor, "start", lambda self, *a: begun.append(plain(self, *a)) or begun[-1])
    log = folder / "logs" / "seed=1.txt"

    def time_is_up():
        os.kill(task_of(int(begun[0].job.job_id)), signal.SIGUSR2)
        soon(lambda: log.read_text().count("started") == 2)
        (folder / "healed").touch()

    when((folder / "seed=1" / "status").exists, time_is_up)
    assert sweep(folder, "--grid", "seed=1", flags=["--trouble", "wait"]) == 0
    assert re.search(r"started.*\nstopped by SIGTERM\nstarted", log.read_text())


def task_of(controller):
    """The process that submitit's controller has started."""
    with open(f"/proc/{controller}/task/{controller}/children") as file:
        (child,) = file.read().split()
    return int(child)


def test_slurm_with_stub_commands(folder, tmp_path, submitit, monkeypatch):
    """An sbatch that runs the script at once, srun that runs its command: parameters reach the script, the runs finish."""
    scripts = {
        "sbatch": f'cp "$1" {tmp_path}/$$.sh; SLURM_JOB_ID=$$ bash "$1" > /dev/null 2>&1 & echo Submitted batch job $$',
        "srun": 'while [ "$1" != "${1#-}" ]; do case "$1" in --output|--error) shift;; esac; shift; done; exec "$@"',
        "sacct": "echo 'JobID|State|NodeList'",
        "scancel": "exit 0",
    }
    for name, script in scripts.items():
        (path := tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(jobs, "SLURM_PAUSE", 0.1)
    argv = [*SEEDS, "--executor", "slurm", "--jobs", "2", "--timeout_minutes", "90"]
    argv += ["--slurm", "partition=gpu", "--slurm", "gpus_per_node=1"]
    assert sweep(folder, *argv, flags=["--device", "cpu"]) == 0
    text = next(tmp_path.glob("*.sh")).read_text()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=90", "--job-name=seed="):
        assert f"#SBATCH {line}" in text
    assert sweep(folder / "other", *SEEDS, "--executor", "slurm", "--slurm", "colour=red") == 2


@pytest.fixture
def forked(monkeypatch, tmp_path):
    """Real searches, forked from a server that has imported torch; returns those that were started."""

    class Forked(Run):
        def poll(self):
            return None if self.alive else self.wait()

    begun = []

    def start(self, name, command, log):
        assert command[:3] == [sys.executable, "-m", "fastdarts.search_imagenet"]
        begun.append(Forked(command[3:], log))
        return begun[-1]

    monkeypatch.setattr(Direct, "start", start)
    return begun


def test_killed_search_continues_bitwise_identically(folder, tmp_path, forked, capsys):
    flags = ["--data", str(write_tree(tmp_path / "images")), *TINY, *SPLIT, "--epochs", "2", "--begin", "1"]
    argv = ["search_imagenet", "--save", str(folder), *RATIOS, "--", *flags]
    killed = folder / "mask_ratio=0.2"
    when((killed / "checkpoint.pt").exists, lambda: forked[0].signal(signal.SIGKILL))
    assert main(argv) == 1
    assert "mask_ratio=0.2 was killed by SIGKILL" in capsys.readouterr().err
    assert main(argv) == 0 and main(argv) == 0 and len(forked) == 3
    assert Run([*flags, "--mask_ratio", "0.2", "--save", str(tmp_path / "alone")], tmp_path / "alone.txt").wait() == 0
    for name in SAME:
        assert (killed / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    rows = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [row["epoch"] for row in rows] == [2, 2] and all(row["valid.loss"] > 0 for row in rows)
    assert all(0 <= row[f"cells.{kind}.skips"] <= 8 for row in rows for kind in ("normal", "reduce"))
    assert rows[0]["genotype"].startswith("Genotype(normal=[") and rows[0]["settings"]["mask_ratio"] == 0.2
    with open(killed / "checkpoint.pt", "r+b") as file:  # a finished run whose checkpoint is not whole is looked after again
        file.truncate(1000)
    (killed / "checkpoint.1.pt").unlink()
    (killed / "checkpoint-best.pt").unlink()
    assert main(argv) == 1 and "no checkpoint is intact" in capsys.readouterr().err
