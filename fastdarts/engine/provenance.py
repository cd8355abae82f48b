"""Where a result comes from: the code, the versions and the machine it was made with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fastdarts

PACKAGES = ("torch", "triton", "torchvision", "numpy", "pillow", "matplotlib", "nvidia-dali-cuda130", "apex")


def commit() -> str:
    """The checkout's commit, with `+changes` if tracked files differ from it; the version outside a checkout."""
    root = Path(fastdarts.__file__).resolve().parent.parent
    try:
        top, head = _git(root, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top) != root:
            return f"fastdarts {fastdarts.__version__}"
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.CalledProcessError):  # no git, or no repository
        return f"fastdarts {fastdarts.__version__}"


def versions() -> dict[str, str]:
    """Versions of Python, of CUDA as torch was built for it, and of the packages that are installed."""
    found = {"python": platform.python_version(), "fastdarts": fastdarts.__version__, "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}


def machine() -> dict[str, str | int]:
    """Processor, cores, threads that torch uses, memory in GiB, operating system, and the GPU if there is one."""
    facts: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return facts


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
