"""The table of baselines, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routelab.core.registry import Registry

if TYPE_CHECKING:
    from routelab.baselines.base import Arm

BASELINES: Registry[type[Arm]] = Registry(
    "arm",
    "routelab.baselines",
    {
        "adaboost": "routelab.baselines.ensembles.adaboost:AdaBoost",
        "bagging": "routelab.baselines.ensembles.bagging:Bagging",
        "batch_ensemble": "routelab.baselines.ensembles.batch_ensemble:BatchEnsemble",
        "dense": "routelab.baselines.dense:Dense",
        "distilled": "routelab.baselines.distilled:Distilled",
        "ensemble": "routelab.baselines.ensembles.deep_ensemble:Ensemble",
        "gated_mixture": "routelab.baselines.classic_moe.gated_mixture:GatedMixture",
        "gradient_boosting": "routelab.baselines.ensembles.gradient_boosting:GradientBoosting",
        "hierarchical_mixture": "routelab.baselines.classic_moe.gated_mixture:HierarchicalMixture",
        "hist_gradient_boosting": "routelab.baselines.sklearn_baselines:HistGradientBoosting",
        "random_forest": "routelab.baselines.sklearn_baselines:RandomForest",
        "sk_adaboost": "routelab.baselines.sklearn_baselines:SkAdaBoost",
        "sk_bagging": "routelab.baselines.sklearn_baselines:SkBagging",
        "snapshot": "routelab.baselines.ensembles.snapshot:Snapshot",
        "specialists": "routelab.baselines.specialists:Specialists",
        "stacking": "routelab.baselines.ensembles.stacking:Stacking",
    },
    contract="routelab.baselines.base:must_be_arm",
)
