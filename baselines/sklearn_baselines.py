"""Ensembles of trees by scikit-learn: quality, time and memory to hold the networks against.

What they cost is counted in splits and comparisons, not in products, so their FLOPs and parameters are n/a and they are
exempt from matching. Inputs are an example's numbers in a row; codes of categories are numbers, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from routelab.baselines.backbone_arm import whole
from routelab.baselines.base import Arm, Prediction
from routelab.core.flops import Flops
from routelab.data.task import Batch, Task

LEAST = 1e-6
"""What a class gets at least of the probability: trees say 0, and the logarithm of that would be the whole loss."""


@dataclass(frozen=True)
class ReferenceOptions:
    """members: how many trees, or rounds."""

    members: int = 100


class Reference(Arm):
    """Base: an estimator of scikit-learn, fitted to the training split in one call, on one core (histogram boosting: on as
    many as the process has threads)."""

    options_type = ReferenceOptions
    fit_outside_loop = True

    targets: ClassVar[int | None] = None
    """How many values of an example it can learn at most; None = any number."""

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        whole("members", self.options.members)
        if getattr(self.options, "depth", None) is not None:
            whole("depth", self.options.depth)
        if task.kind == "language":
            raise ValueError("trees need an example's numbers and one target for it; language models predict every byte")
        if task.kind == "regression" and self.targets is not None and task.outputs > self.targets:
            raise ValueError(
                f"it learns {self.targets} value of an example, and {task.name!r} has {task.outputs}; "
                "random_forest and sk_bagging take several"
            )
        self.task, self.seed = task, seed % 2**32
        self.estimator = self.make(task.kind == "regression")

    def make(self, regression: bool) -> Any:
        """The estimator, not yet fitted."""
        raise NotImplementedError(f"{type(self).__name__} must define make(regression)")

    def fit(self, train: Batch, validation: Batch) -> None:
        targets = train.targets.cpu().numpy()
        self.estimator.fit(numbers(train), targets.ravel() if targets.shape[1:] in ((), (1,)) else targets)

    def predict(self, batch: Batch) -> Prediction:
        if self.task.kind == "regression":
            found = np.asarray(self.estimator.predict(numbers(batch))).reshape(len(batch), self.task.outputs)
            return Prediction(torch.from_numpy(found).float(), Flops(0.0, 0.0))
        shares = np.full((len(batch), self.task.outputs), 0.0)
        # Classes without a training example have no column.
        shares[:, self.estimator.classes_] = self.estimator.predict_proba(numbers(batch))
        smoothed = (shares + LEAST) / (1 + LEAST * self.task.outputs)
        return Prediction(torch.from_numpy(smoothed).log().float(), Flops(0.0, 0.0))

    def flops_per_example(self) -> None:
        return None

    def train_flops_per_example(self) -> None:
        return None

    def figures(self, train: Batch) -> tuple[dict[str, Any], Flops | None]:
        score = getattr(self.estimator, "oob_score_", None)
        return ({} if score is None else {"oob_score": float(score)}), None


def numbers(batch: Batch) -> NDArray[Any]:
    """Inputs (B, F) as scikit-learn takes them."""
    return batch.inputs.flatten(1).cpu().numpy()


class RandomForest(Reference):
    """Random forest (Breiman 2001) by scikit-learn: bagged trees, each split chosen among the root of the number of features,
    drawn at random; for regression, as scikit-learn has it, among all of them, so that it is bagging.

    Options: `members` (100).
    """

    def make(self, regression: bool) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        make = RandomForestRegressor if regression else RandomForestClassifier
        return make(n_estimators=self.options.members, random_state=self.seed)


class HistGradientBoosting(Reference):
    """Gradient boosting of trees over binned features by scikit-learn (after LightGBM, Ke et al. 2017).

    Of more than 10,000 training examples scikit-learn holds back a tenth, and ends early when they tell it to.
    Options: `members` (100).
    """

    targets = 1

    def make(self, regression: bool) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        make = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return make(max_iter=self.options.members, random_state=self.seed)


@dataclass(frozen=True)
class TreeOptions(ReferenceOptions):
    """members: how many trees. depth: of each, None = until its leaves are pure."""

    members: int = 50
    depth: int | None = None


@dataclass(frozen=True)
class BaggingOptions(TreeOptions):
    """bootstrap: False shows every tree everything: with `members: 1` that is a single tree."""

    bootstrap: bool = True


class SkBagging(Reference):
    """Bagged decision trees (Breiman 1996) by scikit-learn's BaggingClassifier or BaggingRegressor.

    Options: `members` (50), `depth` (none), `bootstrap` (true).
    """

    options_type = BaggingOptions

    def make(self, regression: bool) -> Any:
        from sklearn.ensemble import BaggingClassifier, BaggingRegressor
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(max_depth=self.options.depth)
        make = BaggingRegressor if regression else BaggingClassifier
        bootstrap = self.options.bootstrap
        # With fewer, some examples are in every bag: of 20 bags, one in 10,000. scikit-learn has none for several values.
        score = bootstrap and self.options.members >= 20 and not (regression and self.task.outputs > 1)
        return make(tree, n_estimators=self.options.members, bootstrap=bootstrap, oob_score=score, random_state=self.seed)


@dataclass(frozen=True)
class BoostedTreeOptions(TreeOptions):
    """depth: of each tree; 1 (stumps) is scikit-learn's default, and too little for many classes. A tree so deep that it knows
    the training split by heart ends boosting at once."""

    depth: int | None = 8


class SkAdaBoost(Reference):
    """Boosted decision trees by scikit-learn's AdaBoostClassifier (SAMME) or AdaBoostRegressor (Drucker 1997, AdaBoost.R2).

    Options: `members` (50), `depth` (8).
    """

    options_type = BoostedTreeOptions
    targets = 1

    def make(self, regression: bool) -> Any:
        from sklearn.ensemble import AdaBoostClassifier, AdaBoostRegressor
        from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

        tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(max_depth=self.options.depth)
        make = AdaBoostRegressor if regression else AdaBoostClassifier
        return make(tree, n_estimators=self.options.members, random_state=self.seed)
