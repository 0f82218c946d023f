"""Where SUMO is, and running the programs that come with it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from khop.cache import cache_folder
from khop.errors import InputError

HOW_TO_INSTALL = "install it with pip install 'khop[traffic]'"


def module(name: str) -> Any:
    """One of SUMO's Python packages, or one sentence on how to get it."""
    missing = [package for package in ("libsumo", "sumolib", "sumo") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"Traffic systems need SUMO, of which {missing[0]} is missing: {HOW_TO_INSTALL}.")
    return importlib.import_module(name)


def run(program: str, *arguments: str | Path, script: bool = False) -> str:
    """Run one of SUMO's programs, or one of its Python tools, and return what it printed.

    Raises:
        InputError: in the words of SUMO's own first error, if it fails.
    """
    home = Path(module("sumo").SUMO_HOME)
    command = [sys.executable, str(home / "tools" / program)] if script else [str(home / "bin" / program)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"SUMO_HOME": str(home)},
        check=False,
    )
    if done.returncode:
        raise InputError(
            f"SUMO's program {program} failed: {complaint(done.stderr) or f'exit status {done.returncode}'}"
        )
    return done.stdout


def complaint(text: str) -> str:
    """SUMO's errors in one sentence, without what it says after them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("Error:").strip() for line in lines if line.startswith("Error:")] or lines[-1:]
    sentence = re.sub(r"\s+", " ", " ".join(errors[:2])).strip()
    return sentence if not sentence or sentence.endswith(".") else sentence + "."


def generated(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """A folder of generated files, built once and kept in the user's cache.

    Args:
        name: what the folder is called, before a digest of the recipe.
        recipe: everything the result depends on; another recipe is another folder.
        build: writes the files into the folder it is given.
    """
    digest = hashlib.sha256(f"{recipe} sumo {importlib.metadata.version('libsumo')}".encode()).hexdigest()[:12]
    cache = cache_folder("traffic")
    folder = cache / f"{name}-{digest}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            part = Path(scratch) / "part"
            part.mkdir()
            build(part)
            try:
                part.rename(folder)
            except OSError:  # another process was faster
                shutil.rmtree(part)
    return folder
