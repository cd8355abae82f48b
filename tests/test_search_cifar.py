"""search_cifar as a user meets it; what it shares with search_imagenet is tested there."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts.data import ImageArray
from fastdarts.engine import RunFolder, Session, SignalHandler, World, steps_of
from fastdarts.inputs.images import ImageArrays
from fastdarts.inputs.source import CIFAR, CIFAR10, CIFAR100
from fastdarts.protocols import StepReport
from fastdarts.registry import OBJECTIVES, STATISTICS
from fastdarts.runs.build_search import build
from fastdarts.runs.plan_search import prepare
from fastdarts.runs.plans import free_for
from fastdarts.runs.resolved import Resolved
from fastdarts.search_cifar import main, resolve
from fastdarts.settings import ConfigError, SearchCifarSettings
from fastdarts.supernet import eager_candidates as eager
from tests.support.runs import free_port, hasten
from tests.test_search_imagenet import FILES
from tests.zoo.operations import OPS

TINY = ["--batch_size", "4", "--layers", "3", "--init_channels", "4", "--log_every", "2", "--epochs", "2", "--threads", "1"]


def pictures(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of two classes, one brighter than the other."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).integers(0, 128, (count, side, side, 3))
    return (noise + 127 * labels[:, None, None, None]).astype(np.uint8), labels


def write_npz(path: Path, count: int = 24, side: int = 16) -> Path:
    images, labels = pictures(count, side)
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 16 pixels."""
    return write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def arguments(data: Path, *more: str) -> list[str]:
    return ["--data", str(data), *TINY, *more]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(data, "--save", str(folder))) == 0
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take longer than all the rest; that of `finished` is whole, a module's fixture comes before this one."""
    hasten(monkeypatch)


def epochs(folder: Path) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]


def test_run_folder_is_complete(finished: Path, data: Path) -> None:
    assert set(FILES.split()) <= {p.name for p in finished.iterdir()}
    saved = json.loads((finished / "settings.json").read_text())
    assert saved["command"] == "search_cifar" and saved["settings"]["image_size"] == 16
    about = saved["data"]
    assert (about["root"], about["files"], about["train_images"], about["val_images"]) == (str(data), 24, 12, 12)
    assert about["is_sample"] is False and about["excluded"] == 0 and len(about["sha256"]) == 64
    assert saved["input"] == {"route": "memory", "place": "ram", "bytes": 24 * 16 * 16 * 3}
    names = [(finished / name).read_text().split() for name in ("train.txt", "val.txt")]
    assert len(set(names[0] + names[1])) == 24 and all(name.startswith("train/") for name in names[0])
    assert sum(int(name[6:]) % 2 for name in names[0]) == 6  # half of each class
    assert [r["epoch"] for r in epochs(finished)] == [1, 2]
    assert epochs(finished)[0]["alpha_loss"] > 0 and "edges" not in epochs(finished)[0]
    log = (finished / "log.txt").read_text()
    assert "input: 0.0 MiB of images in RAM; crops of 16 of 16 px, 4 pixels of black padding, flips" in log


