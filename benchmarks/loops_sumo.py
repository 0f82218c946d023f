"""Do the loops drive like SUMO's?

Lets khop and SUMO's own IDM drive from the same starts, without noise: uniform flow on rings of different density, a
dent in it that becomes a stop-and-go wave, and the figure eight. Prints tables, writes docs/results/loops_sumo.csv and
draws docs/results/loops_sumo.png. Needs the extra ``traffic``.

    .venv/bin/python benchmarks/loops_sumo.py
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from khop.report.style import COLOURS, MUTED, save, styled
from khop.systems.loops.car_following import INTERVAL, equilibrium_speed
from khop.systems.loops.figure import space_time
from khop.systems.loops.figure_eight import LENGTH, FigureEight
from khop.systems.loops.loop import Loop, LoopState, bunched
from khop.systems.loops.ring import Ring
from khop.systems.loops.sumo import Driven, drive, eight_road, ring_road

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "loops_sumo.csv"
LENGTHS = (190.0, 220.0, 270.0, 350.0, 500.0, 1000.0, 1500.0)  # m
WAVES = (230.0, 260.0)  # m
SETTLED, WAVING = 300, 6000  # steps
LAST = 1500  # steps over which a wave is measured
CROSSING = 3000  # steps on the figure eight, of which the first sixth is left out


@eqx.filter_jit
def khop_drives(loop: Loop, state: LoopState, steps: int) -> tuple[jax.Array, jax.Array]:
    """Positions and speeds of human driving, (T, V)."""

    def advance(state: LoopState, key: jax.Array) -> tuple[LoopState, tuple[jax.Array, jax.Array]]:
        moved = loop.drive(key, state, None)
        return moved, (moved.position, moved.speed)

    return jax.lax.scan(advance, state, jax.random.split(jax.random.key(0), steps))[1]


def uniform(ring: Ring, length: float, dent: float) -> LoopState:
    """Uniform flow, but for vehicle 0, ``dent`` metres ahead of its place."""
    state = bunched(ring, jnp.asarray(length, jnp.float32))
    place = jnp.arange(ring.vehicles)
    gap = length / ring.vehicles - 5.0 - dent * (place == 0) + dent * (place == 1)
    position = (length - 1 - length / ring.vehicles * place + dent * (place == 0)) % length
    speed = jnp.full(ring.vehicles, state.uniform_speed)
    return dataclasses.replace(state, gap=gap, speed=speed, position=position)


def both(loop: Loop, state: LoopState, road: object, steps: int) -> tuple[Driven, Driven]:
    """khop's and SUMO's driving from one start."""
    position, speed = map(np.asarray, khop_drives(loop, state, steps))
    length = float(state.length)
    theirs = drive(road, np.asarray(state.position) / length, np.asarray(state.speed), steps)  # type: ignore[arg-type]
    return Driven(position, speed, length, 0), theirs


def wave(driven: Driven) -> tuple[float, float, float]:
    """Amplitude (half of the range of one vehicle's speed) in m/s, period in s, and speed of the wave in m/s."""
    speed = driven.speed[-LAST:]
    amplitude = np.ptp(speed, axis=0).mean() / 2
    periods = [np.diff(np.flatnonzero((one[:-1] < one.mean()) & (one[1:] >= one.mean()))) for one in speed.T]
    period = INTERVAL * np.concatenate(periods).mean()
    return float(amplitude), float(period), float(speed.mean() - driven.length / period)


def measured() -> tuple[list[dict[str, object]], dict[str, tuple[Driven, Driven]]]:
    """All rows, and what was driven on 260 m and on the figure eight."""
    rows: list[dict[str, object]] = []
    kept = {}

    def row(what: str, length: float, quantity: str, ours: float, theirs: float, theory: float | str = "") -> None:
        difference = f"{ours / theirs - 1:+.2%}"
        rows.append(
            dict(what=what, length=length, quantity=quantity, khop=f"{ours:.4g}", sumo=f"{theirs:.4g}")
            | dict(theory=theory, difference=difference)
        )
        print(*rows[-1].values())

    ring = Ring(noise=0.0, shortest=190.0, longest=1500.0)
    for length in LENGTHS:
        ours, theirs = both(ring, uniform(ring, length, 0.0), ring_road(length), SETTLED)
        theory = f"{float(equilibrium_speed(jnp.asarray(length / 22 - 5))):.4g}"
        row("uniform flow", length, "speed [m/s]", ours.speed[-1].mean(), theirs.speed[-1].mean(), theory)
    for length in WAVES:
        ours, theirs = kept["ring"] = both(ring, uniform(ring, length, 2.0), ring_road(length), WAVING)
        quantities = ("amplitude [m/s]", "period [s]", "wave speed [m/s]")
        for quantity, our, their in zip(quantities, wave(ours), wave(theirs), strict=True):
            row("wave", length, quantity, our, their)
        row("wave", length, "mean speed [m/s]", ours.speed[-LAST:].mean(), theirs.speed[-LAST:].mean())
    eight = FigureEight(noise=0.0)
    start = bunched(eight, jnp.asarray(LENGTH, jnp.float32))
    ours, theirs = kept["eight"] = both(eight, start, eight_road(), CROSSING)
    settled = slice(CROSSING // 6, None)
    flows = [3600 * d.speed[settled].mean() * eight.vehicles / (d.length / 2) for d in (ours, theirs)]
    row("figure eight", LENGTH, "passages [1/h]", *flows)
    row("figure eight", LENGTH, "mean speed [m/s]", *(d.speed[settled].mean() for d in (ours, theirs)))
    standing = [
        INTERVAL * 14 * np.mean(d.speed[settled] < 0.3) / f * 3600 / INTERVAL
        for d, f in zip((ours, theirs), flows, strict=True)
    ]
    row("figure eight", LENGTH, "waiting [s/passage]", *standing)
    print(f"collisions that SUMO reports on the figure eight: {theirs.collisions}")
    return rows, kept


def draw(rows: list[dict[str, object]], kept: dict[str, tuple[Driven, Driven]]) -> Path:
    """Equilibrium speeds, and the space–time diagrams side by side."""
    with styled():
        figure = Figure(figsize=(12, 6.5))
        grid = figure.subplot_mosaic([["flow", "ring 0", "ring 1"], ["wave", "eight 0", "eight 1"]])
        density = np.linspace(12, 130, 200)
        axes = grid["flow"]
        speed = np.asarray(equilibrium_speed(jnp.asarray(1000 / density - 5)))
        axes.plot(density, 3.6 * speed, color=MUTED, label="closed form")
        for name, marker in (("khop", "o"), ("sumo", "x")):
            found = [(22_000 / float(r["length"]), 3.6 * float(r[name])) for r in rows if r["what"] == "uniform flow"]
            axes.plot(*np.transpose(found), marker, label=name.replace("sumo", "SUMO"))
        axes.set(xlabel="density [vehicles/km]", ylabel="speed of uniform flow [km/h]", title="Uniform flow")
        axes.legend()
        time = INTERVAL * np.arange(1, WAVING + 1)
        for name, driven, colour in zip(("khop", "SUMO"), kept["ring"], COLOURS, strict=False):
            grid["wave"].plot(time, driven.speed.std(1), color=colour, label=name)
        grid["wave"].set(xlabel="time [s]", ylabel="spread of the speeds [m/s]", title="A wave grows on 260 m")
        grid["wave"].legend()
        for loop, steps in (("ring", WAVING), ("eight", CROSSING)):
            for k, name in enumerate(("khop", "SUMO")):
                driven = kept[loop][k]
                axes, since = grid[f"{loop} {k}"], steps - LAST
                seconds = INTERVAL * np.arange(1, LAST + 1)
                lines = space_time(axes, seconds, driven.position[since:], driven.speed[since:], driven.length, 10.0)
                axes.set(title=f"{name}: {'ring of 260 m' if loop == 'ring' else 'figure eight'}", xlabel="time [s]")
                axes.set_ylabel("position [m]")
        figure.colorbar(lines, ax=[grid["ring 1"], grid["eight 1"]], label="speed [m/s]")
        return save(figure, RESULTS.with_suffix(".png"))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows, kept = measured()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(draw(rows, kept))


if __name__ == "__main__":
    main()
