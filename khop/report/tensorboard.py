"""TensorBoard files of a run, for those who watch training there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from khop.errors import InputError


def require() -> None:
    """Refuse early where the package that writes the files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError("TensorBoard files need tensorboardX: install it with `pip install khop[tensorboard]`.")


class TensorBoard:
    """Writes each seed's metrics into ``tensorboard/seed_…`` of a run's folder."""

    def __init__(self, folder: Path, seeds: Sequence[int]):
        require()
        from tensorboardX import SummaryWriter

        self._writers = [SummaryWriter(str(folder / "tensorboard" / f"seed_{seed}")) for seed in seeds]

    def write(self, env_steps: int, metrics: Mapping[str, Float[np.ndarray, " seeds"]]) -> None:
        """Add one iteration."""
        for name, values in metrics.items():
            for writer, value in zip(self._writers, values, strict=True):
                writer.add_scalar(name, float(value), env_steps)

    def close(self) -> None:
        """Flush everything to disk."""
        for writer in self._writers:
            writer.close()
