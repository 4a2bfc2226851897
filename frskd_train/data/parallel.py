"""Work on many rows of a dataset in threads: Pillow and hashing release the interpreter's lock."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
CHUNK = 1024  # items in flight, which bounds the memory that results take
BLOCK = 32  # items that a thread takes at a time


def in_blocks(work: Callable[[list[int]], Sequence[T]], items: list[int], title: str, progress: bool) -> Iterator[T]:
    """Run `work` on blocks of items in threads; yield a result per item in order, with a progress bar if slow."""
    bar = tqdm(total=len(items), desc=title, unit=" images", delay=3, disable=not progress)
    with bar, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(items), CHUNK):
            chunk = items[first : first + CHUNK]
            for results in pool.map(work, [chunk[start : start + BLOCK] for start in range(0, len(chunk), BLOCK)]):
                yield from results
            bar.update(len(chunk))
