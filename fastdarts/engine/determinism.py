"""Select the fastest or the deterministic algorithms of torch's GPU libraries."""

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it once, at start-up
OFF = (
    "cuDNN's search for the fastest algorithm, cuDNN's algorithms that add up in no fixed order, "
    "and cuBLAS' workspaces of several streams"
)
log = logging.getLogger("fastdarts")


class NotDeterministicError(RuntimeError):
    """Deterministic steps were requested, but an operator has no such algorithm, or no longer; the message names it."""


@contextmanager
def algorithms(deterministic: bool, device: torch.device | str) -> Generator[None]:
    """Use torch's fastest or its deterministic algorithms inside the context, and log which features are disabled.

    This library's own kernels, and everything on a CPU, are bitwise reproducible in both modes. If not `deterministic`, cuDNN
    benchmarks its algorithms for each shape on a GPU and keeps the fastest: shapes are constant during a run. If
    `deterministic`, a torch operator without a deterministic algorithm raises NotDeterministicError. So does cuBLAS if the
    process has already used it, since it reads the size of its workspaces once.
    """
    on_gpu = torch.device(device).type == "cuda"
    cudnn = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = (
        cudnn.benchmark,
        cudnn.deterministic,
        memory.fill_uninitialized_memory,
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        cudnn.benchmark = on_gpu and not deterministic
        if deterministic:
            os.environ.setdefault(CUBLAS, ":4096:8")
            cudnn.deterministic = True
            torch.use_deterministic_algorithms(True)
            memory.fill_uninitialized_memory = False  # a debugging aid that costs a pass over every new tensor
            log.info(f"deterministic: disabled {OFF}" if on_gpu else "deterministic: nothing to disable on a CPU")
        yield
    except RuntimeError as error:
        if CUBLAS in str(error):
            early = f"cuBLAS was already in use in this process with other workspaces; start the process with {CUBLAS}=:4096:8"
            raise NotDeterministicError(early) from error
        what, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise NotDeterministicError(f"torch has no deterministic {what.split()[-1]} on {device}") from error
    finally:
        cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory, enabled = before
        torch.use_deterministic_algorithms(enabled)
