"""A grid and its profiles in one array file, whose content is checked by its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from khop.cache import cache_folder
from khop.systems.distribution_grid.grid import Grid
from khop.systems.distribution_grid.profiles import Profiles

HASH = "sha256"
Data = tuple[Grid, Profiles]


def stored(name: str, build: Callable[[], Data]) -> Data:
    """What ``build`` makes, built once and read from its file ever after; a damaged file is built anew."""
    file = cache_folder("grids") / f"{name}.npz"
    found = _read(file)
    if found is None:
        found = build()
        _write(file, found)
    return found


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def arrays_of(data: Data) -> dict[str, np.ndarray]:
    """Every array of a grid and its profiles, by name."""
    grid, profiles = data
    return {
        f"{part}.{field.name}": np.asarray(getattr(value, field.name))
        for part, value in (("grid", grid), ("profiles", profiles))
        for field in dataclasses.fields(value)
    }


def _write(file: Path, data: Data) -> None:
    """All at once or not at all, whoever else writes."""
    arrays = arrays_of(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as part:
        try:
            np.savez_compressed(part, **arrays, **{HASH: np.array(content_hash(arrays))})  # type: ignore[arg-type]
        except BaseException:
            os.unlink(part.name)
            raise
    os.chmod(part.name, 0o644)
    os.replace(part.name, file)


def _read(file: Path) -> Data | None:
    """The content of a file, None if there is none or it is not what was written."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as content:
            arrays = dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if str(arrays.pop(HASH, "")) != content_hash(arrays):
        return None

    def part(name: str) -> dict:
        own = {key.removeprefix(name): value for key, value in arrays.items() if key.startswith(name)}
        return {key: value if value.ndim else value.item() for key, value in own.items()}

    try:
        return Grid(**part("grid.")), Profiles(**part("profiles."))
    except TypeError:  # written by another version
        return None
