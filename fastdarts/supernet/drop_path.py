"""Drop path on the mixed edges of a search network (R-DARTS, Zela et al., ICLR 2020).

Notation: N images, E edges of a cell.
"""

import torch
from torch import Tensor

from fastdarts.supernet.eager_candidates import RandomModule


class EdgeDropPath(RandomModule):
    """In training, drop each edge of a cell for each image with probability `rate`; the others are divided by 1 - rate.

    `rate` is a buffer, so that captured graphs see its changes.
    """

    rate: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, edges: Tensor | None, E: int) -> Tensor | None:
        """Return the edges' weights for each image of x (N, C, H, W): (E, N), from (E,) without a gradient or None (all 1)."""
        if not self.training:
            return edges
        factors = (self.draw(torch.rand, x.new_empty(E, x.shape[0])) >= self.rate).to(x.dtype) / (1 - self.rate)
        return factors if edges is None else factors * edges[:, None]
