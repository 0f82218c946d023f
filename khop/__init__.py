"""khop: decentralised reinforcement learning for networked systems.

run = khop.train("platoon-catchup", "dppo", steps=600_000)
run.evaluate()                     # learned, random and classical controllers, side by side
run.policy(obs)                    # every agent's action
"""

from khop.cache import keep_compiled_programs
from khop.errors import InputError as InputError
from khop.experiment import Run as Run
from khop.experiment import load as load
from khop.experiment import resume as resume
from khop.experiment import train as train
from khop.methods import METHODS as METHODS
from khop.methods import Method as Method
from khop.system import System as System
from khop.system import make as make
from khop.system import register as register
from khop.system import registered as registered
from khop.systems import distribution_grid as distribution_grid
from khop.systems import loops as loops
from khop.systems import microgrid as microgrid
from khop.systems import platoon as platoon
from khop.systems import traffic as traffic
from khop.systems import warehouse as warehouse
from khop.topology import Topology as Topology

keep_compiled_programs()
