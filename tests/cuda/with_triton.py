"""Starts the Triton kernel of a launch on a Memory's tensors; Triton has to be there."""

from torch import Tensor

from fastdarts.kernels import launch, mixed_cell
from fastdarts.kernels.mixed_cell_launches import MOST_INPUTS, Launch
from tests.cuda.launches import Memory


def start_triton(memory: Memory, one: Launch, given: dict[str, Tensor | int]) -> None:
    kernel = mixed_cell.KERNELS[one.kernel]
    settings = launch.settings(f"mixed_cell.{one.kernel}", memory.dtype, launch.target_of(given["p_saved"].device))
    spare = {"p_inverse": given["p_table"]}  # only random channels have them, and `channel_inverse` fills them in
    spare["p_scaled"] = given["p_norms"]
    spare |= {name: tuple(given[f"{name}{i}"] for i in range(MOST_INPUTS)) for name in ("p_inputs", "p_grad_inputs")}
    constants = spare | given | memory.plan.constants
    kernel[(one.programs,)](**{name: constants[name] for name in kernel.arg_names if name in constants}, **settings)
