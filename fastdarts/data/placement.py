"""Choose the place of a cache of a given size from this machine's free memory."""

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from fastdarts.data.errors import DataError

Asked = Literal["auto", "device", "ram", "off"]
SHARE = 0.8  # usable share of free memory
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class Place(NamedTuple):
    """Place of the cache ("device", "ram" or "off"), and a sentence with the reason."""

    where: Literal["device", "ram", "off"]
    message: str


def choose(
    asked: Asked,
    size: int,
    device: torch.device,
    folder: Path | None = None,
    taken: int = 0,
    reserved: int = 0,
    copies: int = 1,
) -> Place:
    """Return the first place of `asked` with room for a cache of `size` bytes.

    folder    of a memory-mapped file, instead of RAM
    taken     bytes this file already occupies
    reserved  bytes of device memory (RAM on a CPU) used by the run itself
    copies    processes on this machine that each keep a copy, in their GPU or in RAM; they share a file
    "auto" tries device, RAM (or the file), off. Raises DataError, with figures, if an explicit choice has no room.
    """
    if asked == "off":
        return Place("off", "no cache: images are decoded every time they are used")
    places = {"auto": ("device", "ram"), "device": ("device",), "ram": ("ram",)}[asked]
    reasons = []
    for place in places:
        own = reserved if device.type == "cpu" else 0
        why = _lacks_device(size, device, reserved) if place == "device" else _lacks_host(size, folder, taken, own, copies)
        if why is None:
            names = {"device": str(device), "ram": f"a file in {folder}" if folder else "RAM"}
            each = f", for each of {copies} ranks" if copies > 1 and not (place == "ram" and folder) else ""
            return Place(place, f"cache: {gib(size)} of decoded images in {names[place]}{each}")
        reasons.append(why)
    if asked != "auto":
        raise DataError(
            f"--cache {asked}: the decoded images need {gib(size)}: {reasons[0]}; choose a smaller --cache_size, or --cache off"
        )
    return Place("off", f"no cache of {gib(size)}: {'; '.join(reasons)}")


def _lacks_device(size: int, device: torch.device, reserved: int) -> str | None:
    if device.type != "cuda":
        return f"{device} is not a GPU"
    free = torch.cuda.mem_get_info(device)[0]
    limit = SHARE * (free - reserved)
    if size <= limit:
        return None
    return (
        f"{device} has {gib(free)} free, of which the run needs about {gib(reserved)}; at most {gib(max(0, limit))} may be used"
    )


def _lacks_host(size: int, folder: Path | None, taken: int, reserved: int, copies: int) -> str | None:
    if folder is not None:
        reserved = 0  # the system evicts a mapped file from RAM under memory pressure
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free, what = shutil.disk_usage(there).free + taken, f"the disk of {folder}"
    else:
        free, what = available_ram(), "RAM"
        size, reserved = copies * size, copies * reserved
    if size <= SHARE * (free - reserved):
        return None
    own = f"the run needs about {gib(reserved)}, and of the rest " if reserved else ""
    each = (
        f", and {copies} ranks would keep a copy each; --cache_folder lets them share one"
        if copies > 1 and folder is None
        else ""
    )
    return f"{what} has {gib(free)} free, of which {own}at most {SHARE:.0%} may be used{each}"


def available_ram() -> int:
    """Return the bytes this process can allocate without swapping, within its control group's limit."""
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:  # no control groups, or version 1
        return free
    files = int(kinds.get("inactive_file", 0))  # counted as used, but reclaimable
    return free if limit == "max" else min(free, int(limit) - int(used) + files)


def gib(size: float) -> str:
    """Format a size in GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
