"""Report resources of the native module's CUDA kernels: registers, shared memory, spills.

Needs cuobjdump (from the CUDA toolkit or from Triton), neither a GPU nor a driver.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DTYPES = {"f": "float32", "4Half": "float16", "8Bfloat16": "bfloat16"}
KERNEL = re.compile(
    r"run_blockINS0_\d+(?P<name>[A-Z][A-Za-z]+?)(?:I(?:NS0_)?(?P<dtype>f|4Half|8Bfloat16)E?(?P<rest>(?:L[bi]\d+E)*)E)?EE"
)
FLAGS = re.compile(r"L([bi])(\d+)E")


def cuobjdump() -> str | None:
    """Return the program's path, or None."""
    if found := shutil.which("cuobjdump"):
        return found
    if find_spec("triton") is None:
        return None
    from triton import knobs

    return knobs.nvidia.cuobjdump.path


def report(library: Path) -> list[dict[str, Any]]:
    """Return one row for each kernel and architecture in a library: the fields of compile.Usage. Raises RuntimeError."""
    program = cuobjdump()
    if program is None:
        raise RuntimeError("cuobjdump is not found: neither the CUDA toolkit nor Triton is installed")
    done = subprocess.run([program, "--dump-resource-usage", str(library)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump cannot read {library}: {(done.stderr or done.stdout).strip()}")
    rows, arch = [], ""
    for line, after in zip(lines := done.stdout.splitlines(), [*lines[1:], ""], strict=True):
        if found := re.search(r"arch = (sm_\w+)", line):
            arch = found[1]
        if (found := re.search(r"Function (\S+?):", line)) and (kernel := KERNEL.search(found[1])):
            rows.append(_row(kernel, arch, after))
    return sorted(rows, key=lambda row: (row["kernel"], row["arch"], row["dtype"], row["label"]))


def _row(kernel: re.Match[str], arch: str, usage: str) -> dict[str, Any]:
    used = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    words = [
        ("second" if value == "1" else "first") if kind == "b" else f"Cq<={value}"
        for kind, value in FLAGS.findall(kernel["rest"] or "")
    ]
    return {
        "kernel": kernel["name"],
        "label": " ".join(words),
        "backend": "cuda",
        "arch": arch,
        "dtype": DTYPES.get(kernel["dtype"], "any"),
        "registers": used["REG"],
        "shared_bytes": used["SHARED"],
        "spill_bytes": used["STACK"] + used["LOCAL"],
    }
