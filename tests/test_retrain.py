"""retrain, evaluate and --then as a user meets them; what a training computes is tested in tests/training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastdarts import evaluate, retrain, search_cifar
from fastdarts.engine.checkpoints import BEST, load_checkpoint
from fastdarts.inputs.source import DATASETS
from fastdarts.networks import architecture_of, write_network
from fastdarts.registry import RETRAININGS, SPACES, STATISTICS
from fastdarts.runs.build_retrain import network_of, pixel_statistics, schedule_of
from fastdarts.runs.resolved import ResolvedRetrain
from fastdarts.settings import ConfigError, RetrainSettings
from fastdarts.settings.retrain_recipes import DEFAULTS
from fastdarts.training.update import WeightUpdate
from tests.support.trained import trainer

SIDE = 16
TINY = ["--layers", "3", "--init_channels", "2", "--batch_size", "4", "--epochs", "2", "--threads", "1", "--log_every", "2"]
SMALL = ["--no-auxiliary", "--cutout", "4", *TINY]
FILES = (
    "settings.json metrics.jsonl timing.jsonl log.txt train.txt val.txt excluded.txt checkpoint.pt genotype.json result.json"
)


def pictures(count: int, seed: int) -> dict[str, np.ndarray]:
    """Noise of two classes, one brighter than the other."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(seed).integers(0, 128, (count, SIDE, SIDE, 3))
    return {"images": (noise + 127 * labels[:, None, None, None]).astype(np.uint8), "labels": labels}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.npz of 20 images and test.npz of 6."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "train.npz", **pictures(20, 0))
    np.savez(folder / "test.npz", **pictures(6, 1))
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of 8 steps with images held back, a moving average and its report."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    more = ["--val_fraction", "0.2", "--ema_decay", "0.9", "--save", str(folder)]
    assert retrain.main(["--genotype", "DARTS_V2", "--data", str(data), *SMALL, *more]) == 0
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no report, which takes longest; that of `finished` is drawn, a module's fixture comes before this one."""
    for command in ("search.write_report", "retrain.write_retrain_report"):
        monkeypatch.setattr(f"fastdarts.runs.{command}", lambda folder: None)


def arguments(data: Path, *more: str) -> list[str]:
    return ["--genotype", "DARTS_V2", "--data", str(data), *SMALL, *more]


def epochs(folder: Path) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == "epoch"]


def test_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert set(FILES.split()) <= names and {BEST, "report.html", "accuracy.svg", "losses.svg"} <= names
    saved = json.loads((finished / "settings.json").read_text())
    assert saved["command"] == "retrain" and saved["settings"]["recipe"] == "darts-cifar10"
    assert saved["settings"]["genotype"].startswith("Genotype(normal=[('sep_conv_3x3', 0)")
    assert saved["data"]["train_images"] == 16 and saved["data"]["test"]["images"] == 6
    record = json.loads((finished / "genotype.json").read_text())
    assert record["network"] == "cifar" and record["params"] > 0 and record["macs"] > 0


def test_result_distinguishes_three_networks(finished: Path) -> None:
    """Last, moving average and best, all on test images; the best is chosen on those held back."""
    result = json.loads((finished / "result.json").read_text())
    found, records = result["accuracies"], epochs(finished)
    assert set(found) == {"last", "last, EMA", "best"}
    assert found["last"]["top1"] == records[-1]["test"]["top1"] and found["best"]["chosen_on"] == "valid"
    best = max(records, key=lambda r: r["valid"]["top1"])
    assert found["best"]["epoch"] == best["epoch"] and found["best"]["top1"] == best["test"]["top1"]
    assert load_checkpoint(finished / BEST)["epoch"] == best["epoch"]
    assert [images for _, images in result["by_class"]["test"]] == [3, 3]


