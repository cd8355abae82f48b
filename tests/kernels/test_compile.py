"""Every Triton kernel compiles for sm_80 and sm_90 at every dtype and spills nothing. Needs no GPU.

The table of what each uses is printed at the end of the run; `python -m fastdarts.info --kernels` prints the same.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdarts import info, native
from fastdarts.ops import backend
from fastdarts.runs import info as facts

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from fastdarts.kernels import compile as compiler
from fastdarts.kernels import launch
from fastdarts.kernels.mixed_cell_launches import WIDEST

ROWS: list[dict[str, Any]] = []
MOST_SHARED = 163 * 1024  # bytes that a block has on an A100


@triton.jit
def running_sum(p_x, p_y, n, BLOCK: tl.constexpr):
    i_number = tl.arange(0, BLOCK)
    b_x = tl.load(p_x + i_number, mask=i_number < n, other=0.0)
    tl.store(p_y + i_number, tl.cumsum(b_x, 0) * b_x + b_x, mask=i_number < n)


def toy(**constexprs: int) -> compiler.Specimen:
    signature = {"p_x": "*fp32", "p_y": "*fp32", "n": "i32"}
    return compiler.Specimen(running_sum, signature, constexprs, "toy", torch.float32, "toy")


@pytest.fixture
def toy_settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A row of launch.json that exists for one test; the test may change it before it is read."""
    row = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(launch, "table", lambda: {"toy": {"default": {"any": row}}})
    launch._settings.cache_clear()
    yield row
    launch._settings.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest):
    """Prints what the module's tests have collected, past pytest's capture, so that a CI log shows it."""
    yield
    if not ROWS:
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n" + facts.table(ROWS))


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
@pytest.mark.parametrize("dtype", compiler.DTYPES)
@pytest.mark.parametrize("module", list(compiler.modules()), ids=lambda module: module.__name__.rpartition(".")[2])
def test_kernels_compile_without_spills(module: Any, dtype: torch.dtype, arch: int) -> None:
    specimens = module.specimens(dtype)
    assert specimens
    rows = [compiler.asdict(compiler.compile_specimen(specimen, arch)) for specimen in specimens]
    ROWS.extend(rows)
    assert [row for row in rows if row["spill_bytes"]] == []
    assert all(0 < row["registers"] <= 255 and row["shared_bytes"] <= MOST_SHARED for row in rows)


@pytest.mark.parametrize("module", ["forward", "backward", "weights"])
def test_widest_candidates_fit_into_shared_memory(module: str) -> None:
    """Those of float32, whose products take the most. Only dense convolutions spill, from matrices of 128 x 128."""
    kernels = importlib.import_module(f"fastdarts.kernels.mixed_cell_{module}")
    products = "separable", "dense", "product", "state_gradient", "matrix_gradient", "dense_gradient"
    found = [one for one in kernels.specimens(torch.float32, ((WIDEST, 1, False),)) if one.name in products]
    used = {(one.name, one.label): compiler.compile_specimen(one, 80) for one in found}
    assert used and max(one.shared_bytes for one in used.values()) <= MOST_SHARED, used
    assert [name for name, one in used.items() if one.spill_bytes and "dense" not in " ".join(name)] == []


def test_argument_names_follow_grammar() -> None:
    """p_: a pointer or a tuple of pointers; compile-time constants in capitals."""
    for specimen in compiler.all_specimens():
        pointers = {name for name, kind in specimen.signature.items() if "*" in kind[0][0]}
        assert pointers == {name for name in specimen.kernel.arg_names if name.startswith("p_")}, specimen.name
        assert all(p.name.isupper() for p in specimen.kernel.params if p.is_constexpr), specimen.name


def test_every_kernel_of_launch_table_is_compiled_and_has_default() -> None:
    used = {specimen.settings for specimen in compiler.all_specimens()}
    assert used == set(launch.table())
    assert all("default" in rows for rows in launch.table().values())


def test_spills_are_detected(toy_settings: dict[str, int]) -> None:
    toy_settings |= {"num_warps": 1, "maxnreg": 24}
    assert compiler.compile_specimen(toy(), 80).spill_bytes > 0


def test_argument_without_type_and_value_is_named(toy_settings: dict[str, int]) -> None:
    del toy_settings["BLOCK"]
    with pytest.raises(ValueError, match=r"running_sum \(toy\): no type and no value for BLOCK"):
        compiler.compile_specimen(toy(), 80)
    assert compiler.compile_specimen(toy(BLOCK=256), 80).registers > 0


