"""Compile the kernels of recorded launches for the GPU and report on their machine code."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.sass.control_flow import Flow, by_kind
from bench.sass.machine_code import disassemble
from bench.sass.model import Prediction, Resources, cycles, predict
from bench.sass.programs import Passes, passes
from bench.sass.started import ARCH, Kernel, Started
from fastdarts.kernels.compile import resources

NARROW = ("LDG 8", "LDG 16", "LDG 32")


@dataclass(frozen=True)
class Compiled:
    """A kernel's machine code."""

    flow: Flow
    used: Resources

    @cached_property
    def cycles(self) -> list[float]:
        return cycles(self.flow)

    def faults(self) -> dict[str, float]:
        """Return what makes a kernel slow, each a number that no change should raise.

        narrow_loads      from global memory in loops, of less than 64 bits a thread
        barriers          in loops
        issues_a_fma      instructions a multiply-add in the loop with the most multiply-adds
        spill_bytes       of a thread
        """
        loops = [block for block, loop in zip(self.flow.blocks, self.flow.innermost, strict=True) if loop]
        kinds = [by_kind(block) for block in loops]
        inner = max(kinds, key=lambda kind: kind["FFMA"], default=None)
        fma = inner["FFMA"] if inner else 0
        return {
            "narrow_loads": sum(kind[name] for kind in kinds for name in NARROW),
            "barriers": sum(kind["BAR"] for kind in kinds),
            "issues_a_fma": round(sum(inner.values()) / fma, 2) if inner and fma else 0.0,
            "spill_bytes": self.used.spill_bytes,
        }


def compiled(kernel: Kernel) -> Compiled:
    """Compile a kernel, or take it from Triton's cache. Raises Triton's exceptions."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {path: [["tt.divisibility", 16]] for path in kernel.aligned}
    source = ASTSource(kernel.jit, dict(kernel.signature), dict(kernel.constexprs), attributes)
    done = compile(source, target=GPUTarget("cuda", ARCH, 32), options=dict(kernel.options))
    cubin, metadata = done.asm["cubin"], done.metadata
    used = resources(cubin)
    return Compiled(
        Flow(disassemble(cubin, done.asm["ptx"])),
        Resources(used["REG"], metadata.num_warps, metadata.shared, used["STACK"] + used["LOCAL"]),
    )


class Predictor:
    """Predicts launches; kernels and launches that occur again are computed once."""

    def __init__(self) -> None:
        self.kernels: dict[Kernel, Compiled | Exception] = {}
        self._passes: dict[tuple, Sequence[tuple[int, Passes]]] = {}
        self._known: dict[tuple, Prediction] = {}

    def kernel(self, kernel: Kernel) -> Compiled | Exception:
        """Return a kernel's machine code, or why it does not compile."""
        from triton.errors import TritonError

        if kernel not in self.kernels:
            try:
                self.kernels[kernel] = compiled(kernel)
            except (TritonError, RuntimeError) as error:  # the compiler's own, and those of its passes
                self.kernels[kernel] = error
        return self.kernels[kernel]

    def predict(self, one: Started) -> Prediction | None:
        """Return a launch's prediction; None if its kernel does not compile."""
        code = self.kernel(one.kernel)
        if isinstance(code, Exception):
            return None
        key = one.kernel, one.grid, tuple(one.values.items()), one.table, one.bytes
        if key not in self._known:
            self._known[key] = predict(code.flow, code.cycles, code.used, passes(one), one.bytes)
        return self._known[key]
