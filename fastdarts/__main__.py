"""Dispatch `fastdarts NAME ...` and `python -m fastdarts NAME ...` to the command, as `python -m fastdarts.NAME ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "search_imagenet": ("fastdarts.search_imagenet", "search on ImageNet-layout JPEGs, label-free by default"),
    "search_cifar": ("fastdarts.search_cifar", "search on CIFAR-10, CIFAR-100 and other small images"),
    "retrain": ("fastdarts.retrain", "train the network of a found or published cell"),
    "evaluate": ("fastdarts.evaluate", "accuracy of a trained network on test images, also by class"),
    "sweep": ("fastdarts.sweep.__main__", "run a grid of searches into one table and one plot"),
    "report": ("fastdarts.report.__main__", "rebuild a run's report, or draw the cells of a genotype"),
    "count": ("fastdarts.count", "parameters and multiply-adds of a genotype's network, by several tools' rules"),
    "info": ("fastdarts.info", "versions, machine, build status, backend of each op"),
}


def usage() -> str:
    """Return the list of commands, one line each."""
    lines = [f"  {name:16} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: fastdarts NAME ...", "", *lines, "", "`fastdarts NAME --help` lists a command's settings."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument, with dashes or underscores; returns its exit status, 2 for no name."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if (known := name.replace("-", "_")) not in COMMANDS:
        what = f"unknown command {name!r}" if name else "which command?"
        print(f"fastdarts: error: {what}: give one of {', '.join(COMMANDS)} (see --help)", file=sys.stderr)
        return 2
    return import_module(COMMANDS[known][0]).main(rest)


if __name__ == "__main__":
    sys.exit(main())
