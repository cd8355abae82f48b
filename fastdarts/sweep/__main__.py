"""Run a grid of searches, resumably, into one table and one plot.

`python -m fastdarts.sweep search_imagenet --save runs/ratios --grid mask_ratio=0.2,0.4 --grid seed=0,1,2 -- --epochs 4`
runs every combination in a separate folder under --save; the flags after -- apply to all runs. The same command continues
interrupted runs, repeats failed ones and skips finished ones; additional values add runs.
"""

import argparse
import signal
import sys
from collections import deque
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NoReturn

import torch

from fastdarts import provenance
from fastdarts.engine import RunFolderError, SignalHandler, Stopped, duration, write_text
from fastdarts.logs import any_text
from fastdarts.report.drawing import NotDrawn, drawing, import_matplotlib
from fastdarts.settings.flags import Parser
from fastdarts.settings.values import path_of
from fastdarts.sweep.folder import Row, SweepFolder
from fastdarts.sweep.grid import COMMANDS, Combination, Grid, SweepError
from fastdarts.sweep.jobs import Executor, Job, NoExecutor, interpreter
from fastdarts.sweep.plot import draw_sweep
from fastdarts.sweep.results import aggregate, comma_separated, figure_names, markdown

PROG = "python -m fastdarts.sweep"
DAY = 24 * 60  # minutes
NEVER = 1000 * DAY


class _Parser(Parser):
    """Parser that says where unknown flags may belong."""

    def error(self, message: str) -> NoReturn:
        super().error(message + ("; the search's own flags go after --" if message.startswith("unrecognized") else ""))


@any_text()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    0 all runs have finished, 1 some failed (each is listed on stderr), 2 invalid input, 75 stopped by SIGTERM or SIGUSR1,
    130 interrupted (SIGINT). After 1, 75 and 130 the same command continues.
    """
    own, flags = _halves(list(sys.argv[1:] if argv is None else argv))
    args = _parser().parse_args(own)
    try:
        grid = Grid.parse(COMMANDS[args.command], args.grid, flags, f"{PROG} {args.command}")
        elsewhere = args.executor == "slurm"
        combinations = grid.combinations(elsewhere)
        folder = SweepFolder.open(args.save, args.command, grid, combinations, elsewhere)
        left = folder.left(combinations)  # finished runs no longer need their images or benchmark table
        _check_metric(args.metric, left)
        grid.check(left, elsewhere)
        executor = _executor(args, folder)
        with folder.locked(), SignalHandler() as signals, signals.deferred():
            sweep = Sweep(args.command, grid, folder, args.metric)
            sweep.run(combinations, executor, signals)
            return sweep.close({combination.name for combination in combinations})
    except (SweepError, RunFolderError, NoExecutor) as error:
        return _report(f"error: {error}", 2)
    except OSError as error:  # a full disk, a folder that disappeared
        return _report(f"stopped: {error}; the same command continues", 1)
    except Stopped as stopped:
        return _report(f"stopped by {stopped}; the same command continues", stopped.status)


class Sweep:
    """Active sweep: starts the remaining runs and updates the folder's table."""

    def __init__(self, command: str, grid: Grid, folder: SweepFolder, metric: str) -> None:
        self.grid, self.folder, self.metric = grid, folder, metric
        self.facts: dict[str, Any] = {"command": command, "fixed": grid.fixed, "axes": list(grid.axes)}
        self.facts |= {"commit": provenance.commit(), "versions": provenance.versions()}

    def run(self, combinations: Sequence[Combination], executor: Executor, signals: SignalHandler) -> None:
        """Run the unfinished combinations. On a signal stops the runs and raises Stopped once all have ended."""
        left = self.folder.left(combinations)
        print(f"{len(combinations)} runs in {self.folder.path}, {len(combinations) - len(left)} of them finished", flush=True)
        waiting, running, stopping = deque(left), {}, False
        self._record()
        try:
            while waiting or running:
                while waiting and len(running) < executor.jobs and not signals.signal:
                    combination = waiting.popleft()
                    running[combination.name] = (self._start(combination, executor), perf_counter())
                for name, (job, began) in list(running.items()):
                    status = job.poll()
                    if status is not None:
                        del running[name]
                        self._ended(name, status, bool(signals.signal), perf_counter() - began)
                if signals.signal and not stopping:
                    waiting.clear()
                    stopping = True
                    for job, _ in running.values():
                        job.stop()
                elif running:
                    sleep(executor.pause)
        finally:  # a failing sweep leaves no runs behind
            for job, _ in running.values():
                job.stop()
            self._table()
        signals.check()

    def close(self, asked: Set[str]) -> int:
        """Write table and plot, list unfinished runs; returns the exit status, 0 if all runs `asked` for have finished.

        Raises SweepError if no run has the metric.
        """
        bad = [row for row in self.folder.rows.values() if row["state"] != "finished"]
        for row in bad:
            _report(_fate(row, row["run"] in asked, self.folder.log(row["run"])), 1)
        if table := self._table():
            files = f"table {self.folder.path / 'sweep.md'}, plot {self.folder.path / 'sweep.svg'}"
            print(f"{table}{files}", flush=True)
        self._plot()
        return 1 if any(row["run"] in asked for row in bad) else 0

    def _start(self, combination: Combination, executor: Executor) -> Job:
        name = combination.name
        path, log = self.folder.path / name, self.folder.log(name)
        log.parent.mkdir(exist_ok=True)
        verb = "continues" if (path / "settings.json").is_file() else "begins"
        print(f"{name} {verb}; output in {log}", flush=True)
        self.folder.rows[name] |= {"state": "running", "status": None, "why": None}
        self._record()
        return executor.start(name, [*interpreter(self.grid.command.module), *combination.flags, "--save", str(path)], log)

    def _ended(self, name: str, status: int, stopping: bool, seconds: float) -> None:
        row = self.folder.ended(name, status, stopping)
        print(f"{name} {row['state']} after {duration(seconds)}", flush=True)
        self._record()

    def _record(self) -> list[Row]:
        """Write the current sweep.json and sweep.csv."""
        rows = self.folder.results()
        table = [asdict(group) for group in aggregate(rows, self.facts["axes"])]
        self.folder.write(self.facts | {"runs": rows, "table": table})
        write_text(self.folder.path / "sweep.csv", comma_separated(rows))
        return rows

    def _table(self) -> str:
        """Write sweep.md for the finished runs; returns its text, "" without any."""
        groups = aggregate(self._record(), self.facts["axes"])
        table = markdown(groups, self.metric) if groups else ""
        if table:
            write_text(self.folder.path / "sweep.md", table)
        return table

    def _plot(self) -> None:
        """Plot the finished runs, over the seed if it is the only axis. Raises SweepError if no run has the metric."""
        rows = self._record()
        groups = aggregate(rows, self.facts["axes"])
        names = figure_names(rows)
        if groups and self.metric not in names:
            raise SweepError(f"--metric {self.metric}: no finished run has it; known are {', '.join(names)}")
        if groups:
            points = groups if groups[0].values else aggregate(rows, self.facts["axes"], over=None)
            try:
                with drawing():
                    import_matplotlib()
                    draw_sweep(points, self.metric, self.folder.path / "sweep")
            except NotDrawn as error:
                _report(f"not drawn: {self.folder.path / 'sweep.svg'}: {error}", 0)


