"""Files that are kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from khop.cache import cache_folder

COMPILED = "import khop, jax; jax.jit(lambda x: x + 1)(1)"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KHOP_CACHE": "own", "XDG_CACHE_HOME": "shared"}, "own/programs"),
        ({"XDG_CACHE_HOME": "shared"}, "shared/khop/programs"),
        ({}, str(Path.home() / ".cache" / "khop" / "programs")),
        ({"KHOP_CACHE": "", "XDG_CACHE_HOME": ""}, str(Path.home() / ".cache" / "khop" / "programs")),
    ],
)
def test_a_cache_folder_is_the_users_choice_or_the_usual_one(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KHOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder("programs")) == expected


@pytest.mark.parametrize("variable", ["KHOP_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_compiled_programs_are_kept_where_the_user_says(variable: str, tmp_path: Path) -> None:
    names = ("KHOP_CACHE", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {variable: str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    subprocess.run([sys.executable, "-c", COMPILED], env=environment, check=True)
    folder = tmp_path / "programs" if variable == "KHOP_CACHE" else tmp_path
    assert list(folder.glob("*-cache"))
