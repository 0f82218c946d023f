"""How far must agents hear? κ of the critic, the actor and the model, one varied at a time, the others as by default.

Records the return on the real system, the models' held-out error and the messages per agent and step; resumable, to
docs/results/mdpo_kappa.csv and the figure beside it.

    .venv/bin/python benchmarks/mdpo_kappa.py [--quick] [--systems …] [--variants …] [--seeds …]
"""

from __future__ import annotations

from study import Study, Variant
from sweep import main

OPTIONS = {"critic": "kappa_critic", "actor": "kappa_actor", "model": "kappa_model"}
FAMILIES = {part: [f"{part} {kappa}" for kappa in range(5)] for part in OPTIONS}
STUDY = Study(
    "mdpo_kappa",
    [
        Variant(f"{part} {kappa}", "mdpo", 30_000, {option: kappa})
        for kappa in range(5)
        for part, option in OPTIONS.items()
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
