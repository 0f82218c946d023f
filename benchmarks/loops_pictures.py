"""Space–time diagrams and an animation of both loops, for the documentation.

Plays one episode of the ring and of the figure eight with classical controllers and draws docs/results/ring.png,
docs/results/figure_eight.png and docs/results/loops.gif.

    .venv/bin/python benchmarks/loops_pictures.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

import khop
from khop.evaluation import episode_keys, play
from khop.report.episode import episode_figure
from khop.report.style import styled
from khop.systems.loops.figure import animate
from khop.systems.loops.figure_eight import course as eight_course
from khop.systems.loops.ring import course as ring_course

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ring, alone, eight = khop.make("ring"), khop.make("ring", controlled=1), khop.make("figure-eight")
    shown = {name: alone.baseline(name) for name in ("all-human", "follower-stopper", "pi-saturation")}
    print(episode_figure(alone, shown, 0, RESULTS / "ring.png"))
    shown = {name: eight.baseline(name) for name in eight.spec.baselines}
    print(episode_figure(eight, shown, 0, RESULTS / "figure_eight.png"))

    player, key = eqx.filter_jit(play), episode_keys(0, 1)[0]
    episodes, courses = {}, {}
    for name, system, controller in (
        ("all human", ring, "all-human"),
        ("one PI controller", alone, "pi-saturation"),
        ("figure eight", eight, "all-human"),
    ):
        played = player(system, system.baseline(controller), key)
        episodes[name] = jax.tree.map(lambda leaf: np.asarray(leaf)[:600], played)
        courses[name] = (eight_course if system is eight else ring_course)(float(played.info["length"][0]))
    with styled():
        print(animate(episodes, courses, RESULTS / "loops.gif", interval=0.1))


if __name__ == "__main__":
    main()
