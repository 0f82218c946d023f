"""How far must agents hear? κ of the critic, the actor and the model, one varied at a time, the others as by default.

Records the return on the real system, the models' held-out error and the messages per agent and step; resumable, to
docs/results/mdpo_kappa.csv and the figure beside it.

    .venv/bin/python benchmarks/mdpo_kappa.py [--quick] [--systems …] [--variants …] [--seeds …]
"""

from __future__ import annotations

from study import Study, Variant
from sweep import Families, main

import khop
from khop.methods import METHODS

PARTS = ("critic", "actor", "model")
KAPPAS = range(5)
STUDY = Study(
    "mdpo_kappa",
    [Variant("default", "mdpo", 30_000)]
    + [Variant(f"{part} {kappa}", "mdpo", 30_000, {f"kappa_{part}": kappa}) for part in PARTS for kappa in KAPPAS],
)


def families(system: str) -> Families:
    """κ of each part; what is the default on this system, is trained once for all parts."""
    default = METHODS["mdpo"].resolved(khop.make(system).spec)
    assert default.imagination is not None
    kappas = (default.kappa_critic, default.kappa_actor, default.imagination.kappa_model)
    return {
        part: {kappa: "default" if kappa == usual else f"{part} {kappa}" for kappa in KAPPAS}
        for part, usual in zip(PARTS, kappas, strict=True)
    }


if __name__ == "__main__":
    main(
        __doc__,
        STUDY,
        ["platoon-catchup", "platoon-slowdown", "ring"],
        families,
        "κ",
        {"model_error_1": "model error, 1 step", "training_scalars": "scalars per agent and step"},
    )
