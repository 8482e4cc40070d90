from __future__ import annotations

import zlib
from contextlib import ExitStack

import pytest
import uproot
from hypothesis import given
from hypothesis import strategies as st
from uproot import compression

from hepdask.readers import decompression
from hepdask.readers.decompression import fast_decompression

READING = compression._decompress_ZLIB


@given(st.binary(max_size=2_000), st.integers(0, 9))
def test_the_bytes_are_the_same(content: bytes, level: int) -> None:
    packed = zlib.compress(content, level)
    with fast_decompression():
        assert "decompress" in vars(READING)
        assert READING.decompress(packed, len(content)) == content
    assert READING.decompress(packed, len(content)) == content


@pytest.mark.parametrize("size", [0, 5, 20])
def test_cut_bytes_are_an_error(size: int) -> None:
    packed = zlib.compress(bytes(range(200)), 9)
    with fast_decompression(), pytest.raises(Exception, match="Decompression failed"):
        READING.decompress(packed[:size], 200)


def test_everybody_else_keeps_what_they_had() -> None:
    with ExitStack() as first, ExitStack() as second:  # two threads
        first.enter_context(fast_decompression())
        second.enter_context(fast_decompression())
        first.close()
        assert "decompress" in vars(READING)
    assert "decompress" not in vars(READING)
    assert uproot.ZLIB.library == READING.library == "zlib"


def test_what_a_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READING, "library", "isal", raising=False)
    decompression._find_zlib.cache_clear()
    try:
        with fast_decompression():
            assert "decompress" not in vars(READING)
    finally:
        decompression._find_zlib.cache_clear()
