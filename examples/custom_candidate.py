"""A custom candidate in a custom space.

The same by the command line: `fastdarts search_cifar --modules custom_candidate --space SPACE.json`.
"""

import json
import sys
from pathlib import Path

from torch import nn

import fastdarts
from fastdarts.supernet import register_candidate


class Squeezed(nn.Sequential):
    """(N, C, H, W) -> (N, C, H/stride, W/stride), through a quarter of the channels."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(C, C // 4, 1, bias=False),
            nn.Conv2d(C // 4, C, 3, stride, 1, bias=False),
            nn.BatchNorm2d(C, affine=False),
        )


register_candidate("squeezed_conv", Squeezed)

if __name__ == "__main__":
    save = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-candidate")
    space = save.with_name(f"{save.name}-space.json")
    space.parent.mkdir(parents=True, exist_ok=True)
    space.write_text(json.dumps({"candidates": ["skip_connect", "sep_conv_3x3", "squeezed_conv"]}))
    found = fastdarts.search(command="search_cifar", space=str(space), save=str(save), epochs=2)
    print(found.genotype)
