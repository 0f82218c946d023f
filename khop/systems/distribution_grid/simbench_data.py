"""The tables of the installed ``simbench`` package, read as they are: its own loader takes a minute for a few feeders.

SimBench: Meinecke, S. et al., Energies 13, 3290 (2020); data under ODbL.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pandas import DataFrame

TODAY = "1-complete_data-mixed-all-0-sw"  # SimBench's scenario 0


def table(name: str, columns: list[str] | None = None) -> DataFrame:
    """One of SimBench's tables, or some of its columns."""
    import pandas
    import simbench

    file = Path(simbench.__file__).parent / "networks" / TODAY / f"{name}.csv"
    return pandas.read_csv(file, sep=";", usecols=columns)


def subnet(name: str, code: str) -> DataFrame:
    """The rows of a table of one grid, e.g. ``LV3.101``; nodes are named by the bus they are switched to."""
    rows = table(name)
    rows = rows[rows.subnet == code]
    for column in rows.columns.intersection(["node", "nodeA", "nodeB", "nodeLV"]):
        rows = rows.assign(**{column: rows[column].str.replace(r"_\d+$", "", regex=True)})
    return rows


def load_curves(families: tuple[str, ...]) -> dict[str, tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]]:
    """Active and reactive load curves of 2016 at 15 minutes, by name, of names that begin alike."""
    names = [name.removesuffix("_pload") for name in table("LoadProfile").columns if name.endswith("_pload")]
    names = [name for name in names if name.startswith(families)]
    curves = table("LoadProfile", [f"{name}_{kind}load" for name in names for kind in "pq"]).astype(np.float32)
    return {name: (curves[f"{name}_pload"].to_numpy(), curves[f"{name}_qload"].to_numpy()) for name in names}


def sun_curves() -> Float[np.ndarray, "R 8"]:
    """The eight photovoltaic curves of 2016 at 15 minutes, each with a largest value of 1."""
    names = [f"PV{number}" for number in range(1, 9)]
    curves = table("RESProfile", names)[names].to_numpy(np.float32)
    return curves / curves.max(0)
