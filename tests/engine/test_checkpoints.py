"""Checkpoints: damage is detected anywhere, no code is executed, the previous one is the fallback."""

import errno
import hashlib
import pickle
import random

import numpy as np
import pytest
import torch

from fastdarts.engine import rng_state, set_rng_state
from fastdarts.engine.checkpoints import COMMENT, MARK, Checkpoints, DamagedCheckpoint, decode, encode, load_checkpoint

CPU = torch.device("cpu")


def state(step=1, **more):
    return {"epoch": 1, "step": torch.tensor([step]), **more}


def put(folder, *steps, keep=2, best=()):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.put(encode(state(step)), step in best, keep)
    return checkpoints


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def found(checkpoints):
    got = checkpoints.newest()
    return got.path.name, int(got.state["step"])


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_round_trip_is_readable_by_torch(tmp_path):
    nested = {"list": [1, 2.5, "x"], "none": None, "rng": (3, torch.arange(3), None)}
    (tmp_path / "c.pt").write_bytes(encode(state(w=torch.arange(4.0), nested=nested)))
    for back in (load_checkpoint(tmp_path / "c.pt"), torch.load(tmp_path / "c.pt", weights_only=True)):
        assert torch.equal(back["w"], torch.arange(4.0)) and back["epoch"] == 1
        assert back["nested"]["list"] == [1, 2.5, "x"] and torch.equal(back["nested"]["rng"][1], torch.arange(3))


def test_flipped_bit_is_detected_in_every_byte():
    data = encode(state(w=torch.randn(10)))
    decode(data)
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises((ValueError, RuntimeError)):
            decode(bytes(broken))


def test_every_truncation_is_detected():
    data = encode(state(w=torch.randn(10)))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="it is truncated" if length else "it is empty"):
            decode(data[:length])
    with pytest.raises(ValueError, match="it is truncated"):
        decode(data + b"\0")


def test_files_without_digest_are_loaded(tmp_path):
    torch.save(state(7), tmp_path / "checkpoint.pt")
    assert found(Checkpoints(tmp_path)) == ("checkpoint.pt", 7)


class Poison:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("form", ["zip", "zip with a digest", "legacy", "pickle"])
def test_malicious_file_is_rejected_without_execution(tmp_path, form):
    marker, path = tmp_path / "executed", tmp_path / "checkpoint.pt"
    poisoned = state(bad=Poison(str(marker)))
    if form == "pickle":
        path.write_bytes(pickle.dumps(poisoned))
    elif form == "zip with a digest":
        path.write_bytes(encode(poisoned))
    else:
        torch.save(poisoned, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint\.pt is damaged"):
        Checkpoints(tmp_path).newest()
    assert not marker.exists()
    if form != "pickle":  # the file would have done it
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("content", [["no dict"], {"no": "epoch"}, {"epoch": "one"}])
def test_foreign_file_is_rejected(tmp_path, content):
    data = encode(content)
    assert data[-COMMENT:-64] == MARK and hashlib.sha256(data[:-COMMENT]).hexdigest() == data[-64:].decode()
    with pytest.raises(ValueError, match="does not contain the state of a run"):
        decode(data)


def test_newest_and_best_are_kept(tmp_path):
    put(tmp_path, 1, 2, 3, 4, keep=3, best=(2,))
    assert names(tmp_path) == ["checkpoint-best.pt", "checkpoint.1.pt", "checkpoint.2.pt", "checkpoint.pt"]
    steps = {name: int(load_checkpoint(tmp_path / name)["step"]) for name in names(tmp_path)}
    assert steps == {"checkpoint.pt": 4, "checkpoint.1.pt": 3, "checkpoint.2.pt": 2, "checkpoint-best.pt": 2}
    put(tmp_path, 5, keep=1)  # fewer from now on
    assert names(tmp_path) == ["checkpoint-best.pt", "checkpoint.pt"]


def test_damaged_newest_falls_back_to_previous(tmp_path, caplog):
    checkpoints = put(tmp_path, 1, 2, 3, best=(1,))
    damage(tmp_path / "checkpoint.pt")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    got = checkpoints.newest()
    assert (got.path.name, int(got.state["step"])) == ("checkpoint.1.pt", 2)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before  # looking changes nothing
    assert "checkpoint.pt is damaged (its digest does not match): using checkpoint.1.pt" in caplog.text
    checkpoints.clear(got)
    assert names(tmp_path) == ["checkpoint-best.pt", "checkpoint.1.pt", "checkpoint.pt.damaged"]
    put(tmp_path, 4)
    assert found(checkpoints) == ("checkpoint.pt", 4)
    damage(tmp_path / "checkpoint.pt")
    assert found(checkpoints) == ("checkpoint.1.pt", 2)  # the damaged one has pushed nothing out


def test_best_is_used_if_newest_intact(tmp_path):
    checkpoints = put(tmp_path, 1, 2, 3, best=(3,))
    damage(tmp_path / "checkpoint.pt")
    got = checkpoints.newest()
    assert got.path.name == "checkpoint-best.pt"
    checkpoints.clear(got)
    assert names(tmp_path) == ["checkpoint-best.pt", "checkpoint.1.pt", "checkpoint.pt.damaged"]


def test_all_damaged_raises_naming_each(tmp_path):
    checkpoints = put(tmp_path, 1, 2, best=(1,))
    for name in names(tmp_path):
        damage(tmp_path / name)
    with pytest.raises(DamagedCheckpoint) as error:
        checkpoints.newest()
    assert all(str(tmp_path / name) in str(error.value) for name in names(tmp_path))


def test_kill_between_renames_loses_at_most_one_checkpoint(tmp_path):
    checkpoints = put(tmp_path, 1, 2)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.1.pt")
    (tmp_path / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    got = checkpoints.newest()
    assert (got.path.name, int(got.state["step"])) == ("checkpoint.1.pt", 2)
    checkpoints.clear(got)
    assert names(tmp_path) == ["checkpoint.1.pt"]


def test_empty_folder_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).newest() is None


@pytest.mark.parametrize("best", [False, True])
def test_full_disk_leaves_others_intact(tmp_path, monkeypatch, best):
    checkpoints = put(tmp_path, 1, 2, best=(1,))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastdarts.engine.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.put(encode(state(3)), best)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_random_generators_resume():
    def drawn():
        return torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist(), np.random.randn()

    np.random.randn()  # leaves a second number behind
    random.gauss(0, 1)
    saved = decode(encode(state(rng=[rng_state(CPU)])))["rng"]
    first = drawn()
    assert drawn() != first
    set_rng_state(saved[0], CPU)
    assert drawn() == first
