"""What loads draw and the sun gives over a year.

Shape letters: R rows in time, C load curves, S photovoltaic curves, M buses with loads, I inverters.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

STEP = 3  # minutes, between two actions
DAY = 24 * 60  # minutes
TEST_EVERY = 4  # of so many days one is kept from training


@dataclasses.dataclass(frozen=True, eq=False)
class Profiles:
    """Load and photovoltaic curves, and who follows which. Days are counted from the first row, which is at midnight.

    Attributes:
        interval: minutes between two rows, a multiple of ``STEP``; in between, curves are straight.
        active, reactive: (R, C) load curves.
        sun: (R, S) photovoltaic curves.
        load_bus: (M,) the buses with loads.
        load_active, load_reactive: (C, M) MW and Mvar of each curve's unit at each bus.
        sun_share: (S, I) MW of each curve's unit that each inverter feeds in.
    """

    interval: int
    active: Float[np.ndarray, "R C"]
    reactive: Float[np.ndarray, "R C"]
    sun: Float[np.ndarray, "R S"]
    load_bus: Int[np.ndarray, " M"]
    load_active: Float[np.ndarray, "C M"]
    load_reactive: Float[np.ndarray, "C M"]
    sun_share: Float[np.ndarray, "S I"]

    @property
    def days(self) -> int:
        """Whole days."""
        return len(self.active) * self.interval // DAY

    def days_of(self, split: str) -> Int[np.ndarray, " D"]:
        """The days of a split, ``train`` or ``test``: every fourth day is for testing, so both see all seasons."""
        testing = np.arange(self.days) % TEST_EVERY == TEST_EVERY - 1
        return np.flatnonzero(testing if split == "test" else ~testing)

    def at(self, step: Int[Array, ""]) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " I"]]:
        """Active and reactive load of every bus and power of every inverter, MW and Mvar.

        Args:
            step: counted in steps of three minutes from the first row.
        """
        parts = self.interval // STEP
        row, share = step // parts, (step % parts) / parts

        def now(rows: Array) -> Array:
            return (1 - share) * rows[row] + share * rows[jnp.minimum(row + 1, len(rows) - 1)]

        active, reactive, sun, load_active, load_reactive, sun_share = self._on_device
        return now(active) @ load_active, now(reactive) @ load_reactive, now(sun) @ sun_share

    @cached_property
    def _on_device(self) -> tuple[Array, ...]:
        """Curves and shares as JAX arrays, the same ones in every program: they compile 5 times faster than NumPy's."""
        shares = self.load_active, self.load_reactive, self.sun_share
        with jax.ensure_compile_time_eval():
            return tuple(jnp.asarray(x, jnp.float32) for x in (self.active, self.reactive, self.sun, *shares))


def gathered(
    load_bus: Int[np.ndarray, " L"],
    curve: Int[np.ndarray, " L"],
    active: Float[np.ndarray, " L"],
    reactive: Float[np.ndarray, " L"],
    curves: int,
) -> tuple[Int[np.ndarray, " M"], Float[np.ndarray, "C M"], Float[np.ndarray, "C M"]]:
    """Loads that each follow one curve, summed by curve and bus.

    Returns:
        The buses with loads, and MW and Mvar per curve and bus.
    """
    buses, place = np.unique(load_bus, return_inverse=True)
    sums = np.zeros((2, curves, len(buses)))
    np.add.at(sums[0], (curve, place), active)
    np.add.at(sums[1], (curve, place), reactive)
    return buses, sums[0], sums[1]


def scaled_to_peak(profiles: Profiles, peak: float) -> Profiles:
    """The same with all loads scaled alike, so that they never draw more than ``peak`` MW together, but once do."""
    factor = peak / (profiles.active @ profiles.load_active.sum(1)).max()
    return dataclasses.replace(
        profiles, load_active=factor * profiles.load_active, load_reactive=factor * profiles.load_reactive
    )


# Synthetic curves -----------------------------------------------------------------------------------------------------

LATITUDE = np.radians(51.0)
INTERVAL = 15  # minutes


def synthetic_curves(loads: int, suns: int, seed: int) -> tuple[Float[np.ndarray, "R C"], Float[np.ndarray, "R S"]]:
    """A year of load and photovoltaic curves at 15 minutes, made up but plausible, for grids without data.

    Photovoltaics: clear-sky irradiance by Haurwitz (1945), 1098 sin h exp(−0.059 / sin h) W/m² at solar elevation h,
    times a clearness that varies from day to day and, as clouds pass, within the day; 1 stands for 1000 W/m². Loads:
    a morning and an evening peak over a base, higher in winter, times a noise of mean 1 that fades within an hour.
    """
    random = np.random.default_rng(seed)
    days, rows = 366, DAY // INTERVAL
    day, hour = np.divmod(np.arange(days * rows), rows)
    hour = hour * 24 / rows
    season = 2 * np.pi * (day - 172) / days  # 0 at midsummer
    declination = np.radians(23.45) * np.cos(season)
    height = np.sin(LATITUDE) * np.sin(declination)
    height = height + np.cos(LATITUDE) * np.cos(declination) * np.cos(np.pi * (hour - 12) / 12)
    up = np.maximum(height, 1e-3)
    clear = np.where(height > 0, 1.098 * up * np.exp(-0.059 / up), 0.0)
    weather = random.beta(1.6, 0.9, days)[day]
    passing = _fading_noise(random, (len(day), suns), memory=0.8)
    clearness = 0.15 + 0.85 * weather[:, None] + 0.6 * (weather * (1 - weather))[:, None] * passing
    sun = clear[:, None] * np.clip(clearness, 0.05, 1)

    def bump(centre: float, width: float) -> np.ndarray:
        return np.exp(-0.5 * ((hour - centre) / width) ** 2)

    shape = 0.35 + 0.3 * bump(8.0, 1.8) + 0.25 * bump(13.0, 2.5) + 0.5 * bump(19.5, 2.2)
    shape = shape * (1 - 0.15 * np.cos(season))
    spread = 0.25
    noise = np.exp(spread * _fading_noise(random, (len(day), loads), memory=0.7) - spread**2 / 2)
    return shape[:, None] * noise, sun


def _fading_noise(random: np.random.Generator, shape: tuple[int, int], memory: float) -> Float[np.ndarray, "R C"]:
    """Standard normal noise along time that keeps a share ``memory`` from row to row."""
    from scipy import signal  # half a second to import, which no other system should wait for

    innovation = np.sqrt(1 - memory**2) * random.standard_normal(shape)
    innovation[0] /= np.sqrt(1 - memory**2)
    return signal.lfilter([1.0], [1.0, -memory], innovation, axis=0)
