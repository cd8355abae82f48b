"""Runs each test_*_triton.py in a process in which Triton interprets its kernels; conftest.py says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))


def test_every_kernel_module_has_test_file() -> None:
    from fastdarts.kernels.compile import modules

    tested = {path.name.removeprefix("test_").removesuffix("_triton.py") for path in FILES}
    ops = {module.__name__.rpartition(".")[2] for module in modules()}
    assert [op for op in ops if not any(op == name or op.startswith(f"{name}_") for name in tested)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_interpreter_tests_pass(file: Path, root: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]
    dropped = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
