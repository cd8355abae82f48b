"""Launch settings of the Triton kernels: a table by kernel, architecture and dtype, separate from the kernels.

launch.json: kernel -> target ("sm_80", "sm_90", "default") -> dtype ("float32", ..., "any") -> settings of a launch: block
sizes by the kernel's names for them, num_warps, num_stages; and "backend": "cuda" if a record shows that the native
module's CUDA kernel is faster. `python -m bench.tune` rewrites it on the current machine. A search tunes nothing:
the order of a sum depends on the blocks, so choosing by time would change results from run to run.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("launch.json")
OPTIONS = frozenset({"num_warps", "num_stages", "maxnreg", "enable_fp_fusion"})  # compiler options; the rest are the kernel's
COMMON = {"enable_fp_fusion": True}  # explicit, because Triton's default changes between versions

Table = dict[str, dict[str, dict[str, dict[str, Any]]]]


@cache
def table() -> Table:
    """Load launch.json."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@cache
def _settings(kernel: str, dtype: torch.dtype, target: str) -> dict[str, Any]:
    if kernel not in table():
        raise KeyError(f"launch.json has no kernel {kernel!r}; it has {', '.join(sorted(table()))}")
    name = str(dtype).removeprefix("torch.")
    for architecture in (target, "default"):
        rows = table()[kernel].get(architecture, {})
        for row in (name, "any"):
            if row in rows:
                return COMMON | {"backend": "triton"} | rows[row]
    raise KeyError(f"launch.json has no row for {kernel} with {name} on {target}, and no default")


def settings(kernel: str, dtype: torch.dtype, target: str) -> dict[str, Any]:
    """Return the settings of a launch of `kernel`, to pass as arguments: block sizes, num_warps, num_stages, enable_fp_fusion.

    kernel  its name in launch.json
    dtype   of the op's tensors in memory
    target  "sm_80", "sm_90", ... (`target_of`); one that is not in the table takes "default"

    A row of the target precedes the default's, a row of the dtype precedes "any". Raises KeyError for an unknown kernel.
    """
    return {name: value for name, value in _settings(kernel, dtype, target).items() if name != "backend"}


def widened(given: dict[str, Any], channels: int | None) -> dict[str, Any]:
    """Return the settings of a launch whose tiles have so many channels, if any.

    Where 16 pixels, the fewest of a matrix product, exceed TILE numbers, warps grow as the tile: else registers would spill.
    """
    growth = 1 if channels is None or "TILE" not in given else -(-16 * channels // given["TILE"])
    return given | {"num_warps": growth * given["num_warps"]}


def backend(kernel: str, dtype: torch.dtype, target: str) -> str:
    """Return the preferred kernel of a launch: "triton", or "cuda" (csrc/cuda). Arguments as of `settings`."""
    return _settings(kernel, dtype, target)["backend"]


def replace(kernel: str, dtype: torch.dtype, target: str, row: dict[str, Any]) -> None:
    """Set a row of the table, in this process only (for bench.tune). A row without a backend keeps the current one."""
    row = {"backend": backend(kernel, dtype, target)} | row
    if row["backend"] == "triton":
        del row["backend"]
    table()[kernel].setdefault(target, {})[str(dtype).removeprefix("torch.")] = row
    _settings.cache_clear()


@cache
def target_of(device: torch.device) -> str:
    """Return the target of a CUDA device, such as "sm_90"; "default" for others (the interpreter's tensors are on the CPU)."""
    if device.type != "cuda":
        return "default"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def on(device: torch.device) -> AbstractContextManager:
    """Context manager for launches on `device`: Triton launches on the current CUDA device, not the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
