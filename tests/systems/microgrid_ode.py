"""The ordinary differential equations of a microgrid, as a stiff integrator of SciPy's takes them.

Written apart from khop's own integrator: currents in each inverter's own frame, bus voltages from virtual resistors.
"""

from collections.abc import Callable

import numpy as np

from khop.systems.microgrid.network import Network

Rates = Callable[[float, np.ndarray], np.ndarray]


def rates(grid: Network, set_point: np.ndarray, load: np.ndarray, controlled: bool) -> Rates:
    """dx/dt where x holds angles, active and reactive powers, frequencies, real and imaginary currents."""
    n, m = grid.n, len(grid.resistance)
    R, L = grid.resistance.copy(), grid.inductance.copy()
    R[-grid.loads :] = load[0] * R[-grid.loads :] + grid.service_resistance
    L[-grid.loads :] = load[1] * L[-grid.loads :] + grid.service_inductance
    bus_of = grid.inverter_bus

    def at(_: float, x: np.ndarray) -> np.ndarray:
        angle, P, Q, omega = x[: 4 * n].reshape(4, n)
        current = x[4 * n : 4 * n + m] + 1j * x[4 * n + m :]
        speed = 120 * np.pi + omega - grid.active_droop * P
        common = speed[0]
        V = 1e4 * (grid.balance @ current)
        v = set_point - grid.reactive_droop * Q
        turn = np.exp(1j * angle)
        own = current[:n] / turn
        own_rate = -R[:n] / L[:n] * own - 1j * common * own + (v - V[bus_of] / turn) / L[:n]
        rate = -R / L * current - 1j * common * current - (grid.incidence.T @ V) / L
        rate[:n] = (own_rate + 1j * (speed - common) * own) * turn
        P_rate, Q_rate = 31.41 * (v * own.real - P), 31.41 * (-v * own.imag - Q)
        drift = grid.pinning * grid.active_droop * P - grid.consensus @ omega
        return np.concatenate([speed - common, P_rate, Q_rate, controlled * drift, rate.real, rate.imag])

    return at


def at_rest(grid: Network) -> np.ndarray:
    """x where nothing flows."""
    return np.zeros(4 * grid.n + 2 * len(grid.resistance))