def test_most_specific_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"default": {"any": {"B": 1}, "float16": {"B": 2}}, "sm_90": {"any": {"B": 3}, "float16": {"B": 4}}, "sm_80": {}}
    monkeypatch.setattr(launch, "table", lambda: {"k": rows, "bare": {}})
    launch._settings.cache_clear()
    for target, dtype, expected in (
        ("sm_90", torch.float16, 4),
        ("sm_90", torch.float32, 3),
        ("sm_80", torch.float16, 2),
        ("sm_120", torch.bfloat16, 1),
    ):
        assert launch.settings("k", dtype, target) == {"B": expected, "enable_fp_fusion": True}
    with pytest.raises(KeyError, match="no kernel 'other'; it has bare, k"):
        launch.settings("other", torch.float32, "sm_90")
    with pytest.raises(KeyError, match="no row for bare"):
        launch.settings("bare", torch.float32, "sm_90")
    launch.settings("k", torch.float16, "sm_90")["B"] = 7  # a caller's own copy
    assert launch.settings("k", torch.float16, "sm_90")["B"] == 4
    launch._settings.cache_clear()


def test_target_follows_device() -> None:
    assert launch.target_of(torch.device("cpu")) == "default"


def test_info_prints_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    row = {"kernel": "k", "label": "l", "backend": "triton", "arch": "sm_90", "dtype": "float32", "registers": 32}
    row |= {"shared_bytes": 0, "spill_bytes": 0}
    monkeypatch.setattr(compiler, "report", lambda: [row])
    monkeypatch.setattr(native, "without_cuda", lambda: "no nvcc")
    assert info.main(["--kernels", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]
    assert info.main(["--kernels"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [list(row), [str(v) for v in row.values()]]


@pytest.mark.skipif(native.without_cuda() is not None, reason=str(native.without_cuda()))
def test_info_prints_native_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compiler, "report", list)
    assert info.main(["--kernels", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["backend"] for row in rows} == {"cuda"} and {row["arch"] for row in rows} >= {"sm_80", "sm_90a"}


def test_info_reports_missing_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(backend, "lacks_triton", lambda: "Triton is not installed; pip install it")
    assert info.main(["--kernels"]) == 1
    assert "Triton is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "dtype", "why"),
    [
        ("cpu", torch.float32, "it supports tensors on NVIDIA GPUs, not on cpu"),
        ("cuda", torch.float64, "its kernels are written for float32 and float16, not for float64"),
    ],
)
def test_backend_check_rejects_cpu_tensors(device: str, dtype: torch.dtype, why: str) -> None:
    assert backend.triton(torch.float32, torch.float16)(torch.device(device), dtype) == why


@pytest.mark.parametrize(
    ("capability", "cuda", "why"),
    [
        ((7, 5), "13.0", "cuda has compute capability 7.5, the kernels need 8.0"),
        ((8, 0), "13.0", None),
        ((10, 3), "13.0", None),
        ((9, 4), None, "it supports NVIDIA GPUs, this torch is built for other GPUs"),
    ],
)
def test_old_and_other_gpus_are_rejected(
    capability: tuple[int, int], cuda: str | None, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert backend.triton(torch.float32)(torch.device("cuda"), torch.float32) == why


@pytest.mark.parametrize(
    ("version", "why"),
    [("3.5.1", "Triton 3.5.1 is older than 3.6"), ("3.6.0", None), ("3.10.0+git", None), (None, "does not import")],
)
def test_old_and_broken_tritons_are_rejected(version: str | None, why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        __version__ = version

    def load(name: str) -> Any:
        if version is None:
            raise OSError("libcuda.so: cannot open\nshared object")
        return Module

    monkeypatch.setattr(backend.importlib, "import_module", load)
    backend.lacks_triton.cache_clear()
    sentence = backend.lacks_triton()
    backend.lacks_triton.cache_clear()
    assert sentence is None if why is None else why in sentence and "\n" not in sentence


def test_package_contains_launch_table(root: Path) -> None:
    assert "launch.json" in (root / "setup.py").read_text(encoding="utf-8")
    assert "kernels/launch.json" in (root / "MANIFEST.in").read_text(encoding="utf-8")