def test_report_shows_accuracies_classes_and_cells(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in ("Retraining on", "Top-1, last, EMA", "Top-1 by class, test images", "normal cell", "Parameters", "held back"):
        assert text in page
    assert "Unfinished" not in page and "TEST" not in page


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 7])
def test_resume_after_interrupt_is_bitwise_identical(
    at: int, data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by an exception after a step whose checkpoint is written: the same records, result and weights."""
    more = ["--val_fraction", "0.2", "--ema_decay", "0.9", "--save", str(tmp_path / "run")]
    argv = [*arguments(data), *more, "--checkpoint_minutes", "1e-9"]
    step = WeightUpdate.__call__

    def failing(update: WeightUpdate, number: Tensor, *batches: Any) -> Any:
        if not isinstance(number, FakeTensor) and int(number) == at:  # the planner's step has no number
            raise Stop
        return step(update, number, *batches)

    monkeypatch.setattr(WeightUpdate, "__call__", failing)
    with pytest.raises(Stop):
        retrain.main(argv)
    monkeypatch.setattr(WeightUpdate, "__call__", step)
    assert 0 < load_checkpoint(tmp_path / "run/checkpoint.pt")["step"].item() < 8
    assert retrain.main(argv) == 0
    for name in ("metrics.jsonl", "result.json", "genotype.json", "train.txt", "val.txt"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes(), name
    ours, theirs = (load_checkpoint(folder / "checkpoint.pt") for folder in (tmp_path / "run", finished))
    assert all(torch.equal(t, theirs["network"][name]) for name, t in ours["network"].items())
    assert all(torch.equal(t, theirs["ema"]["network"][name]) for name, t in ours["ema"]["network"].items())
    moments = [run["optimizer"]["state"] for run in (ours, theirs)]
    assert all(torch.equal(s["momentum_buffer"], moments[1][n]["momentum_buffer"]) for n, s in moments[0].items())
    assert ours["best"] == theirs["best"] and str(ours["rng"]) == str(theirs["rng"])


def test_dry_run_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert retrain.main(arguments(data, "--save", str(tmp_path / "run"), "--dry_run")) == 0
    out = capsys.readouterr().out
    for text in ("recipe darts-cifar10", "3 cells, C = 2", "20 train, 6 test in 2 classes, 16 px, batch 4", "steps 5 an epoch"):
        assert text in out
    assert "result: the last epoch" in out and not (tmp_path / "run").exists()


def test_best_on_test_is_announced(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert retrain.main(arguments(data, "--save", str(tmp_path / "run"), "--best_on_test", "--epochs", "1")) == 0
    assert "best on the TEST images" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/result.json").read_text())["accuracies"]["best"]["chosen_on"] == "test"


def test_search_then_retrain_then_evaluate(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One line; given again after the search it trains and leaves the search alone; the recipe follows the space."""
    tiny = [
        "--batch_size",
        "4",
        "--layers",
        "3",
        "--init_channels",
        "4",
        "--epochs",
        "1",
        "--threads",
        "1",
        "--objective",
        "supervised",
        "--space",
        "s2",
    ]
    then = "retrain --layers 3 --init_channels 2 --no-auxiliary --batch_size 4 --epochs 1 --threads 1"
    argv = ["--data", str(data / "train.npz"), *tiny, "--save", str(tmp_path / "run"), "--then", then]
    assert search_cifar.main(argv) == 0
    trained = tmp_path / "run/retrain"
    saved = json.loads((trained / "settings.json").read_text())["settings"]
    assert saved["recipe"] == "r-darts-cifar10" and saved["run"] == str(tmp_path / "run") and saved["layers"] == 3
    assert saved["genotype"] == json.loads((tmp_path / "run/genotype.json").read_text())["text"]
    before = (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(trained)
    assert search_cifar.main(argv) == 0 and (trained / "result.json").is_file()
    assert (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns == before
    assert evaluate.main([str(trained)]) == 0
    assert "on 6 images" in capsys.readouterr().out
    assert search_cifar.main([*argv[:-1], "evaluate"]) == 2 and search_cifar.main([*argv[:-1], "retrain --save x"]) == 2
    err = capsys.readouterr().err
    assert "--then evaluate: give one of retrain" in err and "--save follows from the search" in err
    with pytest.raises(SystemExit):
        search_cifar.main([*argv[:-1], "retrain --speed 11"])
    assert "--then retrain: error: unrecognized arguments: --speed" in capsys.readouterr().err


def test_nasbench201_cell_uses_own_recipe(data: Path, tmp_path: Path) -> None:
    arch = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    tiny = [flag for flag in TINY if flag != "3"]
    tiny[tiny.index("--layers") : tiny.index("--layers") + 1] = ["--layers", "1"]
    argv = ["--genotype", arch, "--data", str(data), *tiny, "--epochs", "1", "--save", str(tmp_path / "run")]
    assert retrain.main(argv) == 0
    saved = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    assert (saved["recipe"], saved["network"], saved["nesterov"]) == ("nasbench201", "nasbench201", True)


def test_image_files_and_the_imagenet_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """JPEGs in class folders; a bad test file is left out and named; the cache serves both splits."""
    g = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for c in range(2):
            folder = tmp_path / "data" / split / f"class{c}"
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = (g.integers(0, 128, (40, 44, 3)) + 127 * c).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.JPEG")
    (tmp_path / "data/val/class1/1.JPEG").write_bytes(b"no image")
    argv = ["--genotype", "PC_DARTS_image", "--dataset", "imagenet", "--data", str(tmp_path / "data"), "--image_size", "64"]
    argv += ["--no-auxiliary", *TINY, "--epochs", "1", "--workers", "0", "--save", str(tmp_path / "run")]
    assert retrain.main(argv) == 0
    out = capsys.readouterr().out
    assert "recipe pc-darts-imagenet" in out and "val/class1/1.JPEG" in out and "8 train, 3 test" in out
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["network"] == "imagenet"
    assert evaluate.main([str(tmp_path / "run"), "--workers", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 3 and found["top1"] == epochs(tmp_path / "run")[-1]["test"]["top1"]


@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_evaluation_reproduces_run_figures(weights: str, finished: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluate.main([str(finished), "--weights", weights, "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    name = {"last": "last", "best": "best", "ema": "last, EMA"}[weights]
    known = json.loads((finished / "result.json").read_text())["accuracies"][name]
    assert found["top1"] == known["top1"] and found["loss"] == pytest.approx(known["loss"], rel=1e-6)
    assert found["images"] == 6 and sum(row["images"] for row in found["by_class"].values()) == 6


def test_exported_folder_is_evaluated(finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The network of a run, written as a folder, has the run's accuracies; flags that it has no use for are refused."""
    assert evaluate.main([str(finished), "--data", str(data), "--json", "--threads", "1"]) == 0
    want = json.loads(capsys.readouterr().out)
    run = json.loads((finished / "settings.json").read_text())
    then = RetrainSettings.make(run["settings"])
    network = network_of(ResolvedRetrain(then, DATASETS["cifar"], architecture_of(then.genotype)), 2)
    network.load_state_dict(load_checkpoint(finished / "checkpoint.pt")["network"])
    write_network(tmp_path, network, pixel_statistics("auto", "cifar", DATASETS["cifar"], 2), run["data"]["classes"])
    assert evaluate.main([str(tmp_path), "--data", str(data), "--json", "--threads", "1"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert {name: got[name] for name in ("loss", "top1", "by_class")} == {n: want[n] for n in ("loss", "top1", "by_class")}
    for more, says in ((["--weights", "ema"], "one network"), ([], "give --data")):
        given = [str(tmp_path), *more, *(["--data", str(data)] if more else [])]
        assert evaluate.main(given) == 2
        assert says in capsys.readouterr().err


def test_published_checkpoint_is_evaluated(finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With DataParallel's prefix, wrapped; another genotype is told apart by its first gene."""
    weights = load_checkpoint(finished / "checkpoint.pt")["network"]
    torch.save({"state_dict": {f"module.{name}": t for name, t in weights.items()}}, tmp_path / "weights.pt")
    argv = [str(tmp_path / "weights.pt"), "--data", str(data), "--threads", "1", "--json", "--genotype"]
    assert evaluate.main([*argv, "DARTS_V2"]) == 0
    known = json.loads((finished / "result.json").read_text())["accuracies"]["last"]
    assert json.loads(capsys.readouterr().out)["top1"] == known["top1"]
    assert evaluate.main([flag for flag in [*argv, "PDARTS"] if flag != "--json"]) == 2
    err = capsys.readouterr().err
    assert "cell 0, gene 0 (skip_connect from state 0)" in err and err.count("\n") == 1


WRONG = [
    ("", "which cell? give --run, the folder of a search, or --genotype"),
    ("--genotype DARTS_V9", "--genotype: no published genotype, file or folder 'DARTS_V9': DARTS_V2"),
    ("--genotype Genotype(normal=[],reduce=[])", "--genotype: "),
    ("--run DATA", "no folder of a search"),
    ("--genotype DARTS_V2 --network nasbench201", "a genotype is of DARTS' networks"),
    ("--genotype DARTS_V2 --layers 2", "layers = 2: the cifar network needs at least 3"),
    ("--genotype DARTS_V2 --data DATA --auxiliary", "the auxiliary head"),
    ("--genotype DARTS_V2 --data DATA --image_size 14", "multiples of 4"),
    ("--genotype DARTS_V2 --data DATA --batch_size 21", "batch_size is 21"),
    ("--genotype DARTS_V2 --data DATA/train.npz --val_labels nothing.txt", "nothing.txt"),
    ("--genotype DARTS_V2 --data ALONE", "has no test images"),
    ("--genotype DARTS_V2 --cuda_graph on", "--cuda_graph on: CUDA graphs need a GPU"),
    ("--genotype DARTS_V2 --nesterov --momentum 0", "--nesterov: Nesterov's momentum needs"),
]


@pytest.mark.parametrize(("flags", "says"), WRONG, ids=[flags or "nothing" for flags, _ in WRONG])
def test_wrong_input_is_one_line(flags: str, says: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(data / "train.npz", tmp_path / "alone/train.npz")
    given = flags.replace("DATA", str(data)).replace("ALONE", str(tmp_path / "alone")).split()
    rest = [] if "--auxiliary" in given else ["--no-auxiliary"]
    tiny = [] if "--layers" in given or "--batch_size" in given else ["--batch_size", "4"]
    assert retrain.main([*given, *rest, *tiny, "--save", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "which network?"),
        (["nowhere"], "does not exist: give the run folder of a retraining"),
        (["RUN/metrics.jsonl"], "is damaged"),
        (["RUN/train.txt", "--genotype", "DARTS_V2", "--data", "DATA"], "train.txt: not a file of torch.save"),
        (["RUN/checkpoint.pt", "--weights", "best"], "--weights best is of a run folder"),
        (["RUN/checkpoint.pt", "--genotype", "DARTS_V2"], "says nothing of its images: give --data"),
        (["RUN/checkpoint.pt", "--genotype", "DARTS_V2", "--data", "DATA", "--image_size", "14"], "multiples of 4"),
        (["RUN", "--image_size", "14"], "multiples of 4"),
    ],
)
def test_invalid_evaluation_exits_with_one_line(
    argv: list[str], says: str, finished: Path, data: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [part.replace("RUN", str(finished)).replace("DATA", str(data)) for part in argv]
    assert evaluate.main([*given, "--threads", "1"]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ("--auxiliary --cutout", {"auxiliary": True, "cutout": 16}),
        ("--cutout --cutout_length 8", {"cutout": 8}),
        ("--cutout_length 8 --cutout", {"cutout": 8}),
        ("--amp --model-ema", {"amp": "fp16", "ema_decay": 0.9998}),
        ("--model-ema-decay 0.99 --model-ema", {"ema_decay": 0.99}),
        ("-b 24 -j 2", {"batch_size": 24, "workers": 2}),
    ],
)
def test_flags_without_a_value_and_of_one_letter(argv: str, values: dict[str, Any]) -> None:
    assert retrain.resolve.settings.given(argv.split(), "retrain", "") == values


def test_flags_accept_darts_and_timm_spellings() -> None:
    argv = [
        "--arch",
        "PDARTS",
        "--drop_path_prob",
        "0.1",
        "--cutout_length",
        "8",
        "--label_smooth",
        "0.2",
        "--lr",
        "0.3",
        "--min-lr",
        "0.01",
        "--opt",
        "rmsprop-tf",
        "--opt-eps",
        "0.01",
        "--sched",
        "linear",
        "--warmup-lr",
        "1e-5",
        "--decay-rate",
        "0.9",
        "--decay-epochs",
        "2",
        "--clip-grad",
        "1",
        "--drop",
        "0.3",
        "--color-jitter",
        "0.4",
        "--data-dir",
        "somewhere",
    ]
    values = retrain.resolve.settings.given(argv, "retrain", "")
    assert values == {
        "genotype": "PDARTS",
        "drop_path": 0.1,
        "cutout": 8,
        "label_smoothing": 0.2,
        "learning_rate": 0.3,
        "learning_rate_min": 0.01,
        "optimizer": "rmsprop-tf",
        "optimizer_eps": 0.01,
        "schedule": "linear",
        "warmup_rate": 1e-5,
        "lr_decay": 0.9,
        "lr_decay_epochs": 2.0,
        "grad_clip": 1.0,
        "dropout": 0.3,
        "jitter": 0.4,
        "data": "somewhere",
    }


@pytest.mark.parametrize("name", RETRAININGS)
def test_every_recipe_resolves(name: str) -> None:
    """Its settings exist, its network can be built at its size, its statistics are known."""
    arch = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    genotype = arch if RETRAININGS[name].settings["network"] == "nasbench201" else "PDARTS"
    s = retrain.resolve({"genotype": genotype, "recipe": name, "data": "somewhere"}).settings
    assert all(getattr(s, setting) == value for setting, value in RETRAININGS[name].settings.items())
    assert s.statistics in STATISTICS


def test_search_gives_data_statistics_and_recipe(tmp_path: Path) -> None:
    """A recipe or flag wins, of the recipe's by the search alone; statistics are those of the search's kind of images."""
    run = {"command": "search_cifar", "settings": {"data": "/images", "space": "s2", "statistics": "svhn"}}

    def of(**given: Any) -> Any:
        (tmp_path / "settings.json").write_text(json.dumps(run))
        return retrain.resolve({"run": str(tmp_path), "genotype": "PDARTS"} | given).settings

    s = of()
    assert (s.recipe, s.data, s.statistics) == ("r-darts-cifar10", "/images", "svhn")
    assert of(recipe="r-darts-cifar100").statistics == "svhn" and of(statistics="cifar10").statistics == "cifar10"
    other = of(dataset="imagenet", data="/files")
    assert (other.recipe, other.data, other.statistics) == ("pc-darts-imagenet", "/files", "auto")
    run["settings"]["statistics"] = "auto"
    assert of().statistics == "auto" and of(recipe="r-darts-cifar100").statistics == "r-darts-cifar100"
    del run["settings"]["statistics"], run["settings"]["space"]  # as runs of earlier versions
    assert (of().statistics, of().recipe) == ("auto", "darts-cifar10")


def test_default_recipes_exist() -> None:
    """One for each kind of images; every space that has its own is a space."""
    assert set(DEFAULTS.values()) <= set(RETRAININGS) and {(dataset, None) for dataset in DATASETS} <= set(DEFAULTS)
    assert {space for _, space in DEFAULTS} - {None} <= set(SPACES)


def test_published_settings() -> None:
    """Facts that a table can get wrong: rates, batches, decay, width and depth of the best known trainings."""

    def of(name: str) -> Any:
        return retrain.resolve({"genotype": "PDARTS", "recipe": name, "data": "somewhere"}).settings

    darts = of("darts-cifar10")
    assert (darts.init_channels, darts.layers, darts.epochs, darts.batch_size) == (36, 20, 600, 96)
    assert (darts.learning_rate, darts.weight_decay, darts.drop_path, darts.cutout) == (0.025, 3e-4, 0.2, 16)
    assert (darts.grad_clip, darts.auxiliary_weight, darts.label_smoothing, darts.schedule) == (5, 0.4, 0, "cosine")
    pc = of("pc-darts-imagenet")
    assert (pc.init_channels, pc.layers, pc.epochs, pc.batch_size, pc.learning_rate) == (48, 14, 250, 1024, 0.5)
    assert (pc.weight_decay, pc.label_smoothing, pc.drop_path, pc.schedule, pc.warmup_epochs) == (3e-5, 0.1, 0, "linear", 5)
    assert (of("r-darts-cifar100").init_channels, of("r-darts-cifar100").layers) == (16, 8)
    scaled = retrain.resolve({"genotype": "PDARTS", "recipe": "pc-darts-imagenet", "data": "x", "epochs": 50}).settings
    assert scaled.warmup_epochs == 1


def test_ignored_settings_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    more = ["--auxiliary_weight", "0.3", "--workers", "2", "--lr_decay", "0.5", "--ema_warmup", "--warmup_rate", "0.1"]
    assert retrain.main(arguments(data, *more, "--dry_run")) == 0
    out = capsys.readouterr().out
    for flag in ("auxiliary_weight", "workers", "lr_decay", "ema_warmup", "warmup_rate"):
        assert f"ignored: --{flag}" in out, flag


def test_run_of_another_genotype_is_not_continued(finished: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    argv = arguments(data, "--val_fraction", "0.2", "--ema_decay", "0.9", "--save", str(finished))
    argv[1] = "PDARTS"
    assert retrain.main(argv) == 2
    assert "a run with other settings: --genotype is" in capsys.readouterr().err


def test_trainable_fits_the_engine() -> None:
    """Every member of protocols.Trainable is there."""
    from fastdarts.protocols import Trainable

    names = {name for name in vars(Trainable) if not name.startswith("_")} | {"parts", "device", "positions", "skipped"}
    made = trainer(1)
    assert len(names) > 10 and all(hasattr(made, name) for name in names)


def test_missing_recipe_raises() -> None:
    with pytest.raises(ConfigError, match="there are darts-cifar10"):
        retrain.resolve({"genotype": "PDARTS", "recipe": "nothing", "data": "x"})


def test_own_checkpoint_is_evaluated_anywhere(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Outside its folder, with its architecture; the moving average where asked for."""
    shutil.copy(finished / "checkpoint.pt", tmp_path / "moved.pt")
    known = json.loads((finished / "result.json").read_text())["accuracies"]
    for weights, name in (("last", "last"), ("ema", "last, EMA")):
        argv = [str(tmp_path / "moved.pt"), "--genotype", "DARTS_V2", "--data", str(data), "--weights", weights]
        assert evaluate.main([*argv, "--json", "--threads", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(known[name]["loss"], rel=1e-6)
    weights = load_checkpoint(finished / "checkpoint.pt")["network"]
    torch.save({"state_dict": weights}, tmp_path / "plain.pt")
    assert evaluate.main([str(tmp_path / "plain.pt"), "--genotype", "DARTS_V2", "--data", str(data), "--weights", "ema"]) == 2
    assert "holds no moving average" in capsys.readouterr().err


@pytest.mark.parametrize(
    "harm", ["{}", '{"command": "retrain"}', '{"command": "retrain", "settings": {"layers": "x"}, "data": {}}']
)
def test_damaged_settings_are_one_line(harm: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/settings.json").write_text(harm)
    assert evaluate.main([str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "settings.json is damaged" in err and err.count("\n") == 1


def test_damaged_result_is_written_again(finished: Path, data: Path, tmp_path: Path) -> None:
    """From the records, when the finished run is continued."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").write_text("{")
    more = ["--val_fraction", "0.2", "--ema_decay", "0.9", "--save", str(run)]
    assert retrain.main(arguments(data, *more)) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, finished)]
    assert results[0]["accuracies"] == results[1]["accuracies"]


def test_folders_of_other_commands_are_told_apart(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert retrain.main(["--run", str(finished), "--data", str(data)]) == 2
    assert search_cifar.main(["--data", str(data / "train.npz"), "--save", str(finished)]) == 2
    err = capsys.readouterr().err
    assert "a run of retrain, give the folder of a search" in err and "contains a run of retrain, not of search_cifar" in err


def test_images_of_another_kind_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A cell found on files of images, trained by a recipe for images in memory: not silently on the sample."""
    (tmp_path / "run").mkdir()
    facts = {"command": "search_imagenet", "settings": {"data": "/images", "space": "s0"}}
    (tmp_path / "run/settings.json").write_text(json.dumps(facts))
    (tmp_path / "run/genotype.json").write_text(retrain.resolve({"genotype": "DARTS_V2"}).architecture.to_json())
    assert retrain.main(["--run", str(tmp_path / "run"), "--recipe", "darts-cifar10"]) == 2
    assert "the images of --run are imagenet: give --data" in capsys.readouterr().err


def test_plan_tells_of_another_batch_and_other_settings(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert retrain.main(arguments(data, "--dry_run")) == 0
    out = capsys.readouterr().out
    assert "with other --init_channels" not in out  # the recipe leaves that to the defaults
    assert "note: --learning_rate 0.025 was published for batch 96; scaled linearly, 4 images would use 0.00104" in out
    assert retrain.main(arguments(data, "--dry_run", "--recipe", "p-darts-cifar10")) == 0
    assert "with other --batch_size" in capsys.readouterr().out
    assert retrain.main(arguments(data, "--dry_run", "--best_on_test")) == 0


def test_schedules_are_scaled_with_the_epochs() -> None:
    """A tenth of MnasNet's epochs decays as far; the warm-up keeps an epoch; no epoch has rate 0."""
    values = {"genotype": "PDARTS", "recipe": "mobilenetv3-imagenet", "data": "x"}
    whole, short = (retrain.resolve(values | more).settings for more in ({}, {"epochs": 35}))
    assert (short.warmup_epochs, short.lr_decay_epochs) == (1, pytest.approx(0.24))
    ends = [schedule_of(s)(s.epochs - 1, s.epochs) for s in (whole, short)]
    assert ends[1] == pytest.approx(ends[0], rel=0.2) and min(schedule_of(whole)(e, 350) for e in range(350)) > 0
    assert whole.warmup_epochs == 5 and schedule_of(whole)(0, 350) == pytest.approx(0.064 / 5)


def test_nasbench201_statistics_go_by_classes() -> None:
    s = retrain.resolve({"genotype": "|none~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|none~2|", "data": "x"}).settings
    for classes, name in ((10, "nasbench201-cifar10"), (100, "nasbench201-cifar100"), (120, "nasbench201-imagenet16")):
        assert pixel_statistics(s.statistics, s.network, DATASETS["cifar"], classes) == STATISTICS[name]
    assert pixel_statistics("auto", "cifar", DATASETS["cifar"], 100) == STATISTICS["cifar100"]
