"""The 33-bus feeder of Baran, M. E. & Wu, F. F., IEEE Transactions on Power Delivery 4, 1401–1407 (1989).

Its five normally open ties are left out. Zones and photovoltaic sites are those of the benchmark of Wang, J. et al.,
Multi-agent reinforcement learning for active voltage control on power distribution networks, NeurIPS (2021).
"""

from __future__ import annotations

import numpy as np

from khop.systems.distribution_grid.grid import MAIN, Grid

NOMINAL_KV = 12.66
BASE = 10.0  # MVA
# from, to, resistance and reactance of the line in Ω, active and reactive load at its end in kW and kvar
TABLE = np.array(
    [
        (0, 1, 0.0922, 0.0470, 100, 60),
        (1, 2, 0.4930, 0.2511, 90, 40),
        (2, 3, 0.3660, 0.1864, 120, 80),
        (3, 4, 0.3811, 0.1941, 60, 30),
        (4, 5, 0.8190, 0.7070, 60, 20),
        (5, 6, 0.1872, 0.6188, 200, 100),
        (6, 7, 0.7114, 0.2351, 200, 100),
        (7, 8, 1.0300, 0.7400, 60, 20),
        (8, 9, 1.0440, 0.7400, 60, 20),
        (9, 10, 0.1966, 0.0650, 45, 30),
        (10, 11, 0.3744, 0.1238, 60, 35),
        (11, 12, 1.4680, 1.1550, 60, 35),
        (12, 13, 0.5416, 0.7129, 120, 80),
        (13, 14, 0.5910, 0.5260, 60, 10),
        (14, 15, 0.7463, 0.5450, 60, 20),
        (15, 16, 1.2890, 1.7210, 60, 20),
        (16, 17, 0.7320, 0.5740, 90, 40),
        (1, 18, 0.1640, 0.1565, 90, 40),
        (18, 19, 1.5042, 1.3554, 90, 40),
        (19, 20, 0.4095, 0.4784, 90, 40),
        (20, 21, 0.7089, 0.9373, 90, 40),
        (2, 22, 0.4512, 0.3083, 90, 50),
        (22, 23, 0.8980, 0.7091, 420, 200),
        (23, 24, 0.8960, 0.7011, 420, 200),
        (5, 25, 0.2030, 0.1034, 60, 25),
        (25, 26, 0.2842, 0.1447, 60, 25),
        (26, 27, 1.0590, 0.9337, 60, 20),
        (27, 28, 0.8042, 0.7006, 120, 70),
        (28, 29, 0.5075, 0.2585, 200, 600),
        (29, 30, 0.9744, 0.9630, 150, 70),
        (30, 31, 0.3105, 0.3619, 210, 100),
        (31, 32, 0.3410, 0.5302, 60, 40),
    ]
)
ZONES = ((6, 17), (18, 21), (22, 24), (25, 32))  # first and last bus
INVERTER_BUSES = (12, 17, 21, 24, 28, 32)


def zones() -> np.ndarray:
    """(33,) zone of every bus; buses 0 to 5 belong to none."""
    zone = np.full(33, MAIN)
    for index, (first, last) in enumerate(ZONES):
        zone[first : last + 1] = index
    return zone


def case33(peak: float) -> Grid:
    """The feeder with six photovoltaic plants of ``peak`` MW together, all of one size."""
    ends, ohm = TABLE[:, :2].astype(int), TABLE[:, 2] + 1j * TABLE[:, 3]
    none = np.zeros(len(ohm), complex)
    return Grid(
        base=BASE,
        slack_voltage=1.0 + 0j,
        from_bus=ends[:, 0],
        to_bus=ends[:, 1],
        impedance=ohm * BASE / NOMINAL_KV**2,
        shunt_from=none,
        shunt_to=none,
        ratio=np.ones(len(ohm), complex),
        is_line=np.ones(len(ohm), bool),
        shunt=np.zeros(33, complex),
        bus_name=np.arange(33),
        zone=zones(),
        inverter_bus=np.array(INVERTER_BUSES),
        inverter_peak=np.full(len(INVERTER_BUSES), peak / len(INVERTER_BUSES)),
    )
