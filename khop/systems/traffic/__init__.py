"""Traffic lights on SUMO: the grid of the literature, a generated city, any network of the user's, and RESCO's."""

from khop.systems.traffic.city import TrafficCity as TrafficCity
from khop.systems.traffic.grid import TrafficGrid as TrafficGrid
from khop.systems.traffic.net import TrafficNet as TrafficNet
from khop.systems.traffic.resco import TrafficResco as TrafficResco
