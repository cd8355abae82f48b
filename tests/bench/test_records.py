"""Records: written, read again, made from what pytest-benchmark saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import ceilings, records

SUITE = {
    "benchmarks": [{"name": "test_bilevel_step[cifar-1-eager]", "extra_info": {"batch": 2}, "stats": {"data": [0.3, 0.1, 0.2]}}]
}


def test_append_creates_folder_and_adds_lines(tmp_path):
    path = tmp_path / "results" / "step.jsonl"
    records.append(path, {"ratio": 1.5})
    records.append(path, {"ratio": 2.5})
    assert records.read(path) == [{"ratio": 1.5}, {"ratio": 2.5}]


def test_record_names_commit_and_machine():
    record = records.tagged({"ratio": 1.0})
    assert record["ratio"] == 1.0
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"].keys() >= {"processor", "cores", "threads", "system"}
    assert record["commit"]
    assert record["date"].endswith("+00:00")


def test_run_of_tests_and_coverage_become_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="1" time="7.25">'
        '<testcase classname="a" name="x" time="1.5"/><testcase classname="a" name="y" time="5"/>'
        '<testcase classname="b" name="z" time="0.1"/></testsuite></testsuites>'
    )
    files = {"new.py": {"summary": {"percent_covered": 50.0}}, "old.py": {"summary": {"percent_covered": 99.04}}}
    totals = {"percent_covered": 97.777, "num_statements": 1234}
    (tmp_path / "coverage.json").write_text(json.dumps({"totals": totals, "files": files}))
    given = [str(tmp_path / name) for name in ("tests.xml", "coverage.json")]
    assert records.main(["add", *given, "--results", str(tmp_path)]) == 0
    run, coverage = records.read(tmp_path / "tests.jsonl")
    assert (run["tests"], run["skipped"], run["seconds"]) == (3, 1, 7.2)
    assert run["slowest"] == [["a::y", 5.0], ["a::x", 1.5], ["b::z", 0.1]]
    assert (coverage["coverage_percent"], coverage["lines"]) == (97.8, 1234)
    assert coverage["least"] == [["new.py", 50.0], ["old.py", 99.0]]
    (tmp_path / "tests.xml").write_text("<testsuites>")
    assert records.main(["add", given[0]]) == 2


def test_copy_without_repository_takes_commit_from_environment(monkeypatch):
    monkeypatch.setenv("FASTDARTS_COMMIT", "0123abc")
    assert records.tagged({})["commit"] == "0123abc"


def test_suite_results_become_records():
    (record,) = records.from_suite(SUITE)
    assert (record["bench"], record["batch"], record["rounds"]) == ("test_bilevel_step[cifar-1-eager]", 2, 3)
    assert record["ms"] == {"median": 200.0, "q20": 140.0, "q80": 260.0}
    assert "machine" in record


def test_summary_is_one_line():
    line = records.summary(records.tagged({"supernet": "cifar", "ratio": 1.25, "ours_ms": records.milliseconds([0.5])}))
    assert line == "supernet cifar  ratio 1.25  ours_ms 500 (500 to 500)"


def test_records_are_added_and_shown(tmp_path, capsys):
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(SUITE))
    assert records.main(["add", str(saved), "--results", str(tmp_path)]) == 0
    added = capsys.readouterr().out
    assert records.main(["show", str(tmp_path / "suite.jsonl")]) == 0
    assert capsys.readouterr().out == added


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_unreadable_file_exits_with_status_2(content, tmp_path, capsys):
    path = tmp_path / "saved.json"
    if content is not None:
        path.write_text(content)
    assert records.main(["add", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_ceilings_are_measured_and_recorded(tmp_path, capsys):
    assert ceilings.main(["--device", "cpu", "--record", "--results", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["copy_gb_per_s"] > 0
    assert printed["float32_matmul_tflop_per_s"] > 0
    assert records.read(tmp_path / "ceilings.jsonl") == [printed]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--frog"], "unknown option --frog"),
        (["--commit"], "--commit wants a value"),
        (["--device", "tpu"], "--device tpu: not cpu or cuda"),
        pytest.param(
            [], "torch sees no CUDA GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
    ],
)
def test_gpu_script_rejects_input_with_one_line(wrong, message, root: Path, tmp_path):
    command, env = ["bash", root / "bench" / "gpu.sh", *wrong], os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"bench/gpu.sh: {message}")
    assert not list(tmp_path.iterdir())
