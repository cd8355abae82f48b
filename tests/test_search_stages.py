"""P-DARTS by the command: one run folder for all stages, continued where it was, and its report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastdarts.report.curves import draw_alpha
from fastdarts.report.heatmap import spread
from fastdarts.search_imagenet import main
from tests.support.runs import SAME, SPLIT, TINY, hasten, write_tree

TRICKS = ["--skip_dropout", "--skip_limit", "1"]
STAGES = ["--epochs", "6", "--begin", "1", "--warmup_epochs", "0", "--progressive", "--progressive_layers", "0,1,2"]
PLAIN = ["--no-edge_normalization", "--partial_channels", "1", "--learning_rate", "0.02", "--keep_checkpoints", "6"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("images"))


def arguments(tree: Path, folder: Path, *more: str) -> list[str]:
    return ["--data", str(tree), *TINY, *SPLIT, *STAGES, *PLAIN, "--save", str(folder), *more]


@pytest.fixture(scope="module")
def finished(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(tree, folder, *TRICKS)) == 0
    return folder


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "epoch"]


def test_all_stages_are_one_run(finished: Path) -> None:
    epochs = epochs_of(finished)
    assert [(r["epoch"], r["stage"]) for r in epochs] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    assert [{len(names) for names in r["candidates"]["normal"]} for r in epochs] == [{8}, {8}, {5}, {5}, {3}, {3}]
    assert [r["alpha_loss"] is None for r in epochs] == [True, False] * 3
    assert [r["lr"] for r in epochs] == pytest.approx([0.02, 0.01] * 3)
    genotype = json.loads((finished / "genotype.json").read_text())
    assert genotype["text"] == epochs[-1]["genotype"] and genotype["layers"] == 5  # the last stage's
    assert sum(op == "skip_connect" for op, _ in genotype["normal"]) <= 1
    log = (finished / "log.txt").read_text()
    assert "stages of 2 epochs: 3 cells; 4 cells, at most 5 candidates an edge, skips with dropout 0.4; 5 cells, at" in log
    assert "alpha is updated in the last 1 of each stage" in log
    assert "stage 3 of 3 begins: 5 cells, at most 3 candidates an edge, skips with dropout 0.7" in log
    stages = [json.loads(line)["stages"] for line in (finished / "timing.jsonl").read_text().splitlines()]
    assert all(seconds["weights"] > 0 for seconds in stages)
    assert (finished / "report.html").is_file()


@pytest.mark.parametrize("number", [2, 3], ids=["at a stage's end", "inside a stage"])
def test_resume_is_bitwise_identical(
    finished: Path, tree: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it takes a second, and more
    hasten(monkeypatch)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.copy(finished / f"checkpoint.{number}.pt", folder / "checkpoint.pt")
    for path in [*folder.glob("checkpoint.[0-9].pt"), folder / "checkpoint-best.pt"]:
        path.unlink()
    assert main(arguments(tree, folder, *TRICKS)) == 0
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_heatmaps_use_candidates_of_each_epoch(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("fastdarts.report.curves.spread", lambda *args: drawn.append(spread(*args)) or drawn[-1])
    epochs, settings = epochs_of(finished), json.loads((finished / "settings.json").read_text())
    draw_alpha(epochs, settings, tmp_path / "alpha")
    last, names = drawn[len(epochs) - 1], settings["candidates"]["normal"][0]
    assert last.shape == (14, 8)
    for edge, (row, own) in enumerate(zip(epochs[-1]["ops"]["normal"], epochs[-1]["candidates"]["normal"], strict=True)):
        shown = {name: weight for name, weight in zip(names, last[edge].tolist(), strict=True) if weight is not None}
        assert shown == dict(zip(own, row, strict=True))


def test_invalid_stages_exit_with_status_2(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    for more, says in (
        (["--progressive_candidates", "5"], "--progressive_candidates 2, all stages but the first, got 1"),
        (["--skip_limit", "1", "--progressive_candidates", "5,2"], "--skip_limit: normal edge 0 of space S0 needs its skip"),
    ):
        assert main(arguments(tree, folder, *more)) == 2
        assert says in capsys.readouterr().err
        assert not folder.exists()
