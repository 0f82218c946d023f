"""khop: decentralised reinforcement learning for networked systems.

    run = khop.train("platoon-catchup", "dppo", steps=600_000)
    run.evaluate()                     # learned, random and classical controllers, side by side
    run.policy(obs)                    # every agent's action
"""

from khop.errors import InputError as InputError
from khop.experiment import Run as Run, load as load, resume as resume, train as train
from khop.methods import METHODS as METHODS, Method as Method
from khop.system import System as System, make as make, register as register, registered as registered
from khop.systems import platoon as platoon
from khop.topology import Topology as Topology
