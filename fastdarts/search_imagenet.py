"""Architecture search on ImageNet-layout JPEGs, label-free by default: `python -m fastdarts.search_imagenet`.

MAE-NAS with PC-DARTS' settings: masked reconstruction, partial channels, alpha on images of its own.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance
from fastdarts.config import SAMPLE_RECIPE, ConfigError, SearchImagenetSettings
from fastdarts.data import DataError, EvalLoader, InputStopped
from fastdarts.engine import (
    CapturedBilevel,
    CaptureError,
    CheckedStep,
    RankLost,
    RanksDisagree,
    RunFolder,
    RunFolderError,
    Seat,
    ToldElsewhere,
    World,
    WorldError,
)
from fastdarts.images import Images
from fastdarts.input import Input, forecast, open_input, steps_of_an_epoch
from fastdarts.objectives import Classification, MaskedReconstruction, Objective
from fastdarts.ops.backend import BackendUnavailable, choose
from fastdarts.ops.patch_mask import num_masked
from fastdarts.search import DivergedError, OptimizerUnavailable, Precision, Search, SoftmaxRelaxation, tf32
from fastdarts.search.optimizers import check_backend
from fastdarts.session import PICTURES, Session
from fastdarts.spaces import KINDS, S0
from fastdarts.supernet import Supernet

PROG = "python -m fastdarts.search_imagenet"
NOT_IMAGENET = "No --data: this searches a generated sample of textures and shapes, NOT ImageNet."
# what may differ between the ranks of one search: where a node keeps things, and what only rank 0 looks at
OF_A_RANK = {"device", "data", "save", "train_list", "val_list", "threads", "workers", "cache_folder"}
log = logging.getLogger("fastdarts")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 stopped, 2 wrong input, 130 interrupted; a line on stderr says why.

    Under torchrun it is one rank of a search.
    """
    given = SearchImagenetSettings.given(argv, PROG, __doc__)
    threads, seat = torch.get_num_threads(), Seat()
    try:
        seat = Seat.of_environment()
        with seat.log():
            if given.get("data") is None:
                log.info(NOT_IMAGENET)
            _search(given, seat)
    except ToldElsewhere:
        return 2
    except (ConfigError, DataError, RunFolderError, BackendUnavailable, CaptureError, WorldError) as error:
        print(f"{seat.prefix}{PROG}: error: {error}", file=sys.stderr)
        return 2
    except (DivergedError, RanksDisagree) as error:  # on all ranks alike
        if seat.rank == 0:
            print(f"{PROG}: stopped: {error}; the checkpoint before it is kept", file=sys.stderr)
        return 1
    except (InputStopped, RankLost) as error:
        again = "the same command with --save of this run's folder continues it"
        print(f"{seat.prefix}{PROG}: stopped: {error}; {again}", file=sys.stderr)
        return 1
    except engine.NotDeterministicError as error:
        told = f"{error}; go on without --deterministic, or with another --backend"
        print(f"{seat.prefix}{PROG}: stopped: {told}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        told = f"{str(error).splitlines()[0]} Try a smaller --batch_size."
        print(f"{seat.prefix}{PROG}: stopped: {told}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that went away
        print(f"{seat.prefix}{PROG}: stopped: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if seat.rank == 0:
            print(f"{PROG}: interrupted; the same command with --save of this run's folder continues it", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)  # the caller's
    return 0


def _search(given: dict[str, Any], seat: Seat) -> None:
    """Find the other ranks, then run on each what the flags `given` stand for."""
    how = {name: given.get(name, getattr(SearchImagenetSettings, name)) for name in ("device", "dist_timeout", "dist_backend")}
    with World.join(seat, how["device"], how["dist_timeout"], how["dist_backend"]) as world:
        settings = world.together(lambda: resolve(given, seat))
        world.compare({f"--{name}": value for name, value in asdict(settings).items() if name not in OF_A_RANK})
        with tf32(settings.tf32), engine.algorithms(settings.deterministic, settings.device):
            run(settings, world)


def resolve(given: dict[str, Any], seat: Seat = Seat()) -> SearchImagenetSettings:  # noqa: B008 - a tuple
    """The settings that a command line stands for, on the rank of that seat. Raises ConfigError."""
    values = SAMPLE_RECIPE | given
    if given.get("data") is not None:
        values = given | {"data": str(Path(given["data"]).expanduser().absolute())}
    if "epochs" in given:  # alpha's start and the warm-up, in PC-DARTS' proportion: 35 and 5 of 50
        values = values | {"begin": given["epochs"] * 35 // 50, "warmup_epochs": given["epochs"] * 5 // 50} | given
    settings = SearchImagenetSettings.make(values)
    if settings.objective == "mae":
        _check_patches(settings.image_size, settings.patch_size, settings.mask_ratio)
    settings = replace(settings, device=_device(settings.device, seat), threads=settings.threads or seat.threads())
    device = torch.device(settings.device)
    _check_device(settings, device)
    lower = Precision(settings.amp).dtype or torch.float32
    dtypes = dict.fromkeys(("patch_mask", "masked_loss"), torch.float32) | dict.fromkeys(("relu_conv_bn", "mixed_cell"), lower)
    try:
        for op, dtype in dtypes.items():
            choose(op, settings.backend, device, dtype)
    except ValueError as error:
        raise ConfigError(f"--backend: {error}") from error
    if settings.sync_bn and seat.size > 1 and settings.backend not in ("auto", "definition"):
        raise ConfigError(f"--sync_bn with --backend {settings.backend}: only the ops' definitions add up over the ranks yet")
    return settings


def _check_device(settings: SearchImagenetSettings, device: torch.device) -> None:
    """Raise ConfigError for what the device cannot do, or not well."""
    if settings.amp != "off" and device.type == "cpu":
        raise ConfigError(f"--amp {settings.amp}: on a CPU it is many times slower than float32; leave it off, or take a GPU")
    if settings.cuda_graph == "on" and (why := engine.no_gpu(device)):
        raise ConfigError(f"--cuda_graph on: {why}")
    try:
        check_backend(settings.optimizer_backend, device)
    except OptimizerUnavailable as error:
        raise ConfigError(f"--optimizer_backend {settings.optimizer_backend}: {error}") from error


def run(settings: SearchImagenetSettings, world: World | None = None) -> None:
    """Search as `settings` say: make or continue the run folder, or, with dry_run, only tell what would be done.

    world  the ranks that do it together, each of which calls this; the folder is rank 0's
    """
    world = world or World()
    cores = world.seat.threads()
    torch.set_num_threads(settings.threads)
    folder = _folder(settings, world)
    found = world.lead(lambda: Images.choose(settings, folder), Images.splits)
    images = world.together(lambda: found if world.leads else Images.listed(settings, found))
    memory, plan = world.together(lambda: _estimate(settings, images, world))  # what does not fit is refused before decoding
    if settings.dry_run:
        log.info(f"{plan}\n{world.lead(lambda: forecast(settings, images, memory, world))}")
        return
    images, plan = _checked(settings, folder, images, plan, memory, cores, world)
    saved = None if folder.saved is None else folder.saved.get("input")
    workers = settings.workers if settings.workers >= 0 else max(1, min(8, cores - 1))
    how = {"workers": workers, "threads": cores, "saved": saved, "reserved": memory, "world": world}
    with closing(open_input(settings, images, **how)) as given:
        search = _start(settings, images, given, world)
        if folder.saved is None and world.leads:
            images.write(folder)
            folder.create(_facts(settings, images) | {"input": given.facts, "ranks": world.size})
        pictures = EvalLoader(
            images.index, images.val[:PICTURES], batch_size=PICTURES, image_size=settings.image_size, workers=0
        )
        with engine.log_to(folder["log.txt"]) if world.leads else nullcontext():
            log.info(plan)
            log.info(f"run folder {folder.path}, {provenance.commit()}")
            _say_what_changed(folder, settings, world)
            try:
                report = Session(search, folder, settings, pictures, world).run()
            except DivergedError as error:
                log.error(f"stopped: {error}")
                raise
            log.info(f"{search.genotype()}\nreport {report}")


def _folder(settings: SearchImagenetSettings, world: World) -> RunFolder:
    """The run folder as rank 0 finds it. Raises RunFolderError."""
    name = f"search-imagenet-{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(settings.save or name)
    found = world.lead(lambda: RunFolder.open(path, settings), lambda folder: folder.saved)
    if world.leads:
        return found
    folder = RunFolder(path)
    folder.saved = found
    return folder


def _estimate(settings: SearchImagenetSettings, images: Images, world: World) -> tuple[int, str]:
    """Bytes of a rank's step, about, and the plan."""
    steps_of_an_epoch(settings, images, world.size)  # raises DataError for a batch that does not fit
    memory = _memory(settings, images, world)
    return memory, _plan(settings, images, memory, world)


def _checked(
    settings: SearchImagenetSettings, folder: RunFolder, images: Images, plan: str, memory: int, cores: int, world: World
) -> tuple[Images, str]:
    """Rank 0 looks into the files, the others take what it finds: the images with sizes, and the plan for those left."""
    new = folder.saved is None or settings.strict
    look = partial(images.checked, cores, settings.strict) if new else partial(images.measured, cores)
    found = world.lead(look, Images.splits)
    images = found if world.leads else images.taking(found)
    return images, _plan(settings, images, memory, world) if new and images.excluded else plan


def _start(settings: SearchImagenetSettings, images: Images, given: Input, world: World) -> Search:
    """The search, with the same weights on all ranks, and how it takes its steps."""
    torch.manual_seed(settings.seed)
    supernet, objective = build(settings, len(images.index.classes))
    supernet.to(settings.device, memory_format=torch.channels_last)
    objective.to(settings.device)
    if settings.sync_bn and not world.alone:
        supernet.synchronise(world)
    search = Search(
        supernet,
        objective,
        given.train,
        given.val,
        settings,
        eval_loader=given.evaluation,
        ranks=None if world.alone else world,
    )
    search.take_step = CapturedBilevel(search.bilevel, settings.cuda_graph)
    if not world.alone:
        tensors = world.named(search)
        world.copy_from_lead([*tensors.values(), *supernet.buffers(), *objective.buffers()])
        search.take_step = CheckedStep(search.take_step, world, tensors, settings.check_ranks_every)
    return search


def _say_what_changed(folder: RunFolder, settings: SearchImagenetSettings, world: World) -> None:
    """What a continued run may do otherwise than it began, and what that changes."""
    if folder.saved is None or not world.leads:
        return
    ranks, threads = folder.saved.get("ranks", 1), folder.saved["settings"].get("threads", settings.threads)
    if ranks != world.size:
        norm = "" if settings.sync_bn else ", and BatchNorm's statistics are of other shares of a batch"
        log.warning(f"the run began with {ranks} ranks and goes on with {world.size}: images stay the same, sums round{norm}")
    elif threads != settings.threads:
        log.warning(
            f"the run began with {threads} threads and goes on with {settings.threads}: torch's sums may round otherwise"
        )


def build(settings: SearchImagenetSettings, num_classes: int) -> tuple[Supernet, Objective]:
    """The supernet and the objective of a search, on the default device. Raises ConfigError if sizes do not fit."""
    try:
        supernet = Supernet(
            S0,
            C=settings.init_channels,
            layers=settings.layers,
            stem="imagenet",
            partial_channels=settings.partial_channels,
            channel_sampling=settings.channel_sampling,
            seed=settings.seed,
            backend=settings.backend,
        )
        if settings.objective == "supervised":
            objective: Objective = Classification(supernet, num_classes)
        else:
            objective = MaskedReconstruction(
                supernet.tap_channels,
                mask_ratio=settings.mask_ratio,
                patch_size=settings.patch_size,
                mask_token=settings.mask_token,
                norm=settings.loss,
                seed=settings.seed,
                backend=settings.backend,
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if settings.image_size % supernet.multiple:
        fits = f"a multiple of {supernet.multiple} is needed"
        raise ConfigError(f"--image_size {settings.image_size} does not fit the stem and two reductions: {fits}")
    return supernet, objective


def _check_patches(image_size: int, patch_size: int, ratio: float) -> None:
    """Raise ConfigError unless patches tile the image and some are hidden."""
    if image_size % patch_size:
        raise ConfigError(f"--patch_size {patch_size} does not divide --image_size {image_size}")
    patches = (image_size // patch_size) ** 2
    if not num_masked(ratio, patches):
        raise ConfigError(f"--mask_ratio {ratio} hides none of an image's {patches} patches")


def _device(name: str, seat: Seat) -> str:
    """The device that `name` stands for on the rank of that seat, tried out. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and seat.size > 1:
        name = f"cuda:{seat.local_rank}"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: neither auto, cpu, cuda nor cuda:N")
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say: no such device
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _on_meta(settings: SearchImagenetSettings, images: Images) -> tuple[Supernet, Objective]:
    with torch.device("meta"):
        return build(settings, len(images.index.classes))


def _memory(settings: SearchImagenetSettings, images: Images, world: World) -> int:
    """Bytes of a rank's step, about."""
    if settings.sync_bn and not world.alone:  # the definitions serve
        settings = replace(settings, backend="definition")
    relaxation = SoftmaxRelaxation(S0, edge_normalization=settings.edge_normalization, device="meta")
    batch = engine.meta_batch(settings.batch_size // world.size, settings.image_size)
    return engine.step_bytes(*_on_meta(settings, images), relaxation, batch, settings.device)


def _plan(settings: SearchImagenetSettings, images: Images, memory: int, world: World) -> str:
    """What will be done, in a few lines; `memory` are the bytes of a rank's step."""
    index, steps = images.index, steps_of_an_epoch(settings, images, world.size)
    supernet, _ = _on_meta(settings, images)
    moving = max(settings.epochs - settings.begin, 0)
    passes = settings.batch_size * steps * (settings.epochs + moving)
    weights = sum(w.numel() for w in supernet.parameters())
    lines = [
        f"objective {settings.objective}, space {S0.name}, {settings.layers} cells, C = {settings.init_channels}, "
        f"k = {settings.partial_channels}, {weights / 1e6:.2f} M weights, on {settings.device}",
        f"images {len(images.train)} train + {len(images.val)} val of {len(index)} in {len(index.classes)} classes, "
        f"{settings.image_size} px, batch {settings.batch_size}",
        f"steps {steps} an epoch, {steps * settings.epochs} in {settings.epochs} epochs; alpha moves in the last "
        f"{moving} (--begin {settings.begin}); {passes} image passes forward and backward",
        f"memory about {memory / 2**30:.2f} GiB for a step"
        + ("" if settings.amp == "off" else " in float32")
        + ("" if world.alone else ", on each rank"),
        *_shares(settings, world),
    ]
    if images.excluded:
        lines.append(f"left out {len(images.excluded)} files that cannot be decoded, listed in excluded.txt")
    if not moving:
        lines.append(f"note: alpha never moves, --begin {settings.begin} is not below --epochs {settings.epochs}")
    if settings.data is not None and settings.batch_size != 1024 and settings.learning_rate == 0.5:
        scaled = settings.learning_rate * settings.batch_size / 1024
        lines.append(
            f"note: --learning_rate 0.5 is the published one for batch 1024; in proportion, {settings.batch_size} "
            f"images would take {scaled:.3g}"
        )
    return "\n".join(lines)


def _shares(settings: SearchImagenetSettings, world: World) -> list[str]:
    """The plan's lines on ranks."""
    if world.alone:
        return ["note: --sync_bn changes nothing, this is one process"] if settings.sync_bn else []
    share = settings.batch_size // world.size
    norm = f"BatchNorm over each rank's {share}"
    if settings.sync_bn:
        norm = f"BatchNorm over all {settings.batch_size}, by the ops' definitions: the fused kernels add up on one rank only"
    return [
        f"ranks {world.size} by {world.backend}, {settings.threads} threads each: of every batch of {settings.batch_size} each "
        f"takes {share}; --learning_rate {settings.learning_rate} is for the whole batch and is not scaled",
        f"{norm}; running statistics are averaged at every step",
    ]


def _facts(settings: SearchImagenetSettings, images: Images) -> dict[str, Any]:
    """The content of settings.json."""
    return {
        "command": "search_imagenet",
        "settings": asdict(settings),
        "data": images.facts() | {"is_sample": settings.data is None},
        "candidates": {kind: S0.candidates(kind) for kind in KINDS},
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
