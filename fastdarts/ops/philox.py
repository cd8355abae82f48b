"""Counter-based random words: every random choice of a search is a pure function of its purpose, index and time.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Key = the 64-bit seed;
counter = (word // 4, index, time, purpose + 256 * stream). So an image's crop or mask is independent of its
batch, of the loader, of the rank, and of earlier draws.

Notation: N keys (image indices, for example), n words for each of them.
"""

from enum import IntEnum

import torch
from torch import Tensor

from fastdarts.kernels.rows import PURPOSE_MASK

M0, M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, sqrt(3) - 1)
WORD = 0xFFFFFFFF
ROUNDS = 10


class Stream(IntEnum):
    """The consumer of the random words."""

    TRAIN = 0  # images for updates of the weights
    VAL = 1  # images for updates of alpha
    EVAL = 2  # the evaluation pass: the same masks each time


class Purpose(IntEnum):
    """The purpose of the words; `time` is the epoch for data and the step for choices made at each step."""

    SUBSET = 0  # which images of a class belong to which split; time 0
    ORDER = 1  # order of an epoch; time = epoch
    CROP = 2  # crop box; time = epoch
    FLIP = 3  # mirror; time = epoch
    MASK = PURPOSE_MASK  # masked patches; time = step
    CHANNELS = 5  # partial channels of an edge; time = step, index = edge
    JIGSAW = 6  # permutation of an image's tiles; time = step
    CUTOUT = 7  # centre of the hidden square; time = step
    JITTER = 8  # colours; time = step
    SMOOTHING = 9  # perturbation of an edge's mixing weights; time = step, index = edge


def philox4x32(counter: Tensor, seed: int) -> Tensor:
    """Run ten rounds of Philox4x32 on int64 tensors that hold 32-bit words.

    counter: int64 (..., 4), each value in [0, 2**32). seed: 0 <= seed < 2**64. Returns int64 (..., 4), each in [0, 2**32).
    """
    k0, k1 = seed & WORD, seed >> 32
    c0, c1, c2, c3 = counter.unbind(-1)
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2**64, so both halves are right; the mask makes the shift logical
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + W0) & WORD, (k1 + W1) & WORD
    return torch.stack((c0, c1, c2, c3), -1)


def random_words(seed: int, stream: int, time: int | Tensor, index: Tensor, purpose: int, n: int) -> Tensor:
    """Return n random 32-bit words for each index.

    seed     0 <= seed < 2**64
    stream   a Stream, 0..255
    time     step or epoch, an int or an int64 tensor of one element on index' device (no host synchronisation)
    index    int64 (N,), each in [0, 2**32)
    purpose  a Purpose, 0..255
    Returns int64 (N, n), uniform in [0, 2**32); not differentiable.
    """
    blocks = -(-n // 4)
    counter = index.new_empty(index.shape[0], blocks, 4)
    counter[..., 0] = torch.arange(blocks, device=index.device)
    counter[..., 1] = index[:, None]
    counter[..., 2] = time
    counter[..., 3] = purpose + 256 * stream
    return philox4x32(counter, seed).flatten(1)[:, :n]


def smallest(words: Tensor, n: int) -> Tensor:
    """Mark the n of the P columns with the smallest words, ties to the lower column: bool (N, P) with n True in each row."""
    order = words.sort(dim=1, stable=True).indices
    chosen = torch.zeros_like(words, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :n], True)
