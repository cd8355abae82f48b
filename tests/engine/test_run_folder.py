"""The run folder: atomic files, continuation, records dropped when a checkpoint is restored."""

import json
from dataclasses import asdict

import pytest
import torch

from fastdarts.engine import RunFolder, RunFolderError
from fastdarts.engine.files import write_atomically, write_text
from fastdarts.settings import SearchImagenetSettings


def made(path, **settings):
    folder = RunFolder.open(path, SearchImagenetSettings(**settings))
    path.mkdir(exist_ok=True)
    folder.create({"settings": asdict(SearchImagenetSettings(**settings))})
    return folder


def test_failed_write_keeps_old_file(tmp_path):
    path = tmp_path / "f"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_new_and_empty_folders_are_new_runs(tmp_path):
    assert RunFolder.open(tmp_path / "new", SearchImagenetSettings()).saved is None
    assert not (tmp_path / "new").exists()  # looking writes nothing
    assert RunFolder.open(tmp_path, SearchImagenetSettings()).saved is None


def test_run_with_same_settings_is_continued(tmp_path):
    made(tmp_path / "run", epochs=3)
    assert RunFolder.open(tmp_path / "run", SearchImagenetSettings(epochs=3, workers=5)).saved is not None


def test_other_settings_are_rejected_by_name(tmp_path):
    made(tmp_path / "run", epochs=3)
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(tmp_path / "run", SearchImagenetSettings(epochs=4, seed=1))
    assert "--epochs is 4 but was 3" in str(error.value) and "--seed is 1 but was 0" in str(error.value)


@pytest.mark.parametrize("name", ["console.txt", "slurm-1.out", ".DS_Store", ".nfs0001", "._x", "train.log", "thesis.tex"])
def test_foreign_files_are_kept(tmp_path, name):
    """A scheduler's or the shell's output, what the system puts there, notes."""
    (tmp_path / name).write_text("x")
    folder = RunFolder.open(tmp_path, SearchImagenetSettings())
    with folder.locked():
        folder.create({"settings": asdict(SearchImagenetSettings())})
        folder.save({"epoch": 1})
    assert RunFolder.open(tmp_path, SearchImagenetSettings()).restore() == {"epoch": 1}
    assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize(
    "name", ["report.html", "log.txt", "checkpoint.3.pt", "train.txt", "status", "cell_normal.svg", "sweep.json"]
)
def test_files_a_run_would_overwrite_are_named(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=name.replace("sweep.json", "contains a sweep")) as error:
        RunFolder.open(tmp_path, SearchImagenetSettings())
    assert "choose another folder" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.open(tmp_path / name, SearchImagenetSettings())
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": 3}'])
def test_damaged_settings_are_named(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"settings\.json"):
        RunFolder.open(tmp_path, SearchImagenetSettings())


def test_run_killed_before_settings_restarts(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "train.txt").write_text("train/a/1.JPEG\n")
    assert RunFolder.open(tmp_path, SearchImagenetSettings()).saved is None


def test_restore_drops_records_after_checkpoint(tmp_path):
    folder = made(tmp_path / "run")
    for epoch in (1, 2):
        folder.append("metrics.jsonl", {"kind": "epoch", "epoch": epoch})
    folder.save({"epoch": 1})
    with open(folder["metrics.jsonl"], "a") as file:
        file.write('{"kind": "step", "ep')  # killed while writing
    assert folder.restore() == {"epoch": 1}
    assert [json.loads(line)["epoch"] for line in folder["metrics.jsonl"].read_text().splitlines()] == [1]


def test_restore_without_checkpoint_starts_at_zero(tmp_path):
    folder = made(tmp_path / "run")
    folder.append("metrics.jsonl", {"kind": "step", "epoch": 1, "step": 1})
    assert folder.restore() is None and folder["metrics.jsonl"].read_text() == ""


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_damaged_checkpoint_is_named_and_kept(tmp_path, keep):
    folder = made(tmp_path / "run")
    folder.append("metrics.jsonl", {"kind": "epoch", "epoch": 1})
    folder.save({"epoch": 1, "w": torch.randn(1000)})
    data = folder["checkpoint.pt"].read_bytes()
    folder["checkpoint.pt"].write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt is damaged"):
        folder.restore()
    assert folder["checkpoint.pt"].exists() and folder["metrics.jsonl"].read_text()


def test_damaged_metrics_line_is_named(tmp_path):
    folder = made(tmp_path / "run")
    folder["metrics.jsonl"].write_text("not json\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl is damaged"):
        folder.restore()
    assert folder["metrics.jsonl"].read_text() == "not json\n"
