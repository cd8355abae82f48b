"""Settings of the commands: field = flag = help line = saved setting.

A command's settings are one frozen dataclass. Each field is made by `setting`, which carries its help, its range and
whether a run may be continued with another value.
"""

import argparse
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of its range; the message names the flag."""


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    before: Any = None,
    auto: Any = None,
) -> Any:
    """A dataclass field that is also a flag.

    resumable  a saved run may be continued with another value
    before     what runs did that were saved before there was this setting
    auto       the value that the word "auto" gives: the run chooses, and a continued one keeps what was chosen
    """
    bounds = {"at least": at_least, "at most": at_most, "above": above, "below": below}
    return field(
        default=default,
        metadata={
            "help": help,
            "bounds": {name: value for name, value in bounds.items() if value is not None},
            "resumable": resumable,
            "before": before,
            "auto": auto,
        },
    )


class Settings:
    """Base of every command's settings: checks its ranges, reads a command line, compares itself with a saved one."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            _check(f.name, getattr(self, f.name), hints[f.name], f.metadata["bounds"])

    @classmethod
    def given(cls, argv: Sequence[str] | None, prog: str, description: str) -> dict[str, Any]:
        """What a command line sets, by field name. A wrong flag or value ends the process with one line and status 2."""
        parser = _Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        hints = get_type_hints(cls)
        for f in fields(cls):
            spellings = dict.fromkeys([f"--{f.name}", f"--{f.name.replace('_', '-')}"])
            default = "" if f.default is None else f" (default: {f.default})"
            text = f.metadata["help"].replace("%", "%%") + default
            if hints[f.name] is bool:
                parser.add_argument(*spellings, help=text, action=argparse.BooleanOptionalAction)
            else:
                kind, choices = _kind(hints[f.name])
                parse = _or_auto(kind, f.metadata["auto"])
                parser.add_argument(
                    *spellings, help=text, type=parse, choices=choices, metavar=None if choices else f.name.upper()
                )
        return vars(parser.parse_args(argv))

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Lines that name each setting whose value is not the saved one, resumable ones left out."""
        mine = asdict(self)
        was = {f.name: saved.get(f.name, f.metadata["before"]) for f in fields(self) if not f.metadata["resumable"]}
        autos = {f.name: f.metadata["auto"] for f in fields(self) if f.metadata["auto"] is not None}
        others = [name for name in was if mine[name] not in (was[name], autos.get(name, was[name]))]
        return [f"--{name} is {mine[name]!r} but was {was[name]!r}" for name in others]

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """From plain values (a settings.json, say). Raises ConfigError."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _kind(hint: Any) -> tuple[type, tuple[str, ...] | None]:
    """The type a value is parsed with, and the choices if it is a Literal; None in a union is dropped."""
    if get_origin(hint) is types.UnionType:
        (hint,) = (h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return hint, None


def _or_auto(kind: type, auto: Any) -> Callable[[str], Any]:
    """What parses a value: of that type, or the word auto where it means something."""
    if auto is None:
        return kind

    def parse(text: str) -> Any:
        return auto if text == "auto" else kind(text)

    parse.__name__ = f"{kind.__name__} or auto"  # argparse names it in its message
    return parse


def _check(name: str, value: Any, hint: Any, bounds: dict[str, float]) -> None:
    if value is None and type(None) in get_args(hint):
        return
    kind, choices = _kind(hint)
    if choices is not None and value not in choices:
        raise ConfigError(f"--{name}: {value!r} is not one of {', '.join(choices)}")
    fits = isinstance(value, (int, float) if kind is float else kind)  # a whole number is a number, a bool is neither
    if not fits or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"--{name}: {value!r} is not {TYPE_NAMES[kind]}")
    tests = {
        "at least": lambda bound: value >= bound,
        "at most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if not all(tests[word](bound) for word, bound in bounds.items()):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        raise ConfigError(f"--{name}: {value} is out of range, it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Settings):
    """How weights and alpha move; the defaults are PC-DARTS' ImageNet search, which MAE-NAS uses."""

    epochs: int = setting(50, "passes over the images that train the weights", at_least=1)
    begin: int = setting(35, "epochs before alpha moves; 35 of 50 in proportion if only --epochs is given", at_least=0)
    learning_rate: float = setting(0.5, "of the weights' SGD, for the batch as a whole", above=0)
    learning_rate_min: float = setting(0.0, "where the cosine ends", at_least=0)
    warmup_epochs: int = setting(5, "epochs of linear warm-up; 5 of 50 in proportion if only --epochs is given", at_least=0)
    momentum: float = setting(0.9, "of the weights' SGD", at_least=0, below=1)
    weight_decay: float = setting(3e-4, "of the weights", at_least=0)
    grad_clip: float = setting(5.0, "largest norm of the weights' gradient; 0 = no clipping", at_least=0)
    arch_learning_rate: float = setting(6e-3, "of alpha's Adam (betas 0.5, 0.999)", above=0)
    arch_weight_decay: float = setting(1e-3, "of alpha", at_least=0)
    arch_grad_clip: float = setting(5.0, "largest norm of alpha's gradient; 0 = no clipping", at_least=0)
    unrolled: bool = setting(False, "second order: alpha's gradient after a virtual step of the weights")
    step_order: Literal["alpha-first", "weights-first"] = setting("alpha-first", "which moves first in a step")
    edge_normalization: bool = setting(True, "learn a weight for each edge too (PC-DARTS' beta)")
    eval_every: int = setting(1, "epochs between evaluations (the last epoch is always evaluated)", at_least=1)
    hessian_every: int = setting(
        0, "epochs between estimates of the validation Hessian's largest eigenvalue in alpha; 0 = never", at_least=0
    )
    amp: Literal["off", "bf16", "fp16"] = setting(
        "off", "autocast of forward passes on a GPU; fp16 scales its losses; weights and alpha stay float32", before="off"
    )
    optimizer_backend: Literal["torch", "apex"] = setting(
        "torch", "torch's fused SGD and Adam, or those of NVIDIA's apex where it is installed", resumable=True
    )
    seed: int = setting(0, "of the initial weights, alpha and every random choice", at_least=0, below=2**63)
    # P-DARTS
    progressive: bool = setting(
        False, "search in stages of ever more cells and fewer candidates; --epochs is of all, --begin of each", before=False
    )
    stage_layers: str = setting("0,6,12", "cells that each stage has more than --layers (progressive)", before="0,6,12")
    stage_candidates: str = setting(
        "5,3", "candidates that an edge keeps in the second and each later stage (progressive)", before="5,3"
    )
    skip_dropout: bool = setting(False, "skips of stride 1 drop numbers, each stage less and less (progressive)", before=False)
    stage_dropout: str = setting("0,0.4,0.7", "rate each stage begins with (skip_dropout)", before="0,0.4,0.7")
    skip_limit: int = setting(0, "most skips in the derived normal cell; 0 = any number", at_least=0, before=0)