def interrupted(monkeypatch: pytest.MonkeyPatch, argv: list[str], step: int) -> None:
    """Run until SIGINT comes after `step`."""
    plain = Session._on_step

    def on_step(self: Session, report: StepReport) -> None:
        plain(self, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_on_step", on_step)
        assert main(argv) == 130


def test_resume_within_epoch_is_bitwise_identical(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupted(monkeypatch, arguments(data, "--save", str(folder)), step=4)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert steps_of(state) == 4 and len(epochs(folder)) == 1
    assert main(arguments(data, "--save", str(folder), "--image_size", "16")) == 0
    for name in ("metrics.jsonl", "genotype.json", "train.txt", "val.txt"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


NOISE = "--space s4"
STAGES = "--method p-darts --layers 3 --epochs 2 --begin 0 --progressive_layers 0,0 --progressive_candidates 3 "
STAGES += "--progressive_dropout 0,0.4 --skip_limit 0 --objective supervised"


@pytest.mark.parametrize("more", [NOISE, STAGES], ids=["noise", "dropout"])
def test_random_draws_do_not_depend_on_stops_or_reports(
    more: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = ([*arguments(data, "--save", str(tmp_path / name)), *more.split()] for name in ("whole", "parts"))
    assert main(whole) == 0
    monkeypatch.setattr("fastdarts.engine.session.REPORT_SECONDS", -1.0)
    interrupted(monkeypatch, parts, step=4)
    assert main(parts) == 0
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_other_images_or_crops_are_rejected_for_same_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mine = write_npz(tmp_path / "mine.npz")
    argv = arguments(mine, "--save", str(tmp_path / "run"), "--epochs", "1")
    assert main(argv) == 0
    for more, says in (
        (["--crop_padding", "2"], "--crop_padding is 2 but was 4"),
        (["--image_size", "12"], "--image_size is 12 but was 16"),
    ):
        assert main([*argv, *more]) == 2
        assert says in capsys.readouterr().err
    images, labels = pictures(24, 16)
    images[23, 15, 15, 2] ^= 1
    np.savez(mine, images=images, labels=labels)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "mine.npz are not those that" in err and "(24 then, 24 now)" in err and err.count("\n") == 1


def test_continued_run_keeps_image_size(data: Path, tmp_path: Path) -> None:
    """--image_size is the images' own only where nothing else was asked for before."""
    argv = arguments(data, "--save", str(tmp_path / "run"))
    assert main([*argv, "--image_size", "12", "--dry_run"]) == 0
    assert main([*argv, "--image_size", "12", "--epochs", "1"]) == 0
    (tmp_path / "run" / "log.txt").write_text("")
    assert main([*argv, "--epochs", "1", "--batch_size", "auto"]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "12 px, batch 4" in log and "crops of 12 of 16 px" in log and "nothing left to do" in log


def test_space_spelling_is_normalised(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(json.dumps({"name": "mine", "normal": ["skip_connect"], "reduce": ["skip_connect"]}))
    for first, second in (("S2", "s2"), ("mine.json", str(tmp_path / "mine.json"))):
        argv = arguments(data, "--epochs", "1", "--save", f"run of {second.count('/')}")
        assert main([*argv, "--space", first]) == 0 and main([*argv, "--space", second]) == 0
    one, other = (resolve({"data": path}).settings.data for path in ("images", f"../{tmp_path.name}/images"))
    assert one == other == str(tmp_path / "images")


def test_candidates_of_modules_are_registered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(json.dumps({"candidates": ["skip_connect", "smooth"]}))
    module = "from torch import nn\nfrom fastdarts.supernet import register_candidate\n"
    module += "register_candidate('smooth', lambda C, stride: nn.AvgPool2d(3, stride, 1))\n"
    Path("smoothing.py").write_text(module)
    command = [sys.executable, "-m", "fastdarts.search_cifar", *arguments(data, "--epochs", "1", "--save", "run")]
    command += ["--space", "mine.json", "--modules", "smoothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("run/settings.json").read_text())["space"]["normal"] == ["skip_connect", "smooth"]


def test_example_objective_is_named_on_command_line(
    root: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(root / "examples")
    monkeypatch.setattr(OBJECTIVES, "_rows", dict(OBJECTIVES))
    argv = arguments(data, "--modules", "custom_objective", "--objective", "mean-colour", "--save", str(tmp_path / "run"))
    try:
        assert main([*argv, "--epochs", "1"]) == 0
    finally:
        sys.modules.pop("custom_objective", None)
    saved = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    assert (saved["modules"], saved["objective"]) == ("custom_objective", "mean-colour")
    assert epochs(tmp_path / "run")[0]["valid"]["loss"] > 0


def test_custom_batch_norm_is_not_synchronised(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "BUILDERS", eager.BUILDERS | {"noise": OPS["sep_conv_3x3"]})
    given = {"data": str(data), "space": "s4", "layers": 3, "init_channels": 4, "batch_size": 4, "sync_bn": True}
    resolved = resolve(given | {"image_size": 16})
    images = ImageArrays.choose(resolved.settings, RunFolder(tmp_path / "run"))
    free = free_for(resolved.settings, World())
    two = SimpleNamespace(is_single=False, size=2, rank=0, backend="gloo")
    with pytest.raises(ConfigError, match=r"--sync_bn: cells\.0\._ops: BatchNorm in a custom candidate"):
        prepare(resolved, images, free, two, SignalHandler())


def test_ignored_flags_are_named(data: Path, capsys: pytest.CaptureFixture) -> None:
    flags = "--objective supervised --decoder single-scale --mask_ratio 0.4 --cell_norm running --early_stop_skips 3"
    assert main([*arguments(data, "--dry_run"), *flags.split(), "--progressive_layers", "x"]) == 0
    message = "".join(capsys.readouterr())
    for line in (
        "ignored: --mask_ratio, because --objective supervised masks nothing",
        "ignored: --decoder applies only to --objective mae",
        "ignored: --cell_norm applies only to NAS-Bench-201's network",
        "ignored: --early_stop_skips applies only to --early_stop skips",
        "ignored: --progressive_layers applies only to --progressive",
    ):
        assert line in message
    assert message.count("ignored:") == 5
    parts = "--method p-darts --epochs 6 --no-skip_dropout --progressive_dropout 0,0,0 --channel_sampling random"
    assert main([*arguments(data, "--dry_run"), *parts.split()]) == 0
    message = "".join(capsys.readouterr())
    assert "ignored: --progressive_dropout applies only to --skip_dropout" in message
    assert "ignored: --channel_sampling applies only to --partial_channels above 1" in message
    assert main([*arguments(data, "--dry_run"), "--mask_ratio", "0.4", "--early_stop", "skips", "--early_stop_skips", "3"]) == 0
    assert "ignored:" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "more",
    ["--objective supervised", "--unrolled --partial_channels 2 --edge_normalization", "--image_size 8 --crop_padding 0"],
)
def test_variants_run(more: str, data: Path, tmp_path: Path) -> None:
    """One epoch with each kind of setting."""
    assert main([*arguments(data, "--save", str(tmp_path / "run"), "--epochs", "1"), *more.split()]) == 0
    (epoch,) = epochs(tmp_path / "run")
    assert epoch["alpha_loss"] > 0 and ("top1" in epoch["valid"]) == ("supervised" in more)


def test_lists_may_use_image_numbers(finished: Path, data: Path, tmp_path: Path) -> None:
    lists = ["--train_list", str(finished / "train.txt"), "--val_list", str(finished / "val.txt")]
    assert main(arguments(data, "--save", str(tmp_path / "run"), *lists)) == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def as_batches(folder: Path) -> Path:
    images, labels = pictures(40, 32)
    rows = images.transpose(0, 3, 1, 2).reshape(40, -1)
    folder.mkdir(parents=True)
    for i in range(5):
        part = slice(8 * i, 8 * i + 8)
        batch = {b"data": rows[part], b"labels": labels[part].tolist()}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"dark", b"bright"]}, 2))
    return folder


def as_files(folder: Path) -> Path:
    for number, (image, label) in enumerate(zip(*pictures(24, 16), strict=True)):
        path = folder / "train" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.mark.parametrize("make", [as_batches, as_files])
def test_every_data_format_is_planned(make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = make(tmp_path / "images")
    assert main(arguments(path, "--dry_run", "--save", str(tmp_path / "run"))) == 0
    out = capsys.readouterr().out
    assert "in 2 classes, " in out and "note: --learning_rate 0.025 was published for batch 64; scaled linearly, 4" in out
    assert not (tmp_path / "run").exists()


def test_missing_data_is_stated_first(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = pictures(40, 32)
    monkeypatch.setattr("fastdarts.inputs.origin.sample_images", lambda: ImageArray.make(Path("sample"), images, labels))
    assert main(["--dry_run", "--batch_size", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == CIFAR.notice and any("C = 8" in line for line in lines)
    assert "NOT CIFAR" in CIFAR.notice
    rates = [resolve(given).settings.learning_rate for given in ({}, {"data": "x"})]
    assert rates == [CIFAR.sample["learning_rate"], 0.025]


@pytest.mark.parametrize(
    ("side", "more", "says"),
    [
        (33, "", "--image_size 33 does not fit the stem and two reductions: a multiple of 4 is needed, as 32"),
        (16, "--image_size 20", "--image_size 20: the images of"),
        (16, "--image_size 16 --crop_padding 16", "--crop_padding 16: crops of 16 pixels could be all black, choose less"),
        (16, "--patch_size 5", "patch_size 5 must divide the images' height 16"),
        (16, "--batch_size 13", "batch_size is 13 but the train split has 12 images"),
        (16, "--train_fraction 0.6", "overlap"),
        (16, "--init_channels 6 --partial_channels 4", "C/k"),
        (16, "--train_list a.txt", "must be given together"),
        (
            4,
            "--batch_size 1 --objective supervised --crop_padding 0",
            "--batch_size 1, --image_size 4: Expected more than 1 value per channel",
        ),
    ],
)
def test_invalid_input_exits_with_status_2_and_writes_nothing(
    side: int, more: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = arguments(write_npz(tmp_path / "a.npz", side=side), "--save", str(tmp_path / "run"), *more.split())
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and err.startswith("python -m fastdarts.search_cifar: error: ")
    assert not (tmp_path / "run").exists()


def test_odd_sized_images_are_cropped_on_request(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = arguments(write_npz(tmp_path / "a.npz", side=33), "--image_size", "32", "--dry_run", "--batch_size", "4")
    assert main(argv) == 0
    assert "crops of 32 of 33 px" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"PK", b"cposix\nsystem\n(S'true'\ntR."])
def test_invalid_data_exits_with_one_line(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = as_batches(tmp_path / "cifar-10-batches-py")
    if content is None:
        (folder / "data_batch_5").unlink()
    else:
        (folder / "data_batch_5").write_bytes(content)
    assert main(arguments(tmp_path, "--save", str(tmp_path / "run"))) == 2
    err = capsys.readouterr().err
    assert "data_batch_5" in err and err.count("\n") == 1 and "Traceback" not in err
    assert main(arguments(tmp_path / "nowhere")) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_statistics_are_chosen_by_name() -> None:
    settings = SearchCifarSettings(image_size=32, layers=3, init_channels=4, statistics="svhn")
    for classes in (10, 100):
        _, objective = build(Resolved.of(settings, CIFAR), classes)
        assert (objective.masking.mean, objective.masking.std) == STATISTICS["svhn"]
    old = {name: value for name, value in asdict(SearchCifarSettings()).items() if name != "statistics"}
    assert SearchCifarSettings().differences(old) == []
    assert "--statistics is 'svhn' but was 'auto'" in settings.differences(old)


def test_search_imagenet_flags_are_unknown(capsys: pytest.CaptureFixture) -> None:
    for flag in ("--strict", "--cache", "--loader", "--workers"):
        with pytest.raises(SystemExit):
            main([flag])
        assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def test_pixels_use_standard_normalisation() -> None:
    resolved = Resolved.of(SearchCifarSettings(image_size=32, layers=3, init_channels=4), CIFAR)
    for classes, colours in ((10, CIFAR10), (100, CIFAR100), (7, CIFAR10)):
        supernet, objective = build(resolved, classes)
        assert (objective.masking.mean, objective.masking.std) == colours and supernet.stem_kind == "cifar"
    with pytest.raises(ConfigError, match=r"--image_size 30 does not fit .* as 28"):
        build(Resolved.of(SearchCifarSettings(image_size=30, objective="supervised"), CIFAR), 10)


@pytest.mark.campaign
@pytest.mark.parametrize("space", ["s0", "nasbench201"])
def test_two_ranks_match_one_process(space: str, data: Path, tmp_path: Path) -> None:
    """With BatchNorm over both: the losses of one process."""
    flags = arguments(data, "--space", space, "--stage_cells", "1", "--epochs", "1", "--sync_bn", "--check_ranks_every", "1")
    flags = [*flags, "--save"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*run, "-m", "fastdarts.search_cifar", *flags, str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert main([*flags, str(tmp_path / "one")]) == 0
    (two,), (one,) = epochs(tmp_path / "two"), epochs(tmp_path / "one")
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert two["valid"]["baseline"] == pytest.approx(one["valid"]["baseline"], rel=1e-5)
    assert (tmp_path / "two/train.txt").read_bytes() == (tmp_path / "one/train.txt").read_bytes()


def test_real_cifar10_is_searched(shared_data: Path, tmp_path: Path) -> None:
    """An epoch on a few images of each class."""
    argv = arguments(shared_data / "cifar10", "--epochs", "1", "--save", str(tmp_path / "run"))
    assert main([*argv, "--train_fraction", "0.001", "--val_fraction", "0.001"]) == 0
    assert json.loads((tmp_path / "run/settings.json").read_text())["data"]["train_images"] == 50
