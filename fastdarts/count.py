"""`python -m fastdarts.count`: parameters and multiply-adds of a genotype's network, by the rules of several tools."""

import json
import sys

from fastdarts.logs import any_text
from fastdarts.networks import NETWORKS, STANDARD, architecture_of, count, standard_shape, widest
from fastdarts.networks.counters import multiply_adds, table
from fastdarts.settings.flags import Parser

SIZES = ("init_channels", "layers", "num_classes", "image_size")


@any_text()
def main(argv: list[str] | None = None) -> int:
    """Run the command (None: with the process' arguments); return its status: 2 for wrong input, one line on stderr."""
    parser = Parser(prog="python -m fastdarts.count", description=__doc__.partition(": ")[2])
    parser.add_argument("genotype", metavar="GENOTYPE|FILE|RUN|NAME", help="text, file, run folder or published name")
    parser.add_argument("--network", choices=NETWORKS, help="default: cifar, for a cell of NAS-Bench-201 nasbench201")
    for name in SIZES:
        defaults = ", ".join(f"{getattr(shape, name)} {kind}" for kind, shape in STANDARD.items())
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"default: {defaults}")
    parser.add_argument("--fit_macs", type=multiply_adds, metavar="600M", help="take the most even init_channels within it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    if given.fit_macs and given.init_channels:
        parser.error("--fit_macs chooses --init_channels: give one of them")
    try:
        cells = architecture_of(given.genotype)
        shape = standard_shape(cells, given.network, **{name: getattr(given, name) for name in SIZES})
        counts = count(cells, shape := widest(cells, shape, given.fit_macs) if given.fit_macs else shape)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    facts = {"network": shape.kind} | {name: getattr(shape, name) for name in SIZES} | counts
    print(json.dumps(facts, indent=2) if given.json else f"{shape}\n{table(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
