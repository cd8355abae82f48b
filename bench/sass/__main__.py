"""Predict steps on an H200 from the machine code of their kernels: `python -m bench.sass`. Needs no GPU; minutes.

Compiles what the bilevel steps of CIFAR (64 images) and MAE-NAS ImageNet (1024) launch, in bfloat16, or a training step of a
discrete network (--network), and predicts each launch (model.py). No figure is a measurement. Ends with status 1 if a kernel
does not compile or is worse than its bound (bounds.json).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records import RESULTS, append, tagged
from bench.workload import WorkloadError

PROG = "python -m bench.sass"
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("darts-cifar", "darts-imagenet", "nasnet-cifar")
COLUMNS = ("ms", "launches", "programs", "issue ms", "latency ms", "bytes ms", "GB", "registers", "resident", "narrow", "BAR")


def with_triton(version: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the report of this command under another Triton, installed to build/ first if need be.

    Only Triton itself is needed, in front of the present packages: nothing is launched. Raises CalledProcessError.
    """
    folder = ROOT / "build" / f"triton-{version}"
    if not (folder / "triton").is_dir():
        install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", *install, f"triton=={version}"], check=True)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "bench.sass", "--json", "--unbounded", *arguments]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True)
    if not done.stdout:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return json.loads(done.stdout)


def table(found: dict[str, Any]) -> str:
    """Format the kernels of each step, the slowest first, and the step."""
    lines = []
    for step in dict.fromkeys(row["workload"] for row in found["kernels"]):
        key = step.replace("-", "_")
        ms, launches, gb, rate = (found[f"{key}_{name}"] for name in ("step_ms", "step_launches", "step_gb", "images_per_s"))
        title = f"{step}, predicted from machine code of Triton {found['triton']}"
        lines.append(f"{title}: {ms} ms, {rate} images/s, {launches} launches, {gb} GB")
        lines.append(f"  {'kernel':42}" + "".join(f"{name:>12}" for name in COLUMNS))
        for row in (row for row in found["kernels"] if row["workload"] == step):
            times = [f"{row[name] / 1e3:.2f}" if name in row else "" for name in ("issue_us", "latency_us", "bytes_us")]
            programs = "{}..{}".format(*row["programs"]) if "programs" in row else ""
            rest = [str(row.get(name, "")) for name in ("registers", "resident", "narrow_loads", "barriers")]
            cells = [f"{row['us'] / 1e3:.2f}", str(row["launches"]), programs, *times, f"{row['gb']:.2f}", *rest]
            lines.append(f"  {row['kernel']:42}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def beside(here: dict[str, Any], other: dict[str, Any]) -> str:
    """Format the registers and spilled bytes of each kernel under two Tritons."""
    rows = {(row["kernel"], row["variant"]): row for row in other["variants"]}
    lines = [f"registers/spilled bytes a thread with Triton {here['triton']} and {other['triton']}"]
    for row in here["variants"]:
        pair = row, rows.get((row["kernel"], row["variant"]), {"error": "missing"})
        cells = [one["error"] if "error" in one else f"{one['registers']}/{one['spill_bytes']}" for one in pair]
        lines.append(f"  {cells[0]:>8} {cells[1]:>8}  {row['kernel']} {row['variant']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 for kernels that fail or are worse than their bounds, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__.partition(":")[0], allow_abbrev=False)
    parser.add_argument("--network", choices=NAMES, help="discrete network, in one training step, instead of the bilevel steps")
    parser.add_argument("--batch", type=int, help="images of --network's batch; without it 96 on CIFAR, 256 on ImageNet")
    parser.add_argument(
        "--triton", metavar="VERSION", help="compile with this Triton too, installed to build/ (a GPU machine's: 3.6.0)"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the arithmetic; bounds are bfloat16's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: figures, kernels, launches, variants")
    parser.add_argument("--record", action="store_true", help="append the figures and kernels to sass.jsonl in bench/results")
    parser.add_argument("--bounds", action="store_true", help="rewrite bounds.json with these figures")
    parser.add_argument("--unbounded", action="store_true", help="do not compare with bounds.json")
    args = parser.parse_args(argv)
    if args.batch is not None and (args.network is None or args.batch < 1):
        parser.error("--batch is for --network, and must be above 0")
    if args.bounds and (args.batch or args.dtype != "bfloat16"):
        parser.error("--bounds is for the usual batches in bfloat16")
    from bench.sass import report  # here: Triton may be missing

    names = [args.network] if args.network else ["cifar", "mae-imagenet"]
    try:
        found = report.report({name: report.workload_of(name, args.batch, args.dtype) for name in names})
    except WorkloadError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    reports = [found]
    if args.triton:
        chosen = ["--dtype", args.dtype, *(["--network", args.network] if args.network else [])]
        try:
            reports.append(with_triton(args.triton, chosen + (["--batch", str(args.batch)] if args.batch else [])))
        except subprocess.CalledProcessError as error:
            print(f"{PROG}: error: Triton {args.triton}: {(error.stderr or str(error)).strip()[-500:]}", file=sys.stderr)
            return 2
    if args.bounds:
        for one in reports:
            report.write_bounds(one)
    if args.record:
        for one in reports:
            kept = {key: value for key, value in one.items() if key not in ("launches", "variants")}
            append(RESULTS / "sass.jsonl", tagged({"sass": ", ".join(names), "batch": args.batch, "dtype": args.dtype} | kept))
    if args.json:
        print(json.dumps(found | ({"other": reports[1]} if args.triton else {})))
    else:
        print("\n".join(map(table, reports)) + ("\n" + beside(*reports) if args.triton else ""))
    for line in [line for one in reports for line in report.spills(one)]:
        print(f"{PROG}: {line}", file=sys.stderr)
    said = [line for one in reports for line in report.failures(one)]
    bounded = not args.unbounded and args.batch is None and args.dtype == "bfloat16"
    known = report.read_bounds() if bounded else {}
    said += [line for one in reports for line in report.worse(one, known.get(one["triton"], {}))]
    for line in said:
        print(f"{PROG}: {line}", file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
