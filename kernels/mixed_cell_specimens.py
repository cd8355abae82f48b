"""Specimens of mixed_cell's kernels for compile.py: argument types, constants and widths as production launches have them."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch

from fastdarts.kernels.compile import Specimen, pointer
from fastdarts.kernels.mixed_cell_launches import MOST_INPUTS, padded

# each value of these gives another kernel; of other flags only the costlier value is compiled, with two exceptions:
# `bn_scale_shift` has two sources of statistics, and steps of the weights on unweighted edges (plain DARTS) and what discrete
# cells have (all channels) are compiled too
FLAGS = ("CHOSEN", "SECOND", "DENSE")
PLAIN = {"WEIGHTED": 0, "NEED_OPS": False}
DISCRETE = {"WEIGHTED": 2, "PER_IMAGE": True, "NEED_OPS": False, "AFFINE": True, "NEED_AFFINE": True}
DISCRETE |= {"PLAIN_MAX": True, "LARGEST": 7}
ALWAYS = {"BATCH": True, "WEIGHTED": 1, "SUMMED": True, "NEED_OPS": True, "NODES": 4, "NORMS": 84, "COLUMNS": 16}
ALWAYS |= {"PER_IMAGE": False, "AFFINE": False, "NEED_AFFINE": False, "PLAIN_MAX": False, "LARGEST": 5}
USES = {"": {}, " plain": PLAIN, " discrete": DISCRETE}
Width = tuple[int, int, bool]  # Cq, the divisor of partial channels, whether channels are drawn at random
# the narrowest and the widest of the usual networks; ALL_WIDTHS adds those in between
WIDTHS: tuple[Width, ...] = ((4, 4, True), (64, 1, False))
ALL_WIDTHS: tuple[Width, ...] = (*WIDTHS, (8, 2, False), (16, 1, False), (16, 4, True), (32, 1, False))
INTEGER64, FLOAT32, FLOAT64, INTEGER32 = (
    frozenset(names.split())
    for names in (
        "p_table p_channels",
        "p_norms p_scaled p_statistics p_coefficients p_sums p_middles p_parts",
        "p_result p_mean p_var",
        "p_inverse",
    )
)


def _type(name: str, dtype: torch.dtype) -> str | tuple[str, ...]:
    """Return Triton's type of an argument."""
    if name in ("p_inputs", "p_grad_inputs"):
        return (pointer(dtype),) * MOST_INPUTS
    if name == "eps":
        return "fp32"
    if not name.startswith("p_"):
        return "i32"
    for names, kind in ((INTEGER64, torch.int64), (FLOAT32, torch.float32), (FLOAT64, torch.float64), (INTEGER32, torch.int32)):
        if name in names:
            return pointer(kind)
    return pointer(dtype)


def specimens(kernels: Mapping[str, Any], dtype: torch.dtype, widths: tuple[Width, ...]) -> list[Specimen]:
    """Return each kernel, by its name in launch.json, at each width and with each of its flags."""
    found = []
    for name, kernel in kernels.items():
        arguments = kernel.arg_names
        constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        signature = {a: _type(a, dtype) for a in arguments if a not in constexprs}
        integers = frozenset(a for a, kind in signature.items() if kind == "i32")
        seen = set()
        batches = (True, False) if name == "bn_scale_shift" else (True,)
        flags_of = widths, (False, True), (False, True), batches, ("", " plain", " discrete")
        for (Cq, k, chosen), second, dense, batch, use in product(*flags_of):
            if use == " discrete" and k > 1:
                continue
            sizes = {"C": Cq * k, "CQ": Cq, "BC": padded(Cq), "BALL": padded(Cq * k)}
            values = ALWAYS | sizes | {"TILES": k, "CHOSEN": chosen, "SECOND": second, "DENSE": dense, "BATCH": batch}
            values |= USES[use]
            constants = {a: values[a] for a in arguments if a in values}
            if tuple(constants.items()) in seen:
                continue
            seen.add(tuple(constants.items()))
            flags = "".join(f" {flag.lower()}" for flag in FLAGS if constants.get(flag)) + ("" if batch else " given")
            label = (f"Cq={Cq} k={k}" if "CQ" in constants else "any") + flags + use
            found.append(Specimen(kernel, signature, constants, f"mixed_cell.{name}", dtype, label, integers))
    return found
