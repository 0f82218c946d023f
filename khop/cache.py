"""What is expensive to make is kept on disk: compiled programs, built grids, generated cities."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_folder(kind: str) -> Path:
    """Where files of a kind are kept: under $KHOP_CACHE, or under khop in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KHOP_CACHE") or Path(cache) / "khop") / kind


def keep_compiled_programs() -> None:
    """Let JAX keep what took it over a second to compile, unless a folder for that has been chosen already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
