"""Runs test_*_triton.py in two processes in which Triton interprets the kernels; conftest.py says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))
LONGEST = "test_mixed_cell_triton"
PROCESSES = {  # of about the same time
    LONGEST: [path for path in FILES if path.stem == LONGEST],
    "others": [path for path in FILES if path.stem != LONGEST],
}


def test_every_kernel_module_has_test_file() -> None:
    from fastdarts.kernels.compile import modules

    tested = {path.name.removeprefix("test_").removesuffix("_triton.py") for path in FILES}
    ops = {module.__name__.rpartition(".")[2] for module in modules()}
    assert [op for op in ops if not any(op == name or op.startswith(f"{name}_") for name in tested)] == []


@pytest.mark.parametrize("files", PROCESSES.values(), ids=PROCESSES)
def test_interpreter_tests_pass(files: list[Path], root: Path) -> None:
    assert files
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *map(str, files)]
    dropped = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
