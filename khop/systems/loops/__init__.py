"""Loops of vehicles: the ring and the figure eight, driven by the same car following."""

from khop.systems.loops import figure_eight as figure_eight
from khop.systems.loops import ring as ring
