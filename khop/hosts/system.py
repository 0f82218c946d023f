"""Systems whose simulator lives outside JAX, in worker processes."""

from __future__ import annotations

import abc
import functools

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from khop.errors import InputError
from khop.hosts.pool import Engine, Pool
from khop.system import Step, System


class HostedSystem(System):
    """A system that is stepped by an engine in worker processes; everything else is as for any system.

    Its spec says ``whole_episodes``: the engine's state cannot be put aside, so experience comes in whole episodes, all
    of them exactly ``spec.horizon`` steps long. A subclass says what the engine is; an episode depends on nothing but
    the actions and the seed that the engine is reset with. What the engine shares beyond ``obs``, ``action`` and
    ``reward`` is the episode's ``info``; classical controllers get the newest of it as their ``state``.
    """

    @property
    @abc.abstractmethod
    def engine(self) -> Engine:
        """What runs in a worker; the same object at every call."""

    def pool(self, size: int) -> Pool:
        """At least so many workers, started at the first call and kept for the next."""
        pool = _pool(self)
        pool.grow(size)
        return pool

    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Float[Array, "n d"]]:
        raise self._outside()

    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        raise self._outside()

    def _outside(self) -> InputError:
        return InputError(
            f"{type(self).__name__} runs in worker processes, which have no state to hand out: play whole episodes "
            "with khop.evaluation.record instead of reset and step."
        )


@functools.lru_cache(maxsize=4)
def _pool(system: HostedSystem) -> Pool:
    return Pool(system.engine, 1)
