"""Philox against Random123's published vectors and an independent implementation in Python integers."""

import random

import pytest
import torch

from fastdarts.ops.philox import Purpose, Stream, philox4x32, random_words, smallest

ONES = 0xFFFFFFFF
# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, words; the third is made of pi's digits
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES, ONES, ONES, ONES], [ONES, ONES], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def integers(counter: list[int], seed: int) -> list[int]:
    """Philox4x32-10 as the paper writes it: L' = mulhi(R, M) ^ k ^ L, R' = mullo(R, M), then the words change places."""
    l0, r0, l1, r1 = counter[1], counter[0], counter[3], counter[2]
    for i in range(10):
        k0 = (seed + i * 0x9E3779B9) % 2**32
        k1 = (seed // 2**32 + i * 0xBB67AE85) % 2**32
        product0, product1 = r0 * 0xD2511F53, r1 * 0xCD9E8D57
        r0, l0, r1, l1 = (
            product1 // 2**32 ^ l0 ^ k0,
            product1 % 2**32,
            product0 // 2**32 ^ l1 ^ k1,
            product0 % 2**32,
        )
    return [r0, l0, r1, l1]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, words):
    seed = key[0] + (key[1] << 32)
    assert philox4x32(torch.tensor(counter), seed).tolist() == words
    assert integers(counter, seed) == words


def test_matches_python_integers():
    draw = random.Random(0)
    for _ in range(50):
        seed = draw.getrandbits(64)
        counters = [[draw.getrandbits(32) for _ in range(4)] for _ in range(20)]
        assert philox4x32(torch.tensor(counters), seed).tolist() == [integers(c, seed) for c in counters]


def test_counter_layout():
    words = random_words(2**64 - 3, Stream.EVAL, 11, torch.tensor([5, 2**32 - 1]), Purpose.MASK, 6)
    for row, index in zip(words.tolist(), (5, 2**32 - 1), strict=True):
        blocks = [integers([block, index, 11, 4 + 256 * 2], 2**64 - 3) for block in range(2)]
        assert row == (blocks[0] + blocks[1])[:6]


def test_time_may_be_tensor():
    index = torch.arange(4)
    expected = random_words(1, 0, 9, index, Purpose.MASK, 5)
    for time in (torch.tensor(9), torch.tensor([9])):
        assert torch.equal(random_words(1, 0, time, index, Purpose.MASK, 5), expected)


def test_words_depend_on_every_coordinate():
    base = {"seed": 1, "stream": Stream.TRAIN, "time": 2, "index": torch.arange(3), "purpose": Purpose.CROP, "n": 8}
    changes = [{}, {"seed": 2}, {"seed": 1 + 2**32}, {"stream": Stream.VAL}, {"time": 3}, {"purpose": Purpose.FLIP}]
    draws = [random_words(**base | change) for change in changes]
    draws += [random_words(**base | {"index": torch.arange(3, 6)})]
    words = torch.cat([d.flatten() for d in draws])
    assert words.unique().numel() == words.numel()  # 168 words of 32 bits: a coincidence has a chance of 3e-6


def test_words_do_not_depend_on_batch_or_count():
    index = torch.tensor([7, 3, 100, 3])
    whole = random_words(5, 1, 4, index, Purpose.MASK, 13)
    assert torch.equal(whole[1], whole[3])
    for i, key in enumerate(index):
        assert torch.equal(random_words(5, 1, 4, key[None], Purpose.MASK, 6)[0], whole[i, :6])


def test_smallest_breaks_ties_by_column():
    words = torch.tensor([[5, 1, 5, 0, 5], [2, 2, 2, 2, 2]])
    assert smallest(words, 3).tolist() == [[True, True, False, True, False], [True, True, True, False, False]]
    assert not smallest(words, 0).any()
    assert smallest(words, 5).all()