def _halves(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at --."""
    cut = argv.index("--") if "--" in argv else len(argv)
    return argv[:cut], argv[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROG, description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(COMMANDS), help="search command to run")
    parser.add_argument("--save", type=path_of, required=True, metavar="FOLDER", help="sweep folder, created or continued")
    parser.add_argument(
        "--grid", action="append", required=True, metavar="SETTING=VALUE,...",
        help="an axis: a setting of the search and its values; the plot uses the first one and averages over `seed`",
    )  # fmt: skip
    parser.add_argument("--metric", default="valid.loss", help="figure to plot, by its name in sweep.csv (default: valid.loss)")
    parser.add_argument(
        "--executor", choices=("local", "slurm"), default="local",
        help="where submitit starts the runs: on this machine (default) or on SLURM",
    )  # fmt: skip
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="concurrent runs (default: 1)")
    parser.add_argument(
        "--timeout_minutes", "--timeout-minutes", type=_positive, metavar="N",
        help=f"time limit of a job, after which it saves a checkpoint and is requeued (default: {DAY} on SLURM, else none)",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", action="append", default=[], type=_parameter, metavar="NAME=VALUE",
        help="an sbatch parameter, for example partition=gpu, gpus_per_node=1, cpus_per_task=8, mem=32GB, account=A",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range, it must be at least 1")
    return int(text)


def _parameter(text: str) -> tuple[str, str | int]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.replace("-", "_"), int(value) if value.isdecimal() else value


def _check_metric(metric: str, combinations: Sequence[Combination]) -> None:
    """Raise SweepError for a metric that none of the runs, if any, can have."""
    looked_up = any(getattr(c.settings, "benchmark", None) for c in combinations)
    if combinations and metric.startswith("benchmark.") and not looked_up:
        raise SweepError(f"--metric {metric}: no run looks up its cell, give --benchmark after --")


def _executor(args: argparse.Namespace, folder: SweepFolder) -> Executor:
    """Return the executor of the runs. Raises SweepError, NoExecutor."""
    if args.slurm and args.executor != "slurm":
        raise SweepError("--slurm requires --executor slurm")
    local = args.executor == "local"
    count = torch.cuda.device_count() if local and args.jobs > 1 else 0
    gpus = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(count)]
    minutes = args.timeout_minutes or (NEVER if local else DAY)
    return Executor(args.executor, folder.path / "logs" / "submitit", args.jobs, minutes, dict(args.slurm), gpus)


def _fate(row: Row, asked: bool, log: Path) -> str:
    """Return how an unfinished run ended."""
    status = row["status"]
    if not asked:
        return f"{row['run']}, of an earlier --grid, has not finished"
    outcome = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"{row['state']} with status {status}"
    return f"{row['run']} {outcome}: {row['why'] or 'it printed nothing'} ({log})"


def _report(what: str, status: int) -> int:
    print(f"{PROG}: {what}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
