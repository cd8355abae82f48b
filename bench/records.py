"""Records: what was measured, where and with which code, one JSON object a line in bench/results/*.jsonl.

`python -m bench.records show FILE...` prints one line for each. `python -m bench.records add FILE...` makes records: of what
pytest-benchmark saved (--benchmark-json) in bench/results/suite.jsonl, of a run of the tests (build/tests.xml, by `make test`)
and of their coverage (`coverage json`) in bench/results/tests.jsonl.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.measure import quantiles
from fastdarts import provenance

SLOWEST = 50  # tests, or least covered files, in a record
RESULTS = Path(__file__).with_name("results")


def commit() -> str:
    """Return the checkout's commit (`+changes` if files differ from it), or FASTDARTS_COMMIT where a copy has no repository."""
    return os.environ.get("FASTDARTS_COMMIT") or provenance.commit()


def tagged(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with versions and commit, date (UTC) and machine."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return figures | {"versions": provenance.versions(), "commit": commit(), "date": date, "machine": provenance.machine()}


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a jsonl file, made with its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a jsonl file, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Quantiles in ms, to the microsecond, of times in seconds."""
    return {name: round(1e3 * value, 3) for name, value in quantiles(times).items()}


def from_suite(saved: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each benchmark that pytest-benchmark saved: its name, its extra_info and its times."""
    for benchmark in saved["benchmarks"]:
        times = benchmark["stats"]["data"]
        yield tagged({"bench": benchmark["name"]} | benchmark["extra_info"] | {"rounds": len(times), "ms": milliseconds(times)})


def from_tests(text: str) -> dict[str, Any]:
    """Return the record of a run of pytest, from its --junitxml: how many tests, the seconds of all and of the slowest."""
    suite = next(ElementTree.fromstring(text).iter("testsuite"))
    seconds = {f"{case.get('classname')}::{case.get('name')}": float(case.get("time", 0)) for case in suite.iter("testcase")}
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:SLOWEST]
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    wall = {"seconds": round(float(suite.get("time", 0)), 1)}
    return tagged(counts | wall | {"slowest": [[name, round(seconds[name], 1)] for name in slowest]})


def from_coverage(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the record of `coverage json`: percent of all lines, and the least covered files."""
    percent = {name: file["summary"]["percent_covered"] for name, file in saved["files"].items()}
    least = sorted(percent, key=percent.__getitem__)[:SLOWEST]
    totals = saved["totals"]
    figures = {"coverage_percent": round(totals["percent_covered"], 1), "lines": totals["num_statements"]}
    return tagged(figures | {"least": [[name, round(percent[name], 1)] for name in least]})


def made(path: Path) -> tuple[str, Iterator[dict[str, Any]]]:
    """Return the records that `add` makes of a file, and the name of their own file. Raises OSError, ValueError, KeyError."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".xml":
        return "tests.jsonl", iter([from_tests(text)])
    saved = json.loads(text)
    return ("tests.jsonl", iter([from_coverage(saved)])) if "totals" in saved else ("suite.jsonl", from_suite(saved))


def summary(record: dict[str, Any]) -> str:
    """Format a record of any kind in one line: its subject, then its figures."""
    plain = {k: v for k, v in record.items() if isinstance(v, str | int | float) and k not in ("commit", "date")}
    spread = {k: v for k, v in record.items() if isinstance(v, dict) and "median" in v}
    words = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()]
    return "  ".join(words + [f"{k} {v['median']:.4g} ({v['q20']:.4g} to {v['q80']:.4g})" for k, v in spread.items()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 2 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("action", choices=("show", "add"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args(argv)
    try:
        for path in args.files:
            if args.action == "show":
                for record in read(path):
                    print(summary(record))
                continue
            name, records = made(path)
            for record in records:
                append(args.results / name, record)
                print(summary(record))
    except (OSError, ValueError, KeyError, StopIteration, ElementTree.ParseError) as error:
        print(f"bench.records: error: {path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
