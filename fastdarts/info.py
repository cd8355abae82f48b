"""`python -m fastdarts.info`: versions, machine, build, and the backend of each op with why no faster one is used.

Works with any dependency missing. `--json` prints JSON. `--require-native` exits with status 1 unless the native module is
loaded. `--kernels` compiles every Triton kernel, without a GPU, and prints registers, shared memory and spilled bytes.
"""

import json
import sys

from fastdarts.logs import any_text
from fastdarts.runs import info
from fastdarts.settings.flags import Parser


@any_text()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 1 if --require-native finds no native module."""
    parser = Parser(prog="python -m fastdarts.info", description=__doc__.partition(":")[2].strip())
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--require-native", action="store_true", help="exit 1 unless the native module is loaded")
    parser.add_argument("--kernels", action="store_true", help="print the resources of each GPU kernel; takes a minute or two")
    args = parser.parse_args(argv)
    if args.kernels:
        return _print_kernels(args.json)
    facts = info.collect()
    print(json.dumps(facts, indent=2) if args.json else info.text(facts))
    if args.require_native and not facts["native"]["loaded"]:
        print(f"fastdarts.info: {facts['native']['reason']}", file=sys.stderr)
        return 1
    return 0


def _print_kernels(as_json: bool) -> int:
    rows, why_not = info.kernels()
    if why_not:
        print(f"fastdarts.info: no kernels: {why_not}", file=sys.stderr)
    else:
        print(json.dumps(rows, indent=2) if as_json else info.table(rows))
    return int(bool(why_not))


if __name__ == "__main__":
    sys.exit(main())
