"""The snapshot ensemble: one training, several members."""

from __future__ import annotations

from collections.abc import Sequence

from routelab.baselines.base import Prediction, Stage
from routelab.baselines.ensembles.stagewise import StageWise
from routelab.core.flops import Flops
from routelab.data.task import Batch


class Snapshot(StageWise):
    """Snapshot ensemble (Huang et al. 2017, Snapshot ensembles: train 1, get M for free).

    One network trains for M cycles, in each of which the rate falls from `optimizer.lr` to 0 as half a cosine,
    lr / 2 (cos(pi t / T) + 1), without a warm-up; at the end of a cycle it is kept as a member, and goes on from there with
    its optimizer. The probabilities of the members are averaged. A budget in steps or epochs is for all cycles together.

    Options: `members` (8), `base` (dense); see `MemberOptions`.
    """

    @property
    def current(self) -> int:
        # Member 0 goes on training; the others are copies of what it was.
        return 0

    @property
    def rounds(self) -> int:
        return 1

    def stages(self) -> Sequence[Stage]:
        return [Stage(f"cycle {n}", fresh=n == 0, warmup=0.0, schedule="cosine") for n in range(self.count)]

    def finish(self, stage: int, train: Batch) -> Flops | None:
        if stage + 1 < self.count:
            self.members.member(stage + 1).load_state_dict(self.members.member(0).state_dict())
            self.finished += 1
        return None

    def predict(self, batch: Batch) -> Prediction:
        return self.prediction(batch, self.together(batch, 1 + int(self.finished)))
