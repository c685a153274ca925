"""The table of baselines, free of heavy imports so that names can be listed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routers.registry import Registry

if TYPE_CHECKING:
    from baselines.contract import Arm

BASELINES: Registry[type[Arm]] = Registry(
    "arm",
    "routelab.baselines",
    {
        "adaboost": "baselines.adaboost:AdaBoost",
        "bagging": "baselines.bagging:Bagging",
        "batch_ensemble": "baselines.batch_ensemble:BatchEnsemble",
        "dense": "baselines.dense:Dense",
        "distilled": "baselines.distilled:Distilled",
        "ensemble": "baselines.ensemble:Ensemble",
        "gated_mixture": "baselines.gated:GatedMixture",
        "gradient_boosting": "baselines.gradient_boosting:GradientBoosting",
        "hierarchical_mixture": "baselines.gated:HierarchicalMixture",
        "hist_gradient_boosting": "baselines.references:HistGradientBoosting",
        "random_forest": "baselines.references:RandomForest",
        "sk_adaboost": "baselines.references:SkAdaBoost",
        "sk_bagging": "baselines.references:SkBagging",
        "snapshot": "baselines.snapshot:Snapshot",
        "specialists": "baselines.specialists:Specialists",
        "stacking": "baselines.stacking:Stacking",
    },
    contract="baselines.contract:must_be_arm",
)
