"""--config: settings from a YAML or JSON file, or from a run's settings.json; flags win over it."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from fastdarts import search_cifar
from fastdarts.settings import Given, SearchCifarSettings, SearchImagenetSettings
from fastdarts.sweep.grid import COMMANDS, Grid, SweepError

YAML = """
data: images  # a comment
epochs: 7
learning-rate: 1e-3
amp: off
batch_size: auto
progressive_layers: 0,1,2
nesterov: true
train_list: null
"""
VALUES = {"data": "images", "epochs": 7, "learning_rate": 1e-3, "amp": "off", "batch_size": 0}
VALUES |= {"progressive_layers": "0,1,2", "nesterov": True, "train_list": None}


def parse(*argv: object) -> Given:
    return SearchCifarSettings.parse([*map(str, argv)], "prog", "what it does")


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    (path := tmp_path / "mine.yaml").write_text(YAML)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """settings.json of a run of P-DARTS on images."""
    settings = search_cifar.resolve({"data": "/images", "method": "p-darts", "save": "runs/first", "seed": 3}).settings
    (path := tmp_path / "settings.json").write_text(json.dumps({"command": "search_cifar", "settings": asdict(settings)}))
    return path


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """The one line that ends the process with status 2."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and err.startswith("prog: error: --")
    return err


def test_file_sets_values_like_flags(yaml: Path) -> None:
    assert parse("--config", yaml).values == VALUES
    flags = "--data images --epochs 7 --learning_rate 1e-3 --amp off --batch_size auto --progressive_layers 0,1,2 --nesterov"
    assert parse("--config", yaml).values == {**parse(*flags.split()).flags, "train_list": None}


def test_json_values_may_be_numbers_or_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"epochs": 7, "batch_size": "auto", "learning_rate": "1e-3", "data": None, "nesterov": False}))
    given = {"epochs": 7, "batch_size": 0, "learning_rate": 1e-3, "data": None, "nesterov": False}
    assert parse("--config", path).values == given


def test_flags_override_file(yaml: Path) -> None:
    given = parse("--epochs", "3", "--config", yaml, "--no-nesterov")
    assert given.values == VALUES | {"epochs": 3, "nesterov": False}
    assert given.flags == {"epochs": 3, "nesterov": False} and given.asked == set(VALUES)


def test_file_overrides_recipe_and_method(yaml: Path) -> None:
    settings = search_cifar.resolve(parse("--config", yaml, "--recipe", "darts-2nd").values).settings
    assert (settings.epochs, settings.learning_rate, settings.unrolled, settings.momentum) == (7, 1e-3, True, 0.9)


def test_run_settings_are_reused_except_save(run: Path) -> None:
    given = parse("--config", run, "--seed", "4")
    assert given.whole and given.asked == {"seed"} and "save" not in given.values
    settings = search_cifar.resolve(given.values).settings
    was = json.loads(run.read_text())["settings"]
    assert asdict(settings) == was | {"seed": 4, "save": None}


def test_run_of_recipe_is_repeated(tmp_path: Path) -> None:
    settings = search_cifar.resolve({"data": "/images", "recipe": "mae-nas-p-darts"}).settings
    (path := tmp_path / "settings.json").write_text(json.dumps({"settings": asdict(settings)}))
    assert search_cifar.resolve(parse("--config", path).values).settings == settings
    assert search_cifar.resolve(parse("--config", path, "--recipe", "mae-nas-p-darts").values).settings == settings


def test_method_other_than_run_is_rejected(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Its name would change and nothing else: the file sets all that the method would bring."""
    assert parse("--config", run, "--method", "p-darts").values["method"] == "p-darts"
    said = refused(capsys, "--config", run, "--method", "pc-darts")
    assert f"--method pc-darts: --config {run} is a run with --method p-darts and sets everything" in said
    said = refused(capsys, "--config", run, "--recipe", "p-darts")
    assert f"--recipe p-darts: --config {run} is a run without --recipe and sets everything: give only one of the two" in said


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "epochs: 3\nspeed: 11\nheat: 1", "unknown settings of this command: speed, heat"),
        ("a.yaml", "epochs: three", "--epochs: 'three' is not an integer"),
        ("a.yaml", "nesterov: maybe", "--nesterov: 'maybe' is not true or false"),
        ("a.yaml", "mask_ratio: 1.5", "--mask_ratio: 1.5 is out of range, it must be above 0 and below 1"),
        ("a.yaml", "objective: magic", "--objective: 'magic' is not one of mae, supervised"),
        ("a.yaml", "layers: [3, 4]", "--layers: ['3', '4'] is not an integer"),
        ("a.yaml", "- epochs", "expected names and values of settings, or a run's settings.json"),
        ("a.yaml", "epochs: 3\nepochs: 4", "epochs given twice"),
        ("a.yaml", "epochs: [", "is not YAML"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"epochs": true}', "--epochs: True is not an integer"),
        ("a.json", '{"settings": {"workers": 2}, "command": "search_imagenet"}', "unknown settings of this command: workers"),
        ("missing.yaml", None, "cannot be read: "),
    ],
)
def test_invalid_file_exits_with_one_line(
    name: str, text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    said = refused(capsys, "--config", path)
    assert f"--config {path}" in said and says in said


def test_only_yaml_needs_pyyaml(yaml: Path, run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "YAML files need the package pyyaml (pip install pyyaml), JSON files nothing" in refused(capsys, "--config", yaml)
    assert parse("--config", run).values["seed"] == 3


def test_only_chosen_settings_are_reported_as_ignored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A run's settings.json names every setting, also those that its objective does not read."""
    (chosen := tmp_path / "chosen.yaml").write_text("objective: supervised\nloss: l2\nearly_stop_skips: 3")
    small = ["--data", str(tmp_path / "nowhere"), "--dry_run"]
    assert search_cifar.main(["--config", str(run), *small]) == search_cifar.main(["--config", str(chosen), *small]) == 2
    message = "".join(capsys.readouterr())
    assert message.count("ignored:") == 2 and "ignored: --loss applies only to --objective mae" in message


def test_sweep_varies_around_file_values(run: Path, yaml: Path) -> None:
    command = COMMANDS["search_cifar"]
    grid = Grid.parse(command, ["mask_ratio=0.25,0.5"], ["--config", str(run), "--seed", "9"], "test")
    first, second = grid.combinations()
    assert (first.settings.mask_ratio, second.settings.mask_ratio, first.settings.seed) == (0.25, 0.5, 9)
    assert first.settings.method == "p-darts" and first.flags[:2] == ("--config", str(run))
    assert grid.fixed["epochs"] == 75 and "mask_ratio" not in grid.fixed
    with pytest.raises(SweepError, match="--grid method: --config's run already sets everything"):
        Grid.parse(command, ["method=darts-1st,p-darts"], ["--config", str(run)], "test")
    yaml.write_text("save: here")
    with pytest.raises(SweepError, match="--save after --: the sweep names its runs' folders"):
        Grid.parse(command, ["seed=0,1"], ["--config", str(yaml)], "test")


def test_commands_accept_only_their_settings(tmp_path: Path) -> None:
    (path := tmp_path / "imagenet.yaml").write_text("strict: true\nworkers: 0")
    assert SearchImagenetSettings.given(["--config", str(path)], "prog", "") == {"strict": True, "workers": 0}