@dataclass(frozen=True, kw_only=True)
class SearchImagenetSettings(SearchSettings):
    """Flags of `python -m fastdarts.search_imagenet`; the defaults are MAE-NAS on ImageNet."""

    data: str | None = setting(None, "folder with train/CLASS/*.JPEG; without it a generated sample is searched")
    save: str | None = setting(
        None, "run folder, made or continued; without it search-NAME-TIME in the present folder", resumable=True
    )
    dry_run: bool = setting(False, "print plan, images, steps and a memory estimate, then stop", resumable=True)
    objective: Literal["mae", "supervised"] = setting("mae", "masked reconstruction (needs no labels) or classification")
    image_size: int = setting(224, "pixels a side", at_least=1)
    batch_size: int = setting(
        1024,
        "images of a step of the weights, and of one of alpha, over all ranks; auto (or 0) = the most that fit in 80 % of what "
        "is free",
        at_least=0,
        auto=0,
    )
    train_fraction: float = setting(0.1, "share of each class that trains the weights", above=0, below=1)
    val_fraction: float = setting(0.025, "share of each class that trains alpha", above=0, below=1)
    train_list: str | None = setting(None, "text file naming those images instead: train/CLASS/FILE a line")
    val_list: str | None = setting(None, "the same for alpha's images")
    strict: bool = setting(
        False, "stop when a chosen file is bad, instead of leaving it out; a continued run is checked too", resumable=True
    )
    init_channels: int = setting(16, "channels of the first stage's nodes", at_least=2)
    layers: int = setting(8, "cells", at_least=3)
    partial_channels: int = setting(2, "k: C/k channels pass through the candidates; 1 = all", at_least=1)
    channel_sampling: Literal["first", "random"] = setting("first", "which C/k channels, fixed or drawn at each step")
    mask_ratio: float = setting(0.5, "share of the patches that is hidden (mae)", above=0, below=1)
    patch_size: int = setting(8, "pixels a patch's side (mae)", at_least=1)
    mask_token: Literal["zero", "learned"] = setting("zero", "colour of hidden pixels: the mean, or learned (mae)")
    loss: Literal["l1", "l2"] = setting("l1", "on hidden, normalised pixels (mae)")
    backend: str = setting("auto", "of the fused ops, masks and cells: auto, definition or one that fastdarts.info lists")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    cuda_graph: Literal["auto", "on", "off"] = setting(
        "auto", "replay whole steps as CUDA graphs: where it can be done, or else stop, or never", resumable=True
    )
    tf32: bool = setting(False, "let float32 convolutions and matrix products on a GPU round to TF32", before=False)
    deterministic: bool = setting(
        False, "the same bits in each run on a GPU too; slower, says what it switches off", before=False
    )
    threads: int = setting(
        0,
        "of torch on the CPU, of each rank; 0 = by the cores and the ranks of a node (the number is saved)",
        at_least=0,
        resumable=True,
    )
    sync_bn: bool = setting(False, "BatchNorm over the images of all ranks instead of each one's own", before=False)
    dist_backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto", "what carries tensors between ranks: NCCL where each has a GPU, else gloo", resumable=True
    )
    dist_timeout: float = setting(
        600.0, "seconds without an answer after which another rank counts as lost", above=0, resumable=True
    )
    check_ranks_every: int = setting(
        500, "steps between comparisons of weights and alpha over the ranks; 0 = never", at_least=0, resumable=True
    )
    loader: Literal["auto", "torchvision", "dali", "dali-reader"] = setting(
        "auto",
        "what decodes images where there is no cache: DALI on a GPU where it is installed, else torchvision; dali-reader "
        "leaves order and boxes to DALI's own file reader",
        resumable=True,
    )
    cache: Literal["auto", "device", "ram", "off"] = setting(
        "auto", "decode each image once and keep it: on the device where it fits, else in RAM, else not", resumable=True
    )
    cache_folder: str | None = setting(
        None, "keep the cache in a memory-mapped file in this folder instead of RAM, for later runs too", resumable=True
    )
    cache_size: int = setting(
        0, "pixels of a kept image's short side; 0 = image_size * 256 / 224, 256 at least", at_least=0, before=0
    )
    input_timeout: float = setting(300.0, "seconds without a batch after which input counts as stuck", above=0, resumable=True)
    workers: int = setting(-1, "processes that decode images; 0 = none, -1 = by the cores", at_least=-1, resumable=True)
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints inside an epoch; 0 = only at the ends of epochs", at_least=0, resumable=True
    )
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept, beside the best one", at_least=1, resumable=True)
    on_bad: Literal["skip", "stop", "rewind"] = setting(
        "skip",
        "at a loss or gradient that is not finite: skip that update, or also stop, or go back to the last checkpoint and on "
        "with the batches after it",
        resumable=True,
    )
    log_every: int = setting(20, "steps between progress lines", at_least=1, resumable=True)
    tensorboard: bool = setting(False, "write losses, rates and alpha for TensorBoard into the run folder", resumable=True)
    profile: str | None = setting(
        None, "A:B = trace steps A to B, counted from 1, into trace-A-B.json in the run folder", resumable=True
    )


# What `search_imagenet` takes instead of its defaults when it searches the generated sample: a search of two minutes.
# One thread: operations on so few pixels gain nothing from a second one, which only waits where the cores are shared.
SAMPLE_RECIPE = {
    "image_size": 64,
    "batch_size": 32,
    "train_fraction": 0.5,
    "val_fraction": 0.25,
    "epochs": 4,
    "begin": 1,
    "warmup_epochs": 1,
    "learning_rate": 0.1,
    "threads": 1,
}
