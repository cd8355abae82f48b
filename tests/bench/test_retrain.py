"""The comparison of retrained cells: a finished training is recorded once, and random cells are well formed."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.retrain import main, random_genotype


def test_finished_training_is_recorded_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One random cell on generated images; the second call only prints what the record holds."""
    labels = np.arange(24) % 2
    images = (np.random.default_rng(0).integers(0, 100, (24, 16, 16, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    for name, part in (("train", slice(0, 16)), ("test", slice(16, 24))):
        np.savez(tmp_path / f"{name}.npz", images=images[part], labels=labels[part])
    argv = ["--data", str(tmp_path), "--images", "12", "--cells", "random", "--seeds", "1", "--epochs", "1", "--layers", "3"]
    argv += ["--init_channels", "2", "--batch_size", "4", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert main(argv) == 0 and main(argv) == 0
    (record,) = map(json.loads, (tmp_path / "retrain.jsonl").read_text().splitlines())
    assert record["genotype"] == str(random_genotype(0)) and 0 <= record["top1"] <= 1
    saved = json.loads(next((tmp_path / "runs").glob("*-random-0/settings.json")).read_text())
    assert saved["data"]["train_images"] == 12
    assert "of 1 trainings" in capsys.readouterr().out


def test_missing_images_exit_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", str(tmp_path / "nothing"), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_random_cells_are_well_formed_and_differ() -> None:
    cells = [random_genotype(seed) for seed in range(5)]
    for cell in cells:
        cell.check()
    assert len(set(map(str, cells))) == 5
