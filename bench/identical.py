"""Whether two checkouts compute the same searches: `python -m bench.identical BEFORE [AFTER] [--benchmark TABLE]`.

Runs the same small searches by both, each in a process of its own, and compares metrics.jsonl byte by byte, genotype.json
without the keys of ADDED, and the numbers that the report shows: its key figures without TILES, and the coordinates of all
curves. The last case is begun by BEFORE, stopped inside an epoch, and continued by AFTER.
For a change that is to change nothing that is computed.
Prints a line for each case; status 1 if one differs. Both checkouts need their native module built for this torch.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 900.0  # for one search
SMALL = "--epochs 3 --layers 3 --init_channels 4 --log_every 1 --threads 1"
CIFAR = f"{SMALL} --batch_size 16"
ADDED = ("params", "macs", "network")  # keys of genotype.json that older checkouts do not write
TILES = ("Time", "Parameters", "Multiply-adds")  # key figures that are not compared: no result, or of ADDED


class Case(NamedTuple):
    """A search: its command, its flags, by how many ranks."""

    command: str
    flags: str
    ranks: int = 1


CASES = {
    "demo": Case("search_imagenet", ""),
    "joint in S2": Case("search_cifar", f"--objective joint --space s2 {CIFAR}"),
    "second order": Case("search_cifar", f"--method darts-2nd {CIFAR}"),
    "P-DARTS": Case("search_cifar", "--method p-darts --init_channels 4 --layers 3 --progressive_layers 0,1,2 --threads 1"),
    "NAS-Bench-201": Case("search_cifar", f"--space nasbench201 --stage_cells 1 {CIFAR.replace('--layers 3 ', '')}"),
    "two ranks": Case("search_imagenet", f"{SMALL} --image_size 32 --batch_size 16 --begin 1", ranks=2),
}
CONTINUED = Case("search_imagenet", f"{SMALL} --image_size 32 --batch_size 8 --begin 1 --checkpoint_minutes 0.001")


def argv(case: Case, folder: Path) -> list[str]:
    """Return the command line of a case."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)] if case.ranks > 1 else []
    return [sys.executable, *launcher, "-m", f"fastdarts.{case.command}", *case.flags.split(), "--save", str(folder)]


def start(checkout: Path, case: Case, folder: Path) -> subprocess.Popen:
    """Run a case by a checkout, outside of both."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        argv(case, folder), cwd=folder.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, status: int = 0) -> None:
    """Wait for a search. Raises RuntimeError with what it printed unless it ends with that status."""
    output, _ = process.communicate(timeout=SECONDS)
    if process.returncode != status:
        raise RuntimeError(f"{process.args} ended with {process.returncode}, not {status}:\n{output}")


def stop_inside(process: subprocess.Popen, folder: Path, lines: int) -> None:
    """SIGUSR1 once so many steps are logged."""
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + SECONDS
    while not (log.exists() and len(log.read_bytes().splitlines()) >= lines):
        if time.monotonic() > deadline or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    finish(process, 75)


def figures(folder: Path) -> dict[str, list[str]]:
    """Numbers that the report of a run shows, by where."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    tiles = re.search(r'<dl class="figures">(.*?)</dl>', page, re.S)
    shown = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", tiles.group(1) if tiles else "", re.S)
    keys = [number for name, value in shown if name not in TILES for number in re.findall(r"[0-9][0-9.\u202f]*", value)]
    curves = {}
    for drawing in sorted(folder.glob("*.svg")):
        text = drawing.read_text(encoding="utf-8")
        curves[drawing.name] = re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]*)"', text)
    return {"key figures": keys} | curves


def genotype(folder: Path) -> str:
    """Return the text of genotype.json without the keys of ADDED."""
    record = json.loads((folder / "genotype.json").read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in record.items() if key not in ADDED}, indent=2)


def differences(before: Path, after: Path) -> list[str]:
    """Return the differences between two run folders."""
    found = ["metrics.jsonl"] if (before / "metrics.jsonl").read_bytes() != (after / "metrics.jsonl").read_bytes() else []
    found += ["genotype.json"] if genotype(before) != genotype(after) else []
    mine, theirs = figures(before), figures(after)
    return found + [f"figures of {name}" for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("after", type=Path, nargs="?", default=ROOT, help="checkout that is to do the same (default: this one)")
    parser.add_argument("--benchmark", type=Path, help="NAS-Bench-201's table; without it that case looks nothing up")
    parser.add_argument("--case", action="append", help="only these", choices=[*CASES, "continued"])
    args = parser.parse_args(argv)
    checkouts = {"before": args.before.resolve(), "after": args.after.resolve()}
    cases, wrong = dict(CASES), 0
    if args.benchmark is not None:
        case = cases["NAS-Bench-201"]
        cases["NAS-Bench-201"] = case._replace(flags=f"{case.flags} --benchmark {args.benchmark.resolve()}")
    with TemporaryDirectory() as scratch:
        for name, case in {**cases, "continued": CONTINUED}.items():
            if args.case and name not in args.case:
                continue
            folders = {side: Path(scratch) / f"{name} {side}".replace(" ", "-") for side in checkouts}
            if name == "continued":
                finish(start(checkouts["before"], case, folders["before"]))
                stop_inside(start(checkouts["before"], case, folders["after"]), folders["after"], 7)
                finish(start(checkouts["after"], case, folders["after"]))
            else:
                for side, checkout in checkouts.items():
                    finish(start(checkout, case, folders[side]))
            found = differences(folders["before"], folders["after"])
            lines = (folders["after"] / "metrics.jsonl").read_bytes().count(b"\n")
            print(f"{name:14} {'; '.join(found) or 'the same'} ({lines} lines of metrics)", flush=True)
            wrong += bool(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
