"""A pool of worker processes, each with one engine, that survives crashes and hangs of any of them."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import mmap
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from typing import IO, Any

import numpy as np

from khop.hosts import worker
from khop.hosts.worker import Layout

GOODBYE_S = 2.0  # for a worker to leave by itself once nobody listens to it


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """What runs in each worker.

    Attributes:
        file, name: the Python file and the class in it; see ``khop.hosts.worker`` for what that class has to offer.
        layout: name → shape and dtype of the arrays that worker and pool share; holds obs, action and reward.
        options: keyword arguments of the class, of plain Python and NumPy types.
        timeout_s: a worker that takes longer over a request has hung.
    """

    file: str
    name: str
    layout: Layout
    options: Mapping[str, Any]
    timeout_s: float = 300.0


class Pool:
    """Workers 0, 1, …, all running the same engine.

    ``arrays[k]`` are worker k's shared arrays. Requests go to several workers at once and return when all are done;
    a worker that fails is replaced by a fresh one at once, and the failure is reported in words.
    """

    def __init__(self, engine: Engine, size: int):
        self.engine = engine
        self._workers: list[_Worker] = []
        self.grow(size)
        _OPEN.add(self)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Every worker's shared arrays."""
        return [worker.arrays for worker in self._workers]

    @property
    def process_ids(self) -> list[int]:
        """Of the workers, as the operating system counts them."""
        return [worker.process.pid for worker in self._workers]

    def grow(self, size: int) -> None:
        """Add workers until there are ``size``."""
        self._workers += [_Worker(self.engine) for _ in range(size - len(self._workers))]

    def reset(self, seeds: Mapping[int, int]) -> dict[int, str]:
        """Start episodes in some workers; worker → what went wrong, for those where it did."""
        return self._ask({which: ("reset", seed) for which, seed in seeds.items()})

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, str]:
        """Advance some workers by one control interval; worker → what went wrong, for those where it did."""
        for which, action in actions.items():
            self._workers[which].arrays["action"][...] = action
        return self._ask({which: ("step",) for which in actions})

    def close(self) -> None:
        """End all workers."""
        for one in self._workers:
            one.hang_up()
        deadline = time.monotonic() + GOODBYE_S
        for one in self._workers:
            one.end(max(deadline - time.monotonic(), 0.0))
        self._workers = []

    def __del__(self) -> None:
        self.close()  # a pool that nobody holds any more leaves no process and no open file behind

    def _ask(self, requests: Mapping[int, tuple]) -> dict[int, str]:
        failures = {}
        waiting = {}
        for which, request in requests.items():
            with contextlib.suppress(OSError):  # a dead worker is noticed when it does not answer
                self._workers[which].connection.send(request)
            waiting[self._workers[which].connection] = which
        deadline = time.monotonic() + self.engine.timeout_s
        while waiting:
            answered = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0.0))
            for connection in answered or list(waiting):
                which = waiting.pop(connection)  # type: ignore[call-overload]
                failure = self._workers[which].answer() if answered else self._workers[which].overdue()
                if failure is not None:
                    failures[which] = failure
        for which in failures:
            self._workers[which].end()
            self._workers[which] = _Worker(self.engine)
        return failures


class _Worker:
    """One process, the line to it and the memory shared with it."""

    def __init__(self, engine: Engine):
        self.timeout_s = engine.timeout_s
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by ``end``)
        mine, its = socket.socketpair()
        with its, tempfile.TemporaryFile() as file:  # without a name: nothing can be left behind
            file.truncate(worker.size(engine.layout))
            self.arrays = worker.views(mmap.mmap(file.fileno(), worker.size(engine.layout)), engine.layout)
            self.process = subprocess.Popen(
                [sys.executable, worker.__file__, str(its.fileno()), str(file.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=self.errors,
                pass_fds=(its.fileno(), file.fileno()),
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.connection = Connection(mine.detach())
        self.connection.send((engine.file, engine.name, dict(engine.layout), dict(engine.options)))
        self._ready = False

    def answer(self) -> str | None:
        """What the worker says to the last request: None if all went well."""
        try:
            reply = self.connection.recv()
            if reply is None and not self._ready:  # that was the greeting; the answer is still to come
                self._ready = True
                if not self.connection.poll(self.timeout_s):
                    return self.overdue()
                reply = self.connection.recv()
        except (EOFError, OSError):
            status = self.process.wait()
            reason = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            return f"Its process {reason}.{self._printed()}"
        return None if reply is None else f"{reply.rstrip('.')}.{self._printed()}"

    def overdue(self) -> str:
        """The worker took too long."""
        return f"It gave no answer within {self.timeout_s:g} s.{self._printed()}"

    def hang_up(self) -> None:
        self.connection.close()

    def end(self, patience: float = 0.0) -> None:
        """Wait a little for the process to leave, then make it."""
        self.connection.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def _printed(self) -> str:
        """The first errors that the engine printed."""
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if re.match(r"\s*(Error|Fatal|\w*Error):", line)]
        return "".join(f" {line.rstrip('.')}." for line in dict.fromkeys(lines[:3]))


_OPEN: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def close_all() -> None:
    """End the workers of every pool."""
    for pool in list(_OPEN):
        pool.close()
