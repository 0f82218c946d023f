"""How far must agents hear? κ of the critic, the actor and the model, one varied at a time, the others as by default.

Records the return on the real system, the models' held-out error and the messages per agent and step; resumable, to
docs/results/mdpo_kappa.csv and the figure beside it.

    .venv/bin/python benchmarks/mdpo_kappa.py [--quick] [--systems …] [--variants …] [--seeds …]
"""

from __future__ import annotations

from study import Study, Variant
from sweep import main

DEFAULT = {"kappa_critic": 4, "kappa_actor": 1, "kappa_model": 1}  # on platoons
FAMILIES = {
    option.removeprefix("kappa_"): {
        kappa: "default" if kappa == default else f"{option.removeprefix('kappa_')} {kappa}" for kappa in range(5)
    }
    for option, default in DEFAULT.items()
}
STUDY = Study(
    "mdpo_kappa",
    [Variant("default", "mdpo", 30_000, DEFAULT)]
    + [
        Variant(variant, "mdpo", 30_000, DEFAULT | {f"kappa_{part}": kappa})
        for part, family in FAMILIES.items()
        for kappa, variant in family.items()
        if variant != "default"
    ],
)

if __name__ == "__main__":
    main(
        __doc__,
        STUDY,
        ["platoon-catchup", "platoon-slowdown"],
        FAMILIES,
        "κ",
        {"model_error_1": "model error, 1 step", "training_scalars": "scalars per agent and step"},
    )
