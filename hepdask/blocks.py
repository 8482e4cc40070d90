"""Bytes in blocks, compressed where that pays: a histogram is mostly empty, random numbers are not smaller afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cut", "shrink", "unpack"]

_SAMPLES, _SAMPLE_BYTES = 4, 4_096
# reading 10% less is worth less than what decompressing costs
_WORTHWHILE = 0.9


def cut(part: memoryview, block_bytes: int) -> Iterator[memoryview]:
    """Cut bytes into blocks; the last one may be shorter."""
    for start in range(0, len(part), block_bytes):
        yield part[start : start + block_bytes]


def shrink(block: memoryview) -> memoryview:
    """Compress a block by LZ4 if that pays.

    Returns
    -------
    memoryview
        Shorter than the block, or the block itself.
    """
    if not _is_compressible(block):
        return block
    compressed = _compress(block)
    return compressed if len(compressed) < _WORTHWHILE * len(block) else block


def unpack(stored: memoryview, block: memoryview) -> None:
    """Undo `shrink`.

    Parameters
    ----------
    stored : memoryview
        What it returned.
    block : memoryview
        Where the bytes go; as long as they were.

    Raises
    ------
    ValueError
        If they are not so many.
    """
    import cramjam

    if len(stored) == len(block):
        block[:] = stored
        return
    num_bytes = cramjam.lz4.decompress_block_into(stored, block, output_len=len(block))
    if num_bytes != len(block):
        raise ValueError(f"a block has {num_bytes:,} bytes instead of {len(block):,}")


def _is_compressible(block: memoryview) -> bool:
    """Compress a few samples, so that random bytes cost next to nothing."""
    if len(block) <= 2 * _SAMPLES * _SAMPLE_BYTES:
        return True
    step = (len(block) - _SAMPLE_BYTES) // (_SAMPLES - 1)
    starts = range(0, step * _SAMPLES, step)
    sizes = (len(_compress(block[start : start + _SAMPLE_BYTES])) for start in starts)
    return sum(sizes) < _WORTHWHILE * _SAMPLES * _SAMPLE_BYTES


def _compress(block: memoryview) -> memoryview:
    import cramjam

    return memoryview(cramjam.lz4.compress_block(block, store_size=False))
