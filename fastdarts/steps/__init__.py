"""Memory and time of training steps, and their replay as CUDA graphs."""

from fastdarts.steps.cuda_graph import CapturedSteps, CaptureError, no_gpu
from fastdarts.steps.memory import (
    STEP,
    NoMemory,
    allocate_state,
    free_bytes,
    largest_batch,
    memory_errors_explained,
    meta_batch,
    step_bytes,
)

__all__ = [
    "STEP",
    "CaptureError",
    "CapturedSteps",
    "NoMemory",
    "allocate_state",
    "free_bytes",
    "largest_batch",
    "memory_errors_explained",
    "meta_batch",
    "no_gpu",
    "step_bytes",
]
