"""The command, as a user meets it: a whole tiny search, its folder, continuing it, and everything that can be wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from fastdarts import engine
from fastdarts.inputs.source import IMAGENET
from fastdarts.networks import STANDARD, count
from fastdarts.report import write_report
from fastdarts.report.facts import key_figures, number
from fastdarts.report.run import read_run
from fastdarts.search import Bilevel
from fastdarts.search_imagenet import main, resolve
from fastdarts.spaces.genotype import Genotype
from tests.support.runs import SPLIT, TINY, write_tree

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("images"))


def arguments(tree, *more):
    return ["--data", str(tree), *TINY, *SPLIT, "--epochs", "3", "--begin", "1", *more]


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A finished run of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(tree, "--save", str(folder))) == 0
    return folder


FILES = """alpha.png cell_normal.png cell_normal.svg cell_reduce.png cell_reduce.svg checkpoint.pt collapse.png excluded.txt
genotype.json log.txt losses.png metrics.jsonl reconstruction.png report.html settings.json timing.jsonl train.txt val.txt"""


def test_run_folder_is_complete(finished, tree):
    assert set(FILES.split()) <= {p.name for p in finished.iterdir()}
    settings = json.loads((finished / "settings.json").read_text())
    assert settings["settings"]["epochs"] == 3 and settings["data"]["root"] == str(tree)
    assert settings["data"]["is_sample"] is False and settings["commit"] and settings["versions"]["torch"]
    names = {n for part in ("train.txt", "val.txt") for n in (finished / part).read_text().split()}
    assert len(names) == 16 and all((tree / n).is_file() for n in names)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    epochs = [r for r in records if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [1, 2, 3]
    assert epochs[0]["alpha_loss"] is None and epochs[1]["alpha_loss"] > 0
    assert [r["step"] for r in records if r["kind"] == "step"] == [2, 4, 6]
    for r in epochs:
        assert r["valid"]["loss"] > 0 and r["valid"]["baseline"] > 0
        assert np.allclose(np.sum(r["ops"]["normal"], 1), 1) and len(r["edges"]["reduce"]) == 14
    genotype = Genotype.from_json((finished / "genotype.json").read_text())
    assert str(genotype) == epochs[-1]["genotype"]
    assert str(genotype) in unescape((finished / "report.html").read_text())
    counts, found = count(genotype, STANDARD["imagenet"]), json.loads((finished / "genotype.json").read_text())
    assert (found["params"], found["macs"]) == (counts["params"], counts["macs"]) and "48 channels" in found["network"]
    figures = [figure[:2] for figure in key_figures(read_run(finished))]
    assert ("Parameters", number(counts["params"])) in figures and ("Multiply-adds", number(counts["macs"])) in figures
    log = (finished / "log.txt").read_text()
    assert re.search(r"epoch 1/3  step 2/6  train [\d.]+  alpha not updated yet  [\d.]+ images/s  \d:\d\d left", log)
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 3


def test_search_is_reproducible_by_seed(finished, tree, tmp_path):
    assert main(arguments(tree, "--save", str(tmp_path / "again"))) == 0
    assert main(arguments(tree, "--save", str(tmp_path / "other"), "--seed", "1")) == 0
    for name in ("metrics.jsonl", "genotype.json", "train.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() != (finished / "metrics.jsonl").read_bytes()
    assert (tmp_path / "other" / "train.txt").read_bytes() != (finished / "train.txt").read_bytes()


def test_resume_after_kill_is_bitwise_identical(finished, tree, tmp_path):
    """SIGKILL in epoch 2 or later, then the same command again: the same bytes as the run that was left in peace."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "fastdarts.search_imagenet", *arguments(tree, "--save", str(folder))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=os.getcwd())
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] < 3
    assert main(arguments(tree, "--save", str(folder))) == 0
    for name in ("metrics.jsonl", "genotype.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert "continuing" in (folder / "log.txt").read_text()


def test_step_flags_change_nothing_on_cpu(finished, tree, tmp_path, capsys):
    """The same bytes with and without a word about graphs and TF32, and a run may go on with other graphs and optimizers."""
    folder = tmp_path / "run"
    cudnn = torch.backends.cudnn.allow_tf32
    flags = ["--cuda_graph", "off", "--tf32", "--amp", "off", "--optimizer_backend", "torch"]
    assert main([*arguments(tree, "--save", str(folder)), *flags]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    saved = json.loads((folder / "settings.json").read_text())["settings"]
    assert (saved["cuda_graph"], saved["tf32"], saved["amp"], saved["optimizer_backend"]) == ("off", True, "off", "torch")
    assert torch.backends.cudnn.allow_tf32 == cudnn
    assert "graph" not in (folder / "log.txt").read_text()
    assert (finished / "log.txt").read_text().count("steps are not captured in CUDA graphs") == 1
    capsys.readouterr()
    assert main([*arguments(tree, "--save", str(folder)), "--tf32", "--cuda_graph", "auto"]) == 0
    assert main([*arguments(tree, "--save", str(folder)), "--cuda_graph", "auto"]) == 2
    assert "--tf32 is False but was True" in capsys.readouterr().err


def test_unrelated_apex_exits_with_status_2(tree, tmp_path, capsys, monkeypatch):
    (tmp_path / "path" / "apex").mkdir(parents=True)
    (tmp_path / "path" / "apex" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "path")
    assert main([*arguments(tree, "--save", str(tmp_path / "run")), "--optimizer_backend", "apex"]) == 2
    err = capsys.readouterr().err
    assert "an unrelated package of that name" in err and "github.com/NVIDIA/apex" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_skipped_updates_are_logged(tree, tmp_path, monkeypatch, capsys):
    def broken(self, *args, **kwargs):
        self.skipped += torch.tensor([1, 0])
        return plain(self, *args, **kwargs)

    plain = Bilevel.__call__
    monkeypatch.setattr(Bilevel, "__call__", broken)
    argv = ["--data", str(tree), *TINY, *SPLIT, "--batch_size", "2", "--epochs", "1", "--begin", "0"]
    assert main([*argv, "--save", str(tmp_path / "run")]) == 1  # every update of the epoch
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "updates skipped so far in this epoch because of non-finite gradients: 2 of the weights" in log
    assert "epoch 1: 4 of 4 updates of the weights had non-finite gradients" in capsys.readouterr().err


def test_finished_run_is_not_changed(finished, tree, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    assert main(arguments(tree, "--save", str(finished))) == 0
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert "nothing left to do" in capsys.readouterr().out


def test_other_settings_for_same_folder_are_rejected(finished, tree, capsys):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    assert main([*arguments(tree, "--save", str(finished)), "--mask_ratio", "0.6", "--seed", "5"]) == 2
    err = capsys.readouterr().err
    assert "--mask_ratio is 0.6 but was 0.5" in err and "--seed is 5 but was 0" in err and err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_run_with_changed_images_is_rejected(tree, tmp_path, capsys):
    mine = tmp_path / "images"
    shutil.copytree(tree, mine)
    argv = ["--data", str(mine), *TINY, *SPLIT, "--epochs", "1", "--save", str(tmp_path / "run")]
    assert main(argv) == 0
    shutil.copy(mine / "train/class0/0.JPEG", mine / "train/class0/new.JPEG")
    assert main(argv) == 2
    assert "(16 then, 17 now)" in capsys.readouterr().err


def test_dry_run_prints_plan_and_writes_nothing(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(tree, "--dry_run", "--save", str(tmp_path / "run"))) == 0
    out = capsys.readouterr().out
    assert "images 8 train + 8 val of 16 in 2 classes" in out and "steps 2 an epoch, 6 in 3 epochs" in out
    assert "40 image passes" in out and re.search(r"memory about [\d.]+ GiB", out)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_stated_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == IMAGENET.notice


def test_default_folder_is_named_by_search_and_time(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", str(tree), *TINY, *SPLIT, "--epochs", "1"]) == 0
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"search-imagenet-mae-\d{8}-\d{6}", folder.name)


@pytest.mark.parametrize(
    "more",
    [
        "--objective supervised",
        "--unrolled --step_order weights-first",
        "--channel_sampling random --partial_channels 2 --mask_token learned --loss l2",
        "--partial_channels 1 --no-edge_normalization --hessian_every 1",
    ],
)
def test_variants_run(more, tree, tmp_path):
    """One epoch with each kind of setting, and its report."""
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1", "--begin", "0", "--save", str(tmp_path / "run")]
    assert main([*argv, *more.split()]) == 0
    (epoch,) = (r for r in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch")
    assert epoch["alpha_loss"] > 0 and np.isfinite(epoch["train_loss"])
    assert ("top1" in epoch["valid"]) == ("supervised" in more)
    assert ("hessian" in epoch) == ("hessian" in more) and ("edges" in epoch) == ("no-edge" not in more)
    assert (tmp_path / "run/reconstruction.png").exists() == ("supervised" not in more)
    assert "not drawn" not in write_report(tmp_path / "run").read_text()


def test_custom_lists_are_used(finished, tree, tmp_path):
    argv = ["--data", str(tree), *TINY, "--epochs", "3", "--begin", "1", "--save", str(tmp_path / "run")]
    lists = ["--train_list", str(finished / "train.txt"), "--val_list", str(finished / "val.txt")]
    assert main([*argv, *lists]) == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_bad_files_are_named_counted_and_excluded(tmp_path, capsys):
    tree = write_tree(tmp_path / "images")
    whole = (tree / "train/class0/3.JPEG").read_bytes()
    (tree / "train/class0/3.JPEG").write_bytes(whole[: len(whole) // 2])
    Image.new("CMYK", (40, 40), (10, 200, 30, 0)).save(tree / "train/class1/3.JPEG", format="JPEG")
    Image.new("RGB", (40, 40), (10, 200, 30)).save(tree / "train/class1/4.JPEG", format="PNG")
    argv = ["--data", str(tree), *TINY, *SPLIT, "--batch_size", "3", "--epochs", "1", "--save", str(tmp_path / "run")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "excluded: train/class0/3.JPEG" in out and "1 of 16 files cannot be decoded" in out
    assert (tmp_path / "run/excluded.txt").read_text().startswith("train/class0/3.JPEG\t")
    names = (tmp_path / "run/train.txt").read_text() + (tmp_path / "run/val.txt").read_text()
    assert "class0/3.JPEG" not in names and "class1/3.JPEG" in names and "class1/4.JPEG" in names
    assert json.loads((tmp_path / "run/settings.json").read_text())["data"]["excluded"] == 1


def test_unreadable_files_are_excluded(tmp_path, capsys):
    tree = trees("broken link", tmp_path / "images")
    (tree / "train/class1/7.JPEG").unlink()
    os.mkfifo(tree / "train/class1/7.JPEG")
    (tree / "train/class0/folder.JPEG").mkdir()
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1", "--save", str(tmp_path / "run")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "5 of 17 files cannot be decoded and are excluded" in out
    assert "5 files excluded because they cannot be decoded, listed in excluded.txt" in out
    excluded = dict(line.split("\t") for line in (tmp_path / "run/excluded.txt").read_text().splitlines())
    links = {f"train/class0/{i}.JPEG": "a broken link" for i in range(3)}
    others = {"train/class0/folder.JPEG": "a folder, not a file", "train/class1/7.JPEG": "a pipe, not a file"}
    assert excluded == links | others
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["data"]["excluded"] == 5 and settings["settings"]["strict"] is False
    assert f"{len(excluded)} files excluded" in (tmp_path / "run/log.txt").read_text()


def test_strict_accepts_good_files_and_checks_continued_run(tmp_path, capsys):
    tree = write_tree(tmp_path / "images")
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1", "--save", str(tmp_path / "run")]
    assert main([*argv, "--strict"]) == 0
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["strict"] is True
    (tree / "train/class1/5.JPEG").write_bytes(b"")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert main([*argv, "--strict"]) == 2
    err = capsys.readouterr().err
    assert "--strict: 1 of 16 chosen files" in err and "train/class1/5.JPEG (empty file)" in err and err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_second_search_checks_no_file(tmp_path, capsys, monkeypatch):
    tree = write_tree(tmp_path / "images")
    for path in tree.glob("*/*/*"):
        os.utime(path, (1e9, 1e9))
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1"]
    assert main([*argv, "--save", str(tmp_path / "first")]) == 0
    assert "checked 16 files, 0 of them unchanged since an earlier check" in capsys.readouterr().out
    assert main([*argv, "--save", str(tmp_path / "second")]) == 0
    assert "checked 16 files, 16 of them unchanged since an earlier check" in capsys.readouterr().out
    for name in ("metrics.jsonl", "train.txt", "val.txt", "excluded.txt"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def trees(kind, path):
    """Wrong folders."""
    if kind == "missing":
        return path / "nowhere"
    if kind == "empty":
        (path / "train" / "class0").mkdir(parents=True)
    elif kind == "no train":
        write_tree(path / "x").joinpath("train").rename(path / "training")
    elif kind == "one class":
        write_tree(path, classes=1)
    elif kind == "broken link":
        write_tree(path)
        for name in ("0", "1", "2"):
            (path / f"train/class0/{name}.JPEG").unlink()
            (path / f"train/class0/{name}.JPEG").symlink_to(path / "gone.JPEG")
    elif kind == "all bad":
        write_tree(path, classes=1)
        for file in (path / "train/class0").iterdir():
            file.write_bytes(b"")
    else:
        write_tree(path)
    return path


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("missing", "", "No such file"),
        ("empty", "", "no images"),
        ("no train", "", "has no folder 'train'"),
        ("one class", "--objective supervised", "at least two classes"),
        ("all bad", "", "too few of the chosen files"),
        ("broken link", "--strict", "--strict: 3 of 16 chosen files"),
        ("broken link", "--strict", "cannot be decoded: train/class0/0.JPEG (a broken link), train/class0/1.JPEG"),
        ("good", "--batch_size 100", "batch"),
        ("good", "--image_size 40", "--image_size 40 does not fit"),
        ("good", "--patch_size 5", "patch_size 5 must divide the images' height 32"),
        ("good", "--mask_ratio 0.01", "hides none of an image's 16 patches"),
        ("good", "--mask_ratio 1.5", "out of range"),
        ("good", "--mask_ratio 0", "out of range"),
        ("good", "--train_fraction 0.8 --val_fraction 0.5", "overlap"),
        ("good", "--init_channels 6 --partial_channels 4", "C/k"),
        ("good", "--backend magic", "--backend"),
        ("good", "--device tpu9", "--device"),
        ("good", "--device cpu --amp bf16", "--amp bf16: on a CPU it is many times slower than float32"),
        ("good", "--device cpu --amp fp16", "--amp fp16: on a CPU"),
        ("good", "--device cpu --cuda_graph on", "--cuda_graph on: CUDA graphs need a GPU, this runs on cpu"),
        ("good", "--device cpu --optimizer_backend apex", "--optimizer_backend apex: apex"),
        ("good", "--profile 5", "--profile 5: expected the first and last step as FIRST:LAST, for example 10:12"),
        ("good", "--profile 5:3", "--profile 5:3: the first step must be at least 1 and not after the last"),
        ("good", "--profile 0:3", "--profile 0:3: the first step must be"),
        ("good", "--profile 1:3", "--profile 1:3: the run has only 2 steps, no step 3"),
        ("good", "--device meta", "expected auto, cpu, cuda or cuda:N"),
        ("good", "--train_list nowhere.txt", "must be given together"),
        ("good", "--train_list nowhere.txt --val_list nowhere.txt", "nowhere.txt"),
    ],
)
def test_invalid_input_exits_with_status_2_and_writes_nothing(kind, more, says, tmp_path, capsys):
    data = trees(kind, tmp_path / "data")
    argv = ["--data", str(data), *TINY, *SPLIT, "--epochs", "1", "--save", str(tmp_path / "run"), *more.split()]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_real_command_exits_with_status_2(tmp_path):
    command = [sys.executable, "-m", "fastdarts.search_imagenet", "--data", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_begin_and_warm_up_scale_with_epochs():
    ten = resolve({"data": "x", "epochs": 10}).settings
    assert (ten.begin, ten.warmup_epochs) == (7, 1)
    assert resolve({"data": "x"}).settings.begin == 35
    assert resolve({"data": "x", "epochs": 10, "begin": 2}).settings.begin == 2


def test_real_imagenet_files_are_searched(shared_data, tmp_path):
    """Two epochs on real ImageNet files."""
    argv = ["--data", str(shared_data / "imagenet_sample"), *TINY, "--epochs", "2", "--batch_size", "60"]
    assert main([*argv, "--save", str(tmp_path / "run")]) == 0
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["data"]["train_images"] == settings["data"]["val_images"] == 120


def test_diverging_search_stops_and_keeps_checkpoint(tree, tmp_path, capsys):
    """A learning rate that overflows: status 1, the epoch named, nothing of it recorded."""
    argv = ["--data", str(tree), *TINY, *SPLIT, "--epochs", "1", "--learning_rate", "1e38", "--grad_clip", "0"]
    assert main([*argv, "--save", str(tmp_path / "run")]) == 1
    err = capsys.readouterr().err
    assert "epoch 1: the losses are not finite" in err and err.count("\n") == 1
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_uncreatable_folder_is_rejected_first(tree, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(arguments(tree, "--save", str(tmp_path / "file" / "run"))) == 2
    err = capsys.readouterr().err
    assert "cannot be created" in err and err.count("\n") == 1 and (tmp_path / "file").read_text() == "mine"


def test_invalid_settings_are_rejected_before_decoding(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastdarts.inputs.origin.verify", lambda *_: pytest.fail("files were decoded"))
    assert main(arguments(tree, "--save", str(tmp_path / "run"), "--batch_size", "100")) == 2
    assert "batch_size is 100" in capsys.readouterr().err


def test_failing_disk_stops_with_one_line(tree, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "checkpoint.pt")

    monkeypatch.setattr("fastdarts.engine.checkpoints.written_beside", full)
    assert main(arguments(tree, "--save", str(tmp_path / "run"))) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err and err.count("\n") == 1


@pytest.mark.parametrize(("batch", "says"), [("16", "the largest batch that fits is --batch_size 8"), ("8", "no smaller")])
def test_out_of_memory_suggests_batch_size(tmp_path, capsys, monkeypatch, batch, says):
    def small(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr("fastdarts.steps.CapturedSteps.__call__", small)
    tree = write_tree(tmp_path / "images", images=16)
    assert main([*arguments(tree, "--save", str(tmp_path / "run")), "--batch_size", batch]) == 1
    err = capsys.readouterr().err
    figures = rf"a step of {batch} images needs about [\d.]+ .iB, [\d.]+ GiB were free at the start: {says}"
    assert "Tried to allocate 2 GiB." in err and re.search(figures, err) and err.count("\n") == 1
    status = (tmp_path / "run" / "status").read_text()
    assert status.startswith("stopped: CUDA out of memory. Tried") and status.count("\n") == 1


def test_exhausted_address_space_is_reported(tmp_path):
    """In a process whose address space ends 600 MiB beyond what it has after its imports."""
    tree = write_tree(tmp_path / "images", images=16)
    code = (
        "import resource, sys; from fastdarts.search_imagenet import main\n"
        "taken = 1024 * int(next(x for x in open('/proc/self/status') if x.startswith('VmSize')).split()[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 600 * 2**20,) * 2)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    sizes = ["--image_size", "224", "--batch_size", "16", "--init_channels", "16", "--layers", "4", "--partial_channels", "1"]
    argv = [*arguments(tree, "--save", str(tmp_path / "run")), *sizes, "--threads", "1", "--backend", "definition"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert re.search(r"stopped: out of memory \(.+\); a step of 16 images needs about [\d.]+ .iB", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1 and "warning: more memory than is free" in done.stdout


def test_auto_batch_size_is_largest_fitting_and_kept(tmp_path, capsys, monkeypatch):
    """First the split is what bounds it, then memory; then there is less memory, and the run goes on as it began."""
    tree = write_tree(tmp_path / "images", images=20)
    argv = [*arguments(tree, "--save", str(tmp_path / "run")), "--batch_size", "auto"]
    assert main([*argv, "--dry_run"]) == 0
    assert "--batch_size auto: 16 images, the largest multiple of 8 that fits in 80%" in capsys.readouterr().out
    monkeypatch.setattr("fastdarts.steps.free_bytes", lambda _: 10**9)
    monkeypatch.setattr("fastdarts.steps.step_bytes", lambda *given, **_: 10**8 * len(given[2].index) - 10**6)
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "auto: 8 images" in out and "in 80% of the 0.93 GiB free on cpu and in the smaller split of 20 images" in out
    assert "note: --learning_rate 0.5 was published for batch 1024; scaled linearly, 8 images would use 0.00391" in out
    saved = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    assert (saved["batch_size"], saved["learning_rate"]) == (8, 0.5)
    monkeypatch.setattr("fastdarts.steps.free_bytes", lambda _: 10**7)
    assert main(argv) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert main([*arguments(tree, "--save", str(tmp_path / "other")), "--batch_size", "auto"]) == 2
    assert "--batch_size auto: no multiple of 8 fits" in capsys.readouterr().err


def test_monitoring_changes_nothing(finished, tree, tmp_path, capsys):
    """Changes nothing of the search. A continued run says that the traced steps are behind it."""
    folder = tmp_path / "run"
    more = ["--profile", "2:3"] + (["--tensorboard"] if engine.no_tensorboard() is None else [])
    assert main([*arguments(tree, "--save", str(folder)), *more]) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    trace = json.loads((folder / "trace-2-3.json").read_text())
    assert any("aten::" in event["name"] for event in trace["traceEvents"])
    assert "steps 2 to 3 are traced" in (folder / "log.txt").read_text()
    epochs = [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]
    end = f"finished  epoch 3/3  step 6/6  loss {epochs[-1]['train_loss']:.4f}  updated "
    assert (folder / "status").read_text().startswith(end)
    for line in map(json.loads, (folder / "timing.jsonl").read_text().splitlines()):
        stages = line["stages"]
        assert set(stages) == {"input", "weights", "optimizer"} | ({"alpha"} if line["epoch"] > 1 else set())
        assert all(s > 0 for s in stages.values()) and sum(stages.values()) <= line["seconds"]
    capsys.readouterr()
    assert main([*arguments(tree, "--save", str(folder)), *more]) == 0
    assert "steps 2 to 3 are not traced: the run has already done 6 steps" in capsys.readouterr().out
    assert (folder / "status").read_text().startswith(end)  # also where nothing was left to do


def test_missing_tensorboard_is_rejected_at_start(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*arguments(tree, "--save", str(tmp_path / "run")), "--tensorboard"]) == 2
    err = capsys.readouterr().err
    assert "--tensorboard: it needs the package tensorboard" in err and "fastdarts[report]" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_threads_are_set_saved_and_restored(tree, tmp_path):
    before = torch.get_num_threads()
    assert main([*arguments(tree, "--save", str(tmp_path / "run")), "--threads", str(before + 1), "--epochs", "1"]) == 0
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["threads"] == before + 1
