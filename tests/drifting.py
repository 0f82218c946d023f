"""An engine without a simulator: two numbers that drift at random, pushed by actions. Can be told to fail."""

import os
import sys
import time

import numpy as np


class Drifting:
    def __init__(self, arrays, *, fail_at=-1, how="", only_seed=None):
        self.arrays, self.fail_at, self.how, self.only_seed = arrays, fail_at, how, only_seed
        if how == "start":
            raise ValueError("there is no such road")

    def reset(self, seed):
        self.seed, self.random, self.time = seed, np.random.default_rng(seed), 0
        self.place = self.random.normal(size=2)
        self.show()

    def step(self):
        self.time += 1
        if self.time == self.fail_at and self.only_seed in (None, self.seed):
            self.fail()
        self.place = self.place + self.arrays["action"] - 0.5 + 0.1 * self.random.normal(size=2)
        self.arrays["reward"][:] = -abs(self.place)
        self.show()

    def show(self):
        self.arrays["obs"][:, 0] = self.place
        self.arrays["obs"][:, 1] = self.time
        self.arrays["seed"][...] = self.seed

    def fail(self):
        if self.how == "raise":
            raise RuntimeError("the bridge is out")
        if self.how == "die":
            print("Error: The bridge\n fell down", file=sys.stderr, flush=True)
            os._exit(3)
        if self.how == "hang":
            time.sleep(60)
