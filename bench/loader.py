"""What the input gives: `python -m bench.loader --data ROOT`.

Images/s of each route to batches on the device, of each stage of it alone, and the share of a bilevel step that waits for
input on each route. The routes are timed in turn, each started anew and brought to its steady pace first.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from bench.measure import quantiles
from bench.records import RESULTS, append, tagged
from bench.workload import OURS, SUPERNETS, Workload, WorkloadError
from fastdarts.data import (
    BatchSampler,
    Cache,
    CacheLayout,
    CacheLoader,
    DaliLoader,
    DataError,
    FolderLoader,
    ImageIndex,
    Loader,
    dali,
    sample_root,
    verify,
)
from fastdarts.data.crop import kept_side
from fastdarts.data.decode import read_rgb
from fastdarts.data.placement import gib
from fastdarts.data.prefetch import DEPTH
from fastdarts.data.view import View
from fastdarts.data.workers import torchvision_functional
from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.ops.patch_mask import num_masked, patch_mask
from fastdarts.ops.philox import Stream

PROG = "python -m bench.loader"
SUPERNET = "mae-imagenet"
PATCH = 8
Make = Callable[[], Loader]


class Inputs(NamedTuple):
    """What was asked for, the images that are good, and a cache of them on the device."""

    settings: argparse.Namespace
    index: ImageIndex
    chosen: torch.Tensor
    cache: Cache

    @property
    def order(self) -> dict[str, Any]:
        """A loader's arguments."""
        s = self.settings
        return {"stream": Stream.TRAIN, "seed": 0, "batch_size": s.batch, "image_size": s.image_size, "device": s.device}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; appends to loader.jsonl with --record. Returns 2 for wrong input."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", help="folder with train/CLASS/*.JPEG; without it the generated sample")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--workers", type=int, default=2, help="processes of torchvision, threads of DALI")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=4.0, help="that each route is timed for in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"bilevel steps of {SUPERNET} on each route; 0 = none")
    parser.add_argument("--json", action="store_true", help="print the record instead of a table")
    parser.add_argument("--record", action="store_true", help="append the record to loader.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of --record")
    args = parser.parse_args(argv)
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise WorkloadError("--device cuda: torch sees no GPU on this machine")
        record = tagged(measure(args))
    except (DataError, WorkloadError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record) if args.json else text(record))
    if args.record:
        append(args.results / "loader.jsonl", record)
    return 0


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain values."""
    index = ImageIndex.from_root(settings.data or sample_root())
    if settings.steps:  # refused before anything takes long
        _workload(settings).check(OURS)
    everything = torch.arange(len(index))
    BatchSampler(everything, stream=Stream.TRAIN, seed=0, batch_size=settings.batch)  # refuses what does not fit
    threads = torch.get_num_threads()
    verifying, (good, found, bad) = _timed(lambda: verify(index, everything, threads))
    layout = CacheLayout.of(index, good, found, kept_side(settings.image_size))
    filling, cache = _timed(lambda: Cache.make(layout, settings.device, threads=threads))
    inputs = Inputs(settings, index, good, cache)
    routes = _routes(inputs)
    rates: dict[str, list[float]] = {name: [] for name in routes}
    for number in range(settings.rounds):
        for name in sorted(routes, reverse=number % 2 == 1):
            rates[name].append(_pace(routes[name], settings))
    stages = _stages(inputs) | {
        f"check the files, {threads} threads": len(everything) / verifying,
        f"decode into the cache, {threads} threads": len(good) / filling,
    }
    waiting = {name: _waiting(make, settings) for name, make in routes.items()} if settings.steps else {}
    with routes["cache"]() as cached, routes["torchvision"]() as files:
        difference = (next(cached).images.double() - next(files).images.double()).abs().mean().item()
    return {
        "data": "a generated sample" if settings.data is None else Path(settings.data).name,
        "images": len(good),
        "left_out": len(bad),
        "image_size": settings.image_size,
        "batch": settings.batch,
        "workers": settings.workers,
        "threads": threads,
        "device": settings.device,
        "cache_bytes": layout.bytes,
        "cache_difference": round(difference, 2),
        "images_per_s": {name: {k: round(v, 1) for k, v in quantiles(values).items()} for name, values in rates.items()},
        "stages_images_per_s": {name: round(rate, 1) for name, rate in stages.items()},
        "waiting": waiting,
        "missing": {"dali": why} if (why := dali.unavailable(torch.device(settings.device))) else {},
    }


def _routes(inputs: Inputs) -> dict[str, Make]:
    """How to open each route that there is here."""
    s, index, chosen, order = inputs.settings, inputs.index, inputs.chosen, inputs.order
    routes: dict[str, Make] = {
        "torchvision": lambda: FolderLoader(index, chosen, workers=s.workers, **order),
        "cache": lambda: CacheLoader(inputs.cache, chosen, **order),
    }
    if dali.unavailable(torch.device(s.device)) is None:
        routes["dali"] = lambda: DaliLoader(index, chosen, threads=max(1, s.workers), **order)
    return routes


def _pace(make: Make, settings: argparse.Namespace) -> float:
    """Images/s of a loader once what it made ahead is used up."""
    with make() as loader:
        for _ in range(DEPTH + 2 + 2 * settings.workers):
            next(loader)
        _synchronise(settings.device)
        began, count = perf_counter(), 0
        while count < 4 or perf_counter() - began < settings.seconds:
            next(loader)
            count += 1
        _synchronise(settings.device)
        return settings.batch * count / (perf_counter() - began)


def _stages(inputs: Inputs) -> dict[str, float]:
    """Images/s of each stage alone: of the torchvision route in one thread, of what runs on the device as a search runs it."""
    s, functional = inputs.settings, torchvision_functional()
    some = inputs.chosen[torch.randperm(len(inputs.chosen), generator=torch.Generator().manual_seed(0))[: s.batch]]
    paths = [inputs.index.path(i) for i in some.tolist()]
    view = View(s.image_size, 0, Stream.TRAIN, True, (0.08, 1.0))
    decoded = [read_rgb(path) for path in paths]
    boxes = view.boxes(0, some, [(image.height, image.width) for image in decoded])
    batch = inputs.cache.batch(view, 0, some)
    step, fill = torch.zeros(1, dtype=torch.int64, device=s.device), torch.zeros(3, device=s.device)
    size = s.image_size // PATCH * PATCH
    images = batch.images[:, :size, :size].contiguous()

    def mask(backend: str) -> Callable[[], object]:
        options: dict[str, Any] = {
            "patch_size": PATCH,
            "num_masked": num_masked(0.5, (size // PATCH) ** 2),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }
        args = images, batch.index, step, batch.flip, fill
        return lambda: patch_mask(*args, seed=0, stream=0, backend=backend, **options)

    stages: dict[str, Callable[[], object]] = {
        "read files": lambda: [Path(path).read_bytes() for path in paths],
        "decode, 1 thread": lambda: [read_rgb(path) for path in paths],
        "crop and resize, 1 thread": lambda: [
            functional.resized_crop(image, *box, [s.image_size] * 2) for image, box in zip(decoded, boxes, strict=True)
        ],
        "draw boxes": lambda: view.boxes(0, some, [(image.height, image.width) for image in decoded]),
        "cut out of the cache": lambda: inputs.cache.batch(view, 0, some),
        "normalise, flip, mask": mask("auto"),
        "normalise, flip, mask, op by op": mask("definition"),
    }
    return {name: s.batch / _median(run, s.device) for name, run in stages.items()}


def _workload(settings: argparse.Namespace) -> Workload:
    k = SUPERNETS[SUPERNET].partial_channels
    return Workload(SUPERNET, settings.batch, settings.image_size, k, device=settings.device)


def _waiting(make: Make, settings: argparse.Namespace) -> dict[str, float]:
    """Share of a search's bilevel steps that waits for batches, and the steps' images/s."""
    run: Any = _workload(settings).build(OURS)
    waited, began = 0.0, 0.0
    with make() as train, make() as val:
        for number in range(-2, settings.steps):
            if number == 0:
                _synchronise(settings.device)
                waited, began = 0.0, perf_counter()
            asked = perf_counter()
            run.train, run.val = next(train), next(val)
            waited += perf_counter() - asked
            run()
        _synchronise(settings.device)
    seconds = perf_counter() - began
    return {"share": round(waited / seconds, 4), "images_per_s": round(2 * settings.batch * settings.steps / seconds, 1)}


def _median(run: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Seconds of a call."""
    times = []
    for _ in range(rounds + 1):
        _synchronise(device)
        began = perf_counter()
        run()
        _synchronise(device)
        times.append(perf_counter() - began)
    return quantiles(times[1:])["median"]


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = perf_counter()
    result = run()
    return perf_counter() - began, result


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def text(record: dict[str, Any]) -> str:
    """Format a record as a table."""
    what = (
        "{images} images of {data} ({left_out} left out), {image_size} px, batch {batch}, {workers} workers, {threads} threads"
    )
    lines = [
        f"{what} on {{device}}".format(**record),
        f"cache: {gib(record['cache_bytes'])}; pixels differ from those cut out of the files by {record['cache_difference']} "
        "levels of 255 on average",
        f"{'route':36}{'images/s':>12}{'waiting':>10}{'search images/s':>18}",
    ]
    for name, rate in sorted(record["images_per_s"].items(), key=lambda item: item[1]["median"]):
        step = record["waiting"].get(name)
        lines.append(
            f"{name:36}{rate['median']:12.0f}" + (f"{step['share']:10.1%}{step['images_per_s']:18.1f}" if step else "")
        )
    lines += [f"{name:36}{'none':>12}  {why}" for name, why in record["missing"].items()]
    lines.append(f"{'stage alone':36}{'images/s':>12}")
    lines += [f"{name:36}{rate:12.0f}" for name, rate in record["stages_images_per_s"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
