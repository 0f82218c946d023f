"""How far is ``opf`` from the optimum?

Draws moments of held-out days, lets ``opf`` choose, and compares its losses with the least that any reactive power
could have which keeps every voltage between 0.95 and 1.05 pu, as bounded by the convex relaxation. The relaxation's own
solution is checked by the power flow. Needs the extras ``opf`` and, but for grid-33, ``power``.

    .venv/bin/python benchmarks/opf_gap.py [--quick] [--grids …] [--moments 50]
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

import khop
from khop.systems.distribution_grid.relaxation import relaxed_optimum
from khop.systems.distribution_grid.voltage_control import VoltageControl

GRIDS = ("grid-33", "grid-141", "grid-322", "grid-421")


def compare(name: str, moments: int) -> str:
    """One line: losses of both against the bound, voltages, and how tight the relaxation is."""
    system = khop.make(name, horizon=1).held_out
    assert isinstance(system, VoltageControl)
    plant, controller = system.plant, system.baseline("opf")

    @jax.jit
    def chosen(key: jax.Array) -> tuple:
        state, obs = system.reset(key)
        step = system.step(key, state, controller(key, controller.initial(), state, obs)[1])
        return state.load, state.sun, step.info["total_loss"], step.info["voltage"]

    above, checked, off, relaxed_off, gaps, seconds = [], [], [], [], [], []
    for key in jax.random.split(jax.random.key(0), moments):
        load, sun, losses, voltages = (np.asarray(x) for x in chosen(key))
        started = time.perf_counter()
        found = relaxed_optimum(plant, load, sun, system.limit)
        seconds.append(time.perf_counter() - started)
        above.append(losses / found.bound - 1)
        checked.append(found.losses / found.bound - 1)
        off.append(abs(voltages - 1).max())
        relaxed_off.append(abs(found.voltages - 1).max())
        gaps.append(found.gap)
    median, worst = np.median(above), np.max(above)
    return (
        f"{name}: opf loses {median:.2%} more than the bound in the median of {moments} moments, {worst:.2%} at most, "
        f"largest deviation {max(off):.4f} pu; the relaxation, checked: {np.max(np.abs(checked)):.2%}, "
        f"{max(relaxed_off):.4f} pu, gap {max(gaps):.1e}, {np.median(seconds):.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="grid-33, 3 moments")
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=GRIDS)
    parser.add_argument("--moments", type=int, default=50)
    arguments = parser.parse_args()
    for name in ["grid-33"] if arguments.quick else arguments.grids:
        print(compare(name, 3 if arguments.quick else arguments.moments), flush=True)


if __name__ == "__main__":
    main()
