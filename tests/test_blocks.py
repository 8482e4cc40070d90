from __future__ import annotations

import numpy as np
import pytest

from hepdask.blocks import cut, shrink, unpack

RANDOM = np.random.default_rng(0).bytes(100_000)


@pytest.mark.parametrize("content", [b"", b"a", bytes(100_000), RANDOM, RANDOM[:50_000] * 2])
def test_what_was_shrunk_comes_back(content: bytes) -> None:
    block = memoryview(content)
    stored = shrink(block)
    assert len(stored) <= len(block)
    again = memoryview(bytearray(len(content)))
    unpack(stored, again)
    assert bytes(again) == content


def test_only_what_pays_is_compressed() -> None:
    assert shrink(memoryview(RANDOM)).obj is RANDOM
    assert len(shrink(memoryview(bytes(100_000)))) < 1_000


def test_blocks_are_cut_without_a_gap() -> None:
    blocks = list(cut(memoryview(RANDOM), 30_000))
    assert [len(one) for one in blocks] == [30_000, 30_000, 30_000, 10_000]
    assert b"".join(blocks) == RANDOM


def test_a_block_of_another_size_is_noticed() -> None:
    stored = shrink(memoryview(bytes(50_000)))
    with pytest.raises((ValueError, RuntimeError), match=r"bytes|size|buffer|Decompress"):
        unpack(stored, memoryview(bytearray(60_000)))
