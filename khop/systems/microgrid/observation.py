"""What an inverter measures: at its terminal and at its bus, scaled to about [−1, 1]."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from khop.systems.microgrid.dynamics import Electrical, terminal_voltage, turn
from khop.systems.microgrid.network import BAND, NOMINAL_VOLTAGE, Network

MEASURED = {  # name → scale, unit of the scaled value
    "angle": (0.5, "0.5 rad"),
    "active power": (1e5, "100 kW"),
    "reactive power": (1e5, "100 kvar"),
    "current d, own frame": (200.0, "200 A"),
    "current q, own frame": (200.0, "200 A"),
    "current d": (200.0, "200 A"),
    "current q": (200.0, "200 A"),
    "bus voltage error d": (100.0, "100 V"),
    "bus voltage q": (200.0, "200 V"),
    "terminal voltage error": (BAND * NOMINAL_VOLTAGE, "24 V"),
}
NAMES = tuple(MEASURED)
UNITS = tuple(unit for _, unit in MEASURED.values())
SCALES = np.array([scale for scale, _ in MEASURED.values()], np.float32)


def observe(network: Network, electrical: Electrical, set_point: Float[Array, " n"]) -> Float[Array, "n 10"]:
    """Every inverter's measurements, each divided by its scale."""
    current = electrical.current[: network.n]
    own = current * turn(-electrical.angle)
    bus = electrical.bus_voltage[network.inverter_bus]
    measured = [
        electrical.angle,
        electrical.active,
        electrical.reactive,
        own.real,
        own.imag,
        current.real,
        current.imag,
        bus.real - NOMINAL_VOLTAGE,
        bus.imag,
        terminal_voltage(network, set_point, electrical.reactive) - NOMINAL_VOLTAGE,
    ]
    return jnp.stack(measured, axis=-1) / SCALES


def reactive_power(obs: Float[Array, "n 10"]) -> Float[Array, " n"]:
    """In var."""
    return _in_si(obs, "reactive power")


def voltage_error(obs: Float[Array, "n 10"]) -> Float[Array, " n"]:
    """Of the terminal, in V."""
    return _in_si(obs, "terminal voltage error")


def _in_si(obs: Array, name: str) -> Array:
    index = NAMES.index(name)
    return obs[:, index] * SCALES[index]
