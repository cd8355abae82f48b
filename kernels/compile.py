"""Compile the Triton kernels ahead of time and report their resources. Needs neither a GPU nor a driver.

Every module of the package with kernels has `specimens(dtype)`: its kernels as production launches them. The compiler finds
type errors that the interpreter misses, and reports the cost of a launch: registers, shared memory, spilled bytes.
"""

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastdarts import kernels
from fastdarts.kernels import launch

ARCHITECTURES = (80, 90)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.bool: "i1",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def pointer(dtype: torch.dtype) -> str:
    """Return Triton's type of a pointer to this dtype."""
    return f"*{TYPES[dtype]}"


@dataclass(frozen=True)
class Specimen:
    """One kernel as in one production launch.

    kernel      the function under @triton.jit
    signature   of each argument that is not constexpr: Triton's type, `pointer(dtype)`, "i32", "i64" or "fp32"; of a tuple
                of pointers: a tuple of types
    constexprs  the values of those constexprs that do not come from the launch settings, or a function from the target
                ("sm_90") to them
    settings    the name of its row in launch.json
    dtype       of the op's tensors in memory
    label       the shape, which distinguishes specimens of the same kernel
    unaligned   integers whose value need not be a multiple of 16; other integers and all pointers are multiples
    """

    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constexprs: Mapping[str, Any] | Callable[[str], Mapping[str, Any]]
    settings: str
    dtype: torch.dtype
    label: str = ""
    unaligned: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass(frozen=True)
class Usage:
    """Resources of one launch of a compiled kernel.

    registers     of each thread
    shared_bytes  of each block
    spill_bytes   of each thread, in local memory
    """

    kernel: str
    label: str
    backend: str
    arch: str
    dtype: str
    registers: int
    shared_bytes: int
    spill_bytes: int


def _compiled(specimen: Specimen, arch: int) -> Any:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = f"sm_{arch}"
    constants = specimen.constexprs
    own = constants if isinstance(constants, Mapping) else constants(target)
    settings = launch.widened(launch.settings(specimen.settings, specimen.dtype, target), own.get("BC"))
    options = {name: value for name, value in settings.items() if name in launch.OPTIONS}
    constexprs = {name: value for name, value in settings.items() if name not in launch.OPTIONS} | dict(own)
    names = specimen.kernel.arg_names
    if missing := [name for name in names if name not in specimen.signature and name not in constexprs]:
        raise ValueError(f"{specimen.name} ({specimen.label}): no type and no value for {', '.join(missing)}")
    signature = {name: "constexpr" if name in constexprs else specimen.signature[name] for name in names}
    aligned = [
        place for name in names if name not in specimen.unaligned for place in _aligned(names.index(name), signature[name])
    ]
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(specimen.kernel, signature, {n: v for n, v in constexprs.items() if n in names}, attributes)
    return compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _aligned(i: int, kind: str | tuple[str, ...]) -> list[tuple[int, ...]]:
    """Return the positions of the pointers and integers in argument i that are multiples of 16."""
    if isinstance(kind, tuple):
        return [(i, j) for j, each in enumerate(kind) if each[0] == "*"]
    return [(i,)] if kind[0] == "*" or kind in ("i32", "i64") else []


def resources(cubin: bytes) -> dict[str, int]:
    """Parse cuobjdump's report on the cubin's only function: REG, STACK, SHARED, LOCAL, ..."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", report)}


def compile_specimen(specimen: Specimen, arch: int) -> Usage:
    """Compile for compute capability arch/10 (80 or 90, say) with the launch settings of that architecture.

    Raises Triton's exceptions if the kernel does not compile, ValueError for an argument without type and value.
    """
    compiled = _compiled(specimen, arch)
    used = resources(compiled.asm["cubin"])
    return Usage(
        kernel=specimen.name,
        label=specimen.label,
        backend="triton",
        arch=f"sm_{arch}",
        dtype=str(specimen.dtype).removeprefix("torch."),
        registers=used["REG"],
        shared_bytes=compiled.metadata.shared,
        spill_bytes=used["STACK"] + used["LOCAL"],
    )


def modules() -> Iterator[Any]:
    """Yield the modules of this package that have kernels and `specimens(dtype)`."""
    from triton import JITFunction

    for found in sorted(pkgutil.iter_modules(kernels.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{kernels.__name__}.{found.name}")
        if hasattr(module, "specimens") and any(isinstance(value, JITFunction) for value in vars(module).values()):
            yield module


def all_specimens() -> list[Specimen]:
    """Return every kernel at every dtype; once if its tensors have the same dtype in any network."""
    found: list[Specimen] = []
    for module in modules():
        for dtype in DTYPES:
            found += [specimen for specimen in module.specimens(dtype) if specimen not in found]
    return found


def report() -> list[dict[str, Any]]:
    """Return one row for each specimen and architecture: the fields of Usage."""
    return [asdict(compile_specimen(specimen, arch)) for specimen in all_specimens() for arch in ARCHITECTURES]
