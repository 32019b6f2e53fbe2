"""How much of the differences between trials each key explains."""

from __future__ import annotations

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator

from .space import Space

_FEWEST = 10  # trials that ran to their end, below which shares mean nothing


def importances(study: optuna.Study, space: Space) -> dict[str, float]:
    """Return the share of each key that all finished trials have, the largest first; empty for few trials.

    Source: PED-ANOVA (arXiv 2304.10255): where the best trials lie, against where all lie.
    """
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    shared = [
        key
        for key in space.axes
        if all(key in trial.params for trial in done) and len({str(t.params[key]) for t in done}) > 1
    ]
    if len(done) < _FEWEST or not shared or len({trial.value for trial in done}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna: that an evaluator is new
        found = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=shared
        )
    return {key: round(float(value), 6) for key, value in found.items()}
