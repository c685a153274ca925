"""The deep ensemble."""

from __future__ import annotations

from routelab.baselines.ensembles.ensemble_base import MemberArm


class Ensemble(MemberArm):
    """M networks that differ in their initial values and in the order of their data, averaged (Lakshminarayanan 2017).

    Without the paper's adversarial training, and without its predicted variance for regression. Options: `members` (8),
    `base` (dense); see `MemberOptions`.
    """
