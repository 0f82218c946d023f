"""Islanded microgrids of droop-controlled inverters and their secondary voltage control."""

from khop.systems.microgrid.system import Microgrid as Microgrid
