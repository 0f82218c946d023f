"""The scenarios of RESCO (Ault & Sharon 2021), read from the user's own copy.

Their licences do not allow passing them on. The package sumo-rl carries them: installed, they are found.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from khop.errors import InputError, unknown
from khop.system import register
from khop.systems.traffic.net import check, configured
from khop.systems.traffic.system import Scenario, Traffic

SCENARIOS = (
    "grid4x4",
    "arterial4x4",
    "cologne1",
    "cologne3",
    "cologne8",
    "ingolstadt1",
    "ingolstadt7",
    "ingolstadt21",
)


@register("traffic-resco")
class TrafficResco(Traffic):
    """Traffic lights of a RESCO scenario, e.g. --scenario ingolstadt7, from the user's copy."""

    teleport: int = -1
    scenario: str = "cologne8"
    """grid4x4, arterial4x4, cologne1, 3, 8, ingolstadt1, 7 or 21; RESCO plays arterial4x4 at 5 s with 2 s of yellow."""
    resco_path: str = ""
    """The folder that holds a folder per scenario; by default that of an installed sumo-rl."""

    @property
    def setup(self) -> Scenario:
        if self.scenario not in SCENARIOS:
            raise unknown("RESCO scenario", self.scenario, SCENARIOS)
        found = configured(_configuration(self.scenario, self.resco_path))
        check(found)
        return found


def _configuration(name: str, folder: str) -> Path:
    installed = None if folder else importlib.util.find_spec("sumo_rl")
    if not folder and (installed is None or installed.origin is None):
        raise InputError(
            "The RESCO scenarios are not part of khop: install sumo-rl (pip install sumo-rl), or give the folder of "
            "your copy as --resco-path."
        )
    root = Path(folder) if installed is None or installed.origin is None else Path(installed.origin).parent
    for part in ("", "nets/RESCO", "sumo_rl/nets/RESCO", "environments"):
        file = root / part / name / f"{name}.sumocfg"
        if file.is_file():
            return file.absolute()
    raise InputError(f"{root} holds no {name}/{name}.sumocfg: give the folder of RESCO's scenarios as --resco-path.")
