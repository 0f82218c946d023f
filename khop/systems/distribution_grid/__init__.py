"""Distribution grids: power flow, the built-in grids and their profiles, and voltage control by inverters."""

from khop.systems.distribution_grid.voltage_control import VoltageControl as VoltageControl
