"""What a worker process runs: one engine, stepped on request.

A fresh interpreter executes this file, and the engine's, by path. Neither imports khop: a worker then needs neither
JAX nor its memory, starts in a fraction of the time, and never runs the user's main script again.

An engine is a class with

    __init__(arrays, **options)    arrays: NumPy views of the memory it shares with the pool
    reset(seed)                    start an episode; fill ``obs``
    step()                         read ``action``; fill ``obs``, ``reward`` and everything else in ``arrays``

Whatever it raises reaches the pool as text.
"""

from __future__ import annotations

import mmap
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection

import numpy as np

Layout = Mapping[str, tuple[tuple[int, ...], str]]  # name → shape and dtype of each shared array


def views(memory: mmap.mmap, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays of a layout, one after the other in a block of memory."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in layout.items():
        array: np.ndarray = np.ndarray(shape, dtype, buffer=memory, offset=offset)
        arrays[name] = array
        offset += _padded(array.nbytes)
    return arrays


def size(layout: Layout) -> int:
    """Bytes that ``views`` of a layout needs."""
    each = (_padded(int(np.prod(shape)) * np.dtype(dtype).itemsize) for shape, dtype in layout.values())
    return max(sum(each), 1)


def _padded(count: int) -> int:
    return -(-count // 64) * 64


def main() -> None:
    """Serve the pool until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's business
    connection = Connection(int(sys.argv[1]))
    file, name, layout, options = connection.recv()
    try:
        arrays = views(mmap.mmap(int(sys.argv[2]), size(layout)), layout)
        engine = runpy.run_path(file)[name](arrays, **options)
        connection.send(None)
        while True:
            request, *arguments = connection.recv()
            getattr(engine, request)(*arguments)
            connection.send(None)
    except (EOFError, BrokenPipeError):  # the pool is gone, or wants us gone
        return
    except Exception as error:
        connection.send(str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
