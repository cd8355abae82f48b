"""`python -m fastdarts.report`: what it writes, and one line for wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastdarts.report.__main__ import main

ROOT = Path(__file__).parents[2]


def report(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastdarts.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.slow
def test_report_of_run(new_run):
    run = new_run(epochs=1)
    done = report(run)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run / 'report.html'}\n", "")


@pytest.mark.parametrize("form", ["text", "text file", "json file"])
def test_cells_of_any_genotype(tmp_path, monkeypatch, capsys, random_genotype, form):
    monkeypatch.chdir(tmp_path)
    genotype, file = random_genotype(5), tmp_path / "genotype"
    file.write_text(genotype.to_json() if form == "json file" else f"{genotype}\n")
    assert main(["--genotype", str(genotype if form == "text" else file)]) == 0
    drawn = {f"cell_{kind}.{suffix}" for kind in ("normal", "reduce") for suffix in ("svg", "png")}
    assert set(capsys.readouterr().out.split()) == drawn == {path.name for path in tmp_path.iterdir()} - {"genotype"}


def test_invalid_input_exits_with_one_line(tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 1}\nnonsense\n')
    wrong = {
        (tmp_path / "none",): "no such run folder",
        (tmp_path,): "has no metrics.jsonl",
        (broken,): "metrics.jsonl line 2 is not JSON",
        (): "give either RUN or --genotype",
        (broken, "--out", tmp_path): "--out requires --genotype",
        ("--genotype", "Genotype(normal=1)"): "a genotype has the fields",
        ("--genotype", tmp_path / "none"): "no such file",
    }
    for arguments, message in wrong.items():
        try:
            status = main([*map(str, arguments)])
        except SystemExit as end:  # argparse leaves so
            status = end.code
        printed = capsys.readouterr()
        assert (status, printed.out) == (2, "")
        assert message in printed.err and printed.err.count("\n") == 1
    for arguments in ((broken,), ("--nonsense",)):
        done = report(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert [path.name for path in broken.iterdir()] == ["metrics.jsonl"]
