"""Every example runs, as a reader runs it; and the call that they use is the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastdarts
from fastdarts.settings import ConfigError

SIZES = {"layers": 3, "init_channels": 4, "batch_size": 16, "epochs": 1, "threads": 1}
TINY = SIZES | {"train_fraction": 0.1, "val_fraction": 0.1}


@pytest.mark.parametrize("name", ["search", "custom_candidate", "custom_objective", "convert_darts"])
def test_example_runs(root: Path, tmp_path: Path, name: str) -> None:
    """With a smaller network and fewer images, set in front of what it asks for."""
    small = f"import fastdarts\nsearch = fastdarts.search\nfastdarts.search = lambda *a, **s: search(*a, **s | {TINY!r})\n"
    start = f"import sys, runpy\nsys.path.insert(0, {str(root)!r})\nsys.argv = ['example', 'run']\n"
    code = f"{start}{small}runpy.run_path({str(root / 'examples' / name)!r} + '.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Genotype(normal=[" in done.stdout or "times faster" in done.stdout


@pytest.mark.usefixtures("no_report")
def test_facade_search_equals_command(tmp_path: Path) -> None:
    found = fastdarts.search("mae-nas-cifar10", save=str(tmp_path / "run"), **TINY)
    saved = json.loads((tmp_path / "run/settings.json").read_text())
    assert (
        found.folder == tmp_path / "run"
        and str(found.genotype) == json.loads((found.folder / "genotype.json").read_text())["text"]
    )
    assert saved["command"] == "search_cifar" and saved["settings"]["objective"] == "mae" and saved["settings"]["layers"] == 3
    assert fastdarts.search("mae-nas-cifar10", save=str(tmp_path / "run"), **TINY) == found, "nothing left to do"


def test_facade_search_raises_command_errors(tmp_path: Path) -> None:
    for wrong, why in (
        ({"recipe": "mae-nas"}, "mae-nas"),
        ({"epochs": 0}, "--epochs: 0 is out of range"),
        ({"epoch": 3}, "epoch"),
        ({"dry_run": True}, "dry_run returns no cell"),
    ):
        with pytest.raises(ConfigError, match=why):
            fastdarts.search(save=str(tmp_path / "run"), **wrong)
    assert not (tmp_path / "run").exists()
