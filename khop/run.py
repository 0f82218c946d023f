"""A run's folder: configuration, metrics, evaluations, checkpoints.

config.json       the run fully resolved, and the versions it was made with
metrics.csv       one row per iteration and seed
evaluation.csv    one row per evaluation point, seed, controller and metric
checkpoints/      the newest few states, each written whole or not at all
figures/
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx

from khop.errors import InputError

KEPT_CHECKPOINTS = 3
METRICS, EVALUATION = "metrics.csv", "evaluation.csv"
State = TypeVar("State")


class RunFolder:
    """Reads and writes one run's folder; knows nothing of what the numbers mean."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, config: dict[str, Any]) -> RunFolder:
        """A new run's folder."""
        cls.refuse_occupied(path)
        folder = cls(path)
        folder.checkpoints.mkdir(parents=True)
        folder.figures.mkdir()
        _write_whole(folder.config_file, json.dumps(config, indent=2).encode() + b"\n")
        return folder

    @classmethod
    def refuse_occupied(cls, path: str | Path) -> None:
        """An existing run, or any other non-empty folder, is never written over."""
        folder = cls(path)
        if folder.config_file.exists():
            raise InputError(
                f"{path} already holds a run: continue it with `khop resume {path}`, or choose another --out."
            )
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise InputError(f"{path} exists and is not an empty folder: choose another --out.")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run's folder."""
        folder = cls(path)
        if not folder.config_file.is_file():
            raise InputError(f"{path} holds no run: a run's folder has a config.json, as `khop train` writes it.")
        return folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else trains in this folder meanwhile; a process that dies lets go of it. Windows has no such lock."""
        if sys.platform == "win32":
            yield
            return
        import fcntl

        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path} is being trained by another process: wait for its end.") from None
            yield
        finally:
            os.close(folder)

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def config(self) -> dict[str, Any]:
        """What ``create`` was given."""
        try:
            return json.loads(self.config_file.read_text())
        except ValueError as error:
            raise InputError(f"{self.config_file} is no valid JSON ({error}): restore it from a copy.") from error

    def update_config(self, **changes: Any) -> None:
        """Change entries of the configuration."""
        _write_whole(self.config_file, json.dumps(self.config() | changes, indent=2).encode() + b"\n")

    # Tables -----------------------------------------------------------------------------------------------------------

    def append(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a table, which starts with their names as its header."""
        file = self.path / table
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        if not file.exists() or file.stat().st_size == 0:
            writer.writeheader()
        writer.writerows(rows)
        with file.open("a") as stream:
            stream.write(text.getvalue())

    def read(self, table: str) -> list[dict[str, str]]:
        """The rows of a table, without a last line that was cut off while it was written."""
        file = self.path / table
        if not file.exists():
            return []
        with file.open(newline="") as stream:
            text = stream.read()
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole)))

    def forget_after(self, env_steps: int) -> None:
        """Drop table rows later than a checkpoint, so that resuming from it writes them again, once."""
        for table in (METRICS, EVALUATION):
            rows = self.read(table)
            if not rows:
                continue
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["env_steps"]) <= env_steps)
            _write_whole(self.path / table, text.getvalue().encode())

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self, state: Any, env_steps: int, origin: dict[str, Any]) -> Path:
        """Write a checkpoint whole or not at all, and drop all but the newest few."""
        payload = io.BytesIO()
        eqx.tree_serialise_leaves(payload, state)
        body = payload.getvalue()
        header = {"env_steps": env_steps, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), **origin}
        file = self.checkpoints / f"step_{env_steps:012d}.eqx"
        _write_whole(file, json.dumps(header).encode() + b"\n" + body)
        for old in self.saved()[:-KEPT_CHECKPOINTS]:
            old.unlink()
        return file

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("step_*.eqx"))

    def newest(self, origin: dict[str, Any]) -> Path:
        """The newest checkpoint, verified to be whole and of this run's origin."""
        saved = self.saved()
        if not saved:
            raise InputError(f"{self.checkpoints} holds no checkpoint: train again into another folder.")
        header, _ = _checkpoint(saved[-1], alternatives=saved[:-1])
        for name, expected in origin.items():
            if header.get(name) != expected:
                raise InputError(
                    f"{saved[-1]} belongs to {name} {header.get(name)!r}, this run to {expected!r}: "
                    "put the run's own checkpoint back."
                )
        return saved[-1]

    def load(self, file: Path, like: State) -> tuple[State, int]:
        """The state in a checkpoint, shaped as ``like``, and its environment steps."""
        header, body = _checkpoint(file, alternatives=[])
        try:
            return eqx.tree_deserialise_leaves(io.BytesIO(body), like), header["env_steps"]
        except (RuntimeError, ValueError, EOFError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{file} does not fit this run's configuration: {reason}.") from error


def _checkpoint(file: Path, alternatives: Iterable[Path]) -> tuple[dict[str, Any], bytes]:
    """Header and verified body of a checkpoint file."""
    content = file.read_bytes()
    first, _, body = content.partition(b"\n")
    try:
        header = json.loads(first)
        whole = header["bytes"] == len(body) and header["sha256"] == hashlib.sha256(body).hexdigest()
    except (ValueError, KeyError, TypeError):
        header, whole = {}, False
    if not whole:
        older = [path.name for path in alternatives]
        remedy = f"delete it to continue from {older[-1]}" if older else "restore it from a copy or train again"
        raise InputError(f"The checkpoint {file} is truncated or damaged: {remedy}.")
    return header, body


def _write_whole(file: Path, content: bytes) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old content or the new."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
