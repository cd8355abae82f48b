"""matplotlib missing, broken, or set up by the user: no drawing ends a search, and ours look the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdarts.logs import warn_once
from fastdarts.report import write_report
from fastdarts.report.__main__ import main

GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)], normal_concat=range(2, 3), "
    "reduce=[('max_pool_3x3', 0), ('skip_connect', 1)], reduce_concat=range(2, 3))"
)


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Python code in a process of its own."""
    root = Path(__file__).parents[2]
    environment = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, cwd=root)


@pytest.fixture(autouse=True)
def warned_anew() -> None:
    warn_once.cache_clear()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (None, "matplotlib is missing: pip install matplotlib"),
        (ImportError("numpy.core.multiarray failed to import\nmore"), "ImportError: numpy.core.multiarray failed to import"),
        (RuntimeError(), "RuntimeError: RuntimeError"),
    ],
)
def test_report_without_matplotlib(error, says, new_run, tmp_path, monkeypatch, caplog, capsys):
    """One warning, however often it is written; everything else is there, and no drawing of an earlier epoch."""

    def fails():
        raise error

    run = new_run(epochs=2)
    (run / "losses.svg").touch()
    if error is None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        monkeypatch.setattr("fastdarts.report.parts.import_matplotlib", fails)
        monkeypatch.setattr("fastdarts.report.__main__.import_matplotlib", fails)
    for _ in range(2):
        page = write_report(run).read_text()
    assert caplog.messages == [f"not drawn: losses, collapse, alpha, cell_normal, cell_reduce: {says}"]
    assert page.count("not drawn, ") == 5 and says in page and "Genotype(normal=" in page
    assert not list(run.glob("*.svg"))
    assert main(["--genotype", GENOTYPE, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr() == ("", f"python -m fastdarts.report: {says}\n")


def test_failed_drawing_does_not_affect_others(new_run, monkeypatch, caplog):
    run = new_run(epochs=1)
    monkeypatch.setattr("fastdarts.report.collapse.new_figure", lambda *_: 1 / 0)
    page = write_report(run).read_text()
    assert caplog.messages == ["not drawn: collapse: ZeroDivisionError: division by zero"]
    assert page.count("<svg") == 4 and not (run / "collapse.svg").exists()


def test_figures_do_not_depend_on_matplotlibrc_or_backend(new_run, tmp_path):
    run = new_run(epochs=1)
    write_report(run)
    drawn = {path.name: path.read_bytes() for path in run.glob("*.svg")}
    settings = "text.usetex: True\nfigure.dpi: 1000\nsavefig.bbox: tight\nfont.size: 33\naxes.grid: True\nbackend: Qt5Agg\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    code = f"from fastdarts.report import write_report; write_report({str(run)!r})"
    done = in_a_process(code, MATPLOTLIBRC=str(tmp_path), MPLBACKEND="module://not_there.backend_inline")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_bytes() for path in run.glob("*.svg")} == drawn and len(drawn) == 5


def test_imports_are_lazy():
    """Commands start, the report without torch, and info names missing packages."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'torchvision'])\n"
        "import fastdarts.report.__main__; assert 'torch' not in sys.modules\n"
        "import fastdarts.search_imagenet, fastdarts.search_cifar, fastdarts.sweep.__main__\n"
        "from fastdarts import info; info.main([])"
    )
    done = in_a_process(code)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("matplotlib", "torchvision"):
        assert f"  {name:12} not installed\n" in done.stdout


def test_drawings_do_not_overwrite_a_run(new_run, capsys):
    run = new_run(epochs=1)
    assert main(["--genotype", GENOTYPE, "--out", str(run)]) == 2
    assert f"--out: {run} contains a run, whose drawings would be overwritten" in capsys.readouterr().err
