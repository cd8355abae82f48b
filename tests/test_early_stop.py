"""A search by the command that ends early: what its folder says, and that a signal on the way changes nothing."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from fastdarts.search import Search
from fastdarts.search_imagenet import main
from fastdarts.steps import CapturedSteps
from tests.support.runs import SPLIT, TINY, contents, hasten, write_tree

END = r"^finished  epoch 11/13  step (\d+)/\d+  loss \d+\.\d{4}  early stop  updated \S+\n$"
GROWING = [1.0] * 6 + [2.0] * 7  # after epochs 1, 2, ...: alpha is updated from the second, so it ends after epoch 11


@pytest.fixture(scope="module", autouse=True)
def no_report():
    """Drawing takes longer than all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        patch.setattr(Search, "hessian", lambda self: GROWING[self.epoch])
        yield


@pytest.fixture(scope="module")
def argv(tmp_path_factory, no_report) -> list[str]:
    tree = write_tree(tmp_path_factory.mktemp("images"), images=4)
    return ["--data", str(tree), *TINY, *SPLIT, "--begin", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def eigenvalue(argv) -> list[str]:
    return [*argv, "--epochs", "13", "--early_stop", "eigenvalue", "--early_stop_from", "4"]


@pytest.fixture(scope="module")
def finished(eigenvalue, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main([*eigenvalue, "--save", str(folder)]) == 0
    return folder


def records(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "epoch"]


def test_run_folder_records_early_stop(finished):
    epochs, result = records(finished), json.loads((finished / "genotype.json").read_text())
    assert len(epochs) == 11 and ["hessian" in epoch for epoch in epochs] == [False] + [True] * 10
    assert result["stopped"] == epochs[-1]["stopped"]
    assert (result["stopped"]["rule"], result["stopped"]["after"], result["stopped"]["epoch"]) == ("eigenvalue", 11, 4)
    assert result["epoch"] == 4 and result["text"] == epochs[3]["genotype"]
    log = (finished / "log.txt").read_text()
    assert f"early stop after epoch 11: {result['stopped']['why']}; the result is the genotype of epoch 4" in log
    assert log.partition("early stop")[2].count(epochs[3]["genotype"]) == 1  # what the command ends with
    assert re.search(END, (finished / "status").read_text())


def test_same_command_again_does_nothing(eigenvalue, finished, capsys):
    before = contents(finished)
    assert main([*eigenvalue, "--save", str(finished)]) == 0
    report = capsys.readouterr().out
    assert "nothing left to do" in report and "early stop after epoch 11" in report
    assert contents(finished) == before
    assert re.search(END, (finished / "status").read_text())


@pytest.mark.parametrize("step", [2, 8])
def test_resume_after_signal_is_bitwise_identical(step, eigenvalue, finished, tmp_path, monkeypatch):
    """Before there is a history, and in the middle of it."""
    plain, run = CapturedSteps.__call__, [*eigenvalue, "--save", str(tmp_path / "run")]

    def call(self, number, train, val):
        if int(number) + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, number, train, val)

    with monkeypatch.context() as patch:
        patch.setattr(CapturedSteps, "__call__", call)
        assert main(run) == 75
    assert "stopped" not in json.loads((tmp_path / "run" / "genotype.json").read_text())
    assert main(run) == 0
    assert contents(tmp_path / "run") == contents(finished)


def test_skip_rule_ends_run(argv, tmp_path):
    run = [*argv, "--epochs", "5", "--early_stop", "skips", "--early_stop_skips", "1", "--save", str(tmp_path / "run")]
    assert main(run) == 0
    epochs, result = records(tmp_path / "run"), json.loads((tmp_path / "run" / "genotype.json").read_text())
    skips = [epoch["cells"]["normal"]["skips"] for epoch in epochs]
    assert len(epochs) < 5 and skips[-1] >= 1 and not any(skips[1:-1])
    assert result["stopped"]["rule"] == "skips" and result["epoch"] == len(epochs) and result["text"] == epochs[-1]["genotype"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--early_stop eigenvalue --epochs 10", "--early_stop eigenvalue: it compares two means over 5 epochs"),
        ("--early_stop skips --early_stop_skips 9 --epochs 2", "--early_stop_skips 9: a cell of space S0 has 8 operations"),
        ("--early_stop skips --epochs 2 --begin 2", "--early_stop skips: it looks at epochs that update alpha"),
        ("--early_stop_skips 0", "--early_stop_skips: 0 is out of range"),
        ("--early_stop sometimes", "invalid choice: 'sometimes'"),
    ],
)
def test_rule_that_can_never_stop_is_rejected_at_start(flags, message, argv, tmp_path, capsys):
    try:
        status = main([*argv, *flags.split(), "--dry_run", "--save", str(tmp_path / "run")])
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_rule_is_other_run(eigenvalue, finished, capsys):
    assert main([*eigenvalue, "--early_stop", "skips", "--save", str(finished)]) == 2
    assert "--early_stop is 'skips' but was 'eigenvalue'" in capsys.readouterr().err
