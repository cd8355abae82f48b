"""The CUDA kernels on the CPU: builds csrc/cuda/harness.cpp under the sanitizers, gives it a launch, reads back what it wrote.

Notation as in kernels/mixed_cell_plan.py.
"""

import fcntl
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "cuda-harness"
Order = Literal["forward", "backward"]


def _tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@cache
def program() -> Path:
    """The harness, built when its sources changed."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    BUILD.mkdir(parents=True, exist_ok=True)
    configure = [cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DFASTDARTS_CUDA_HARNESS=ON"]
    with open(BUILD / "lock", "w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", BUILD]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return BUILD / "cuda_harness"


def run(
    folder: Path,
    kernel: str,
    dtype: torch.dtype,
    programs: int,
    given: Mapping[str, Tensor | int],
    order: Order = "forward",
) -> dict[str, Tensor]:
    """Run a kernel on copies of the tensors; what those hold afterwards.

    folder    for the file that goes there and back
    programs  the size of the Triton launch's grid
    given     the kernel's arguments by name
    order     of a block's threads within a phase: results may not depend on it
    """
    integers = {name: int(value) for name, value in given.items() if not isinstance(value, Tensor)}
    tensors = {name: value.detach().contiguous() for name, value in given.items() if isinstance(value, Tensor)}
    raw = {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}
    head = [f"{kernel} {str(dtype).removeprefix('torch.')} {programs} {order} {len(integers)} {len(tensors)}"]
    head += [f"{name} {value}" for name, value in integers.items()]
    head += [f"{name} {len(data)}" for name, data in raw.items()]
    file = folder / f"{kernel}.bin"
    file.write_bytes("\n".join(head).encode() + b"\n" + b"".join(raw.values()))
    done = subprocess.run([program(), file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written, begin, out = bytearray(file.read_bytes()), 0, {}
    for name, tensor in tensors.items():
        size = len(raw[name])
        data = torch.frombuffer(written, dtype=torch.uint8, count=size, offset=begin) if size else torch.empty(0)
        out[name] = data.clone().view(tensor.dtype).view(tensor.shape) if size else tensor
        begin += size
    assert begin == len(written)
    return out
