"""Architecture search on ImageNet-layout JPEGs, label-free by default: `python -m fastdarts.search_imagenet`.

MAE-NAS with PC-DARTS' settings: masked reconstruction, partial channels, alpha on images of its own.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fastdarts import engine, provenance
from fastdarts.config import SAMPLE_RECIPE, ConfigError, SearchImagenetSettings
from fastdarts.data import DataError, EvalLoader, InputStopped, room
from fastdarts.data.ahead import DEPTH
from fastdarts.engine import CapturedBilevel, CaptureError, RunFolder, RunFolderError, Stopping
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
log = logging.getLogger("fastdarts")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, and where it is not 0 a line on stderr says why.

    1 something went wrong on the way, 2 wrong input, 75 asked to stop by SIGTERM or SIGUSR1, 130 interrupted (SIGINT).
    After 75 and 130 the same command with --save continues.
    """
    given = SearchImagenetSettings.given(argv, PROG, __doc__)
    threads = torch.get_num_threads()
    try:
        with engine.log_to(sys.stdout), engine.Stopping() as stopping:
            if given.get("data") is None:
                log.info(NOT_IMAGENET)
            settings = resolve(given)
            with tf32(settings.tf32), engine.algorithms(settings.deterministic, settings.device):
                run(settings, stopping)
    except (ConfigError, DataError, RunFolderError, BackendUnavailable, CaptureError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"{PROG}: stopped: {error}; the checkpoint before it is kept", file=sys.stderr)
        return 1
    except InputStopped as error:
        print(f"{PROG}: stopped: {error}; the same command with --save of this run's folder continues it", file=sys.stderr)
        return 1
    except engine.NotDeterministicError as error:
        print(f"{PROG}: stopped: {error}; go on without --deterministic, or with another --backend", file=sys.stderr)
        return 1
    except engine.NoMemory as error:
        print(f"{PROG}: stopped: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that went away
        print(f"{PROG}: stopped: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except engine.Stopped as stopped:
        print(f"{PROG}: stopped by {stopped}; the same command with --save of this run's folder continues it", file=sys.stderr)
        return stopped.status
    finally:
        torch.set_num_threads(threads)  # the caller's
    return 0


def resolve(given: dict[str, Any]) -> SearchImagenetSettings:
    """The settings that a command line stands for. Raises ConfigError."""
    values = SAMPLE_RECIPE | given
    if given.get("data") is not None:
        values = given | {"data": str(Path(given["data"]).expanduser().absolute())}
    if "epochs" in given:  # alpha's start and the warm-up, in PC-DARTS' proportion: 35 and 5 of 50
        values = values | {"begin": given["epochs"] * 35 // 50, "warmup_epochs": given["epochs"] * 5 // 50} | given
    settings = SearchImagenetSettings.make(values)
    if settings.objective == "mae":
        _check_patches(settings.image_size, settings.patch_size, settings.mask_ratio)
    settings = replace(settings, device=_device(settings.device), threads=settings.threads or torch.get_num_threads())
    device = torch.device(settings.device)
    _check_device(settings, device)
    _check_watching(settings)
    lower = Precision(settings.amp).dtype or torch.float32
    dtypes = dict.fromkeys(("patch_mask", "masked_loss"), torch.float32) | dict.fromkeys(("relu_conv_bn", "mixed_cell"), lower)
    try:
        for op, dtype in dtypes.items():
            choose(op, settings.backend, device, dtype)
    except ValueError as error:
        raise ConfigError(f"--backend: {error}") from error
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


def _check_watching(settings: SearchImagenetSettings) -> None:
    """Raise ConfigError where what is to be written cannot be."""
    if settings.tensorboard and (why := engine.no_tensorboard()):
        raise ConfigError(f"--tensorboard: {why}")
    if settings.profile is not None:
        try:
            engine.Window.parse(settings.profile)
        except ValueError as error:
            raise ConfigError(f"--profile {settings.profile}: {error}") from error


def run(settings: SearchImagenetSettings, stopping: Stopping) -> None:
    """Search as `settings` say: make or continue the run folder, or, with dry_run, only tell what would be done."""
    name = f"search-imagenet-{settings.objective}-{time.strftime('%Y%m%d-%H%M%S')}"
    cores = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    folder = RunFolder.open(Path(settings.save or name), settings)
    images = Images.choose(settings, folder)
    asked, free = settings, engine.free_bytes(settings.device)
    settings = _fitting(asked, images, folder, free)
    memory = _memory(settings, images)
    plan = _plan(settings, images, memory, free)  # what does not fit is refused before any file is decoded
    if settings.dry_run:
        log.info(f"{plan}\n{forecast(settings, images, memory)}")
        return
    with ExitStack() as held:
        if folder.saved is not None:
            held.enter_context(folder.locked())
        if folder.saved is None or settings.strict:
            images = images.checked(cores, settings.strict)
            if images.excluded:
                settings = _fitting(asked, images, folder, free)
                memory = _memory(settings, images)
                plan = _plan(settings, images, memory, free)
        else:
            images = images.measured(cores)
        held.enter_context(engine.memory_told(lambda: _too_little(settings, images, memory, free)))
        saved = None if folder.saved is None else folder.saved.get("input")
        workers = settings.workers if settings.workers >= 0 else max(1, min(8, cores - 1))
        given = open_input(settings, images, workers=workers, threads=cores, saved=saved, reserved=memory)
        held.enter_context(closing(given))
        search = _search(settings, images, given)
        if folder.saved is None:
            held.enter_context(folder.locked())
            images.write(folder)
            folder.create(_facts(settings, images) | {"input": given.facts})
        held.enter_context(engine.log_to(folder["log.txt"]))
        log.info(plan)
        log.info(f"run folder {folder.path}, {provenance.commit()}")
        log.info("input: {route}, --cache {cache}".format(**given.facts))
        pictures = EvalLoader(
            images.index, images.val[:PICTURES], batch_size=PICTURES, image_size=settings.image_size, workers=0
        )
        try:
            report = Session(search, folder, settings, pictures, files=images.index.files, stopping=stopping).run()
        except (DivergedError, OSError) as error:
            log.error(f"stopped: {error}")
            raise
        except DataError as error:  # of a file that was good when it was checked
            raise DataError(f"{error}; put the file back, and the same command continues the run") from error
        log.info(f"{search.genotype()}\nreport {report}")


def _search(settings: SearchImagenetSettings, images: Images, given: Input) -> Search:
    """The search of `settings` at its beginning."""
    torch.manual_seed(settings.seed)
    supernet, objective = build(settings, len(images.index.classes))
    supernet.to(settings.device, memory_format=torch.channels_last)
    objective.to(settings.device)
    search = Search(supernet, objective, given.train, given.val, settings, eval_loader=given.evaluation)
    search.take_step = CapturedBilevel(search.bilevel, settings.cuda_graph)
    return search


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


def _device(name: str) -> str:
    """The device that `name` stands for, tried out. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: neither auto, cpu, cuda nor cuda:N")
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as error:  # torch's two ways to say: no such device
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _on_meta(settings: SearchImagenetSettings, images: Images) -> tuple[Supernet, Objective]:
    with torch.device("meta"):
        return build(settings, len(images.index.classes))


def _memory(settings: SearchImagenetSettings, images: Images) -> int:
    """Bytes that steps take at most, about, with the batches that wait for them."""
    relaxation = SoftmaxRelaxation(S0, edge_normalization=settings.edge_normalization, device="meta")
    batch = engine.meta_batch(settings.batch_size, settings.image_size)
    return engine.step_bytes(
        *_on_meta(settings, images),
        relaxation,
        batch,
        settings.device,
        amp=settings.amp,
        unrolled=settings.unrolled,
        hessian=bool(settings.hessian_every),
        ahead=2 * (DEPTH + 1),
    )


def _fitting(settings: SearchImagenetSettings, images: Images, folder: RunFolder, free: int) -> SearchImagenetSettings:
    """The settings with the batch size that "auto" stands for: a continued run's own, else the largest that fits.

    Raises ConfigError where none does.
    """
    if settings.batch_size:
        return settings
    if folder.saved is not None:
        return replace(settings, batch_size=folder.saved["settings"]["batch_size"])
    split = min(len(images.train), len(images.val))
    found = _largest(settings, images, free, split)
    if not found:
        raise ConfigError(
            f"--batch_size auto: no multiple of 8 fits, neither in {room.SHARE:.0%} of the {room.gib(free)} that are free on "
            f"{settings.device} nor in the smaller split of {split} images; give a number"
        )
    log.info(
        f"--batch_size auto: {found} images, the largest multiple of 8 that fits in {room.SHARE:.0%} of the {room.gib(free)} "
        f"that are free on {settings.device} and in the smaller split of {split} images"
    )
    return replace(settings, batch_size=found)


def _largest(settings: SearchImagenetSettings, images: Images, free: int, most: int) -> int:
    """The largest batch, at most `most`, whose step fits in what is free; 0 where none does."""
    return engine.largest_batch(lambda n: _memory(replace(settings, batch_size=n), images), int(room.SHARE * free), most)


def _too_little(settings: SearchImagenetSettings, images: Images, memory: int, free: int) -> str:
    """What to do where memory gave out, with figures."""
    largest = _largest(settings, images, free, settings.batch_size - 1)
    told = f"steps of {settings.batch_size} images take about {room.gib(memory)}, {room.gib(free)} were free at the start"
    if not largest:
        return (
            f"{told}: no smaller batch fits either, take smaller images, fewer --init_channels or a larger --partial_channels"
        )
    return f"{told}: --batch_size {largest} is the largest smaller one that fits"


def _plan(settings: SearchImagenetSettings, images: Images, memory: int, free: int) -> str:
    """What will be done, in a few lines; `memory` are the bytes of a step, of which `free` are to be had.

    Raises ConfigError and DataError for steps that are not there.
    """
    index, steps = images.index, steps_of_an_epoch(settings, images)
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
        f"memory about {memory / 2**30:.2f} GiB for a step, {free / 2**30:.2f} GiB are free",
    ]
    if settings.profile is not None and (last := engine.Window.parse(settings.profile).last) > steps * settings.epochs:
        raise ConfigError(
            f"--profile {settings.profile}: the search has {steps * settings.epochs} steps, none is number {last}"
        )
    if memory > free:
        lines.append("note: that is more than is free; --batch_size auto takes what fits")
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
