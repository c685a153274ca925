"""The bugs of published comparison code, each written as a router: the rule that is named for it catches it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from routelab.conformance import RouterConformance
from routelab.conformance.router_under_test import Subject
from routelab.conformance.suite import RULES
from routelab.core.flops import Cost
from routelab.routers.base import Router, Routing
from routelab.routers.expert_choice import take
from routelab.routers.hash_layer import mix
from routelab.routers.losses import balance_loss, cv_squared
from routelab.routers.plans import Ragged, TopK


class Linear(Router):
    """A sound top-2 router, from which each of the broken ones departs in one place."""

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        if num_experts < 2:
            raise ValueError(f"num_experts is {num_experts}; it must be at least 2")
        self.weight = nn.Parameter(torch.zeros(num_experts, d_model))

    def score(self, inputs):
        return F.linear(inputs.x_TD, self.weight)

    def routing(self, logits, expert, weight, losses=None):
        return Routing(TopK(expert, weight, self.num_experts), losses or {}, logits, logits.softmax(-1))

    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.topk(2)
        return self.routing(logits, expert, top.softmax(-1))


class GatesOfOne(Linear):
    def forward(self, inputs):
        logits = self.score(inputs)
        return self.routing(logits, logits.topk(2).indices, torch.ones(len(logits), 2))


class OneExpertWithoutGradient(Linear):
    """The last expert's row is cut off."""

    def score(self, inputs):
        return F.linear(inputs.x_TD, torch.cat([self.weight[:-1], self.weight[-1:].detach()]))


class LossOfCounts(Linear):
    loss_weights = {"balance": 0.01}

    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.topk(2)
        count = torch.bincount(expert.flatten(), minlength=self.num_experts).float()
        return self.routing(logits, expert, top.softmax(-1), {"balance": cv_squared(count)})


class HashOfPosition(Router):
    """Declares nothing, which says that a token's plan depends on the token alone."""

    def forward(self, inputs):
        groups, positions, _ = inputs.x.shape
        expert = (mix(torch.arange(positions) + 7) % self.num_experts).repeat(groups).unsqueeze(1)
        return Routing(TopK(expert, torch.ones(groups * positions, 1), self.num_experts))


class ExpertChoiceOverTheBatch(Linear):
    """Ranked over the flattened batch, and declared causal by default."""

    def forward(self, inputs):
        probs = self.score(inputs).softmax(-1)
        plan = take(probs.unsqueeze(0), 2.0, None if inputs.mask is None else inputs.mask_T.unsqueeze(0))
        expert = torch.arange(self.num_experts).view(1, -1, 1).expand_as(plan.position)
        keep = None if plan.keep is None else plan.keep.flatten()
        return Routing(Ragged(plan.position.flatten(), expert.flatten(), plan.weight.flatten(), self.num_experts, keep))

    def nominal_rows(self, groups, positions):
        return float(self.num_experts * min(groups * positions, -(-2 * groups * positions // self.num_experts)))


class PredictorInWordsOnly(Linear):
    """Chooses in evaluation as in training, which a causal task would take for a choice that sees no later token."""

    causal = False
    causal_predictor = True

    def forward(self, inputs):
        return Routing(take(self.score(inputs).softmax(-1).view(*inputs.x.shape[:2], -1), 2.0, inputs.mask))


class LeakThatIsNone(Linear):
    @property
    def causal(self):
        return False

    @property
    def per_token(self):
        return True


class CoupledInWordsOnly(Linear):
    @property
    def batch_coupled(self):
        return True

    @property
    def per_token(self):
        return True


class SoftmaxTwice(Linear):
    def forward(self, inputs):
        logits = self.score(inputs).softmax(-1)
        top, expert = logits.softmax(-1).topk(2)
        return self.routing(logits, expert, top)


class SoftmaxOfChosenProbabilities(Linear):
    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.softmax(-1).topk(2)
        return self.routing(logits, expert, top.softmax(-1))


class BiasNeverUsed(Linear):
    counts = ("load",)

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.register_buffer("bias", torch.zeros(num_experts))
        self.register_buffer("load", torch.zeros(num_experts))

    def forward(self, inputs):
        routing = super().forward(inputs)
        if self.training and torch.is_grad_enabled():
            real = (
                torch.ones(routing.plan.expert.shape)
                if inputs.mask is None
                else inputs.mask_T.float().unsqueeze(1).expand(-1, 2)
            )
            self.load.index_add_(0, routing.plan.expert.flatten(), real.flatten())
        return routing

    def update(self):
        self.bias += 0.01 * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class CountsInEvaluation(BiasNeverUsed):
    def forward(self, inputs):
        routing = Linear.forward(self, inputs)
        self.load.index_add_(0, routing.plan.expert.flatten(), torch.ones(routing.plan.expert.numel()))
        return routing


class MovesInForward(Linear):
    """Its bias follows each micro-batch, not each optimizer step."""

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, inputs):
        logits = self.score(inputs)
        expert = (logits + self.bias).topk(2).indices
        if self.training and torch.is_grad_enabled():
            load = torch.bincount(expert.flatten(), minlength=self.num_experts).float()
            self.bias = self.bias + 0.01 * torch.sign(load.mean() - load)
        return self.routing(logits, expert, logits.gather(1, expert).softmax(-1))


class LoadOverNoNoise(Linear):
    """The load loss divides by the noise's deviation, which is 0 in evaluation."""

    loss_weights = {"load": 0.1}
    noiseless = {}

    def forward(self, inputs):
        logits = self.score(inputs)
        deviation = torch.ones_like(logits) if self.training else torch.zeros_like(logits)
        top, expert = logits.topk(2)
        chance = torch.special.ndtr((logits - top[:, 1:]) / deviation)
        return self.routing(logits, expert, top.softmax(-1), {"load": cv_squared(chance.sum(0))})


class Unsorted(Linear):
    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.topk(4, sorted=False)
        return self.routing(logits, expert, top.softmax(-1))


class ChangesItsInput(Linear):
    def score(self, inputs):
        return F.linear(inputs.x_TD.mul_(1.01), self.weight)


class NarrowIndices(Linear):
    def forward(self, inputs):
        routing = super().forward(inputs)
        return self.routing(routing.logits, routing.plan.expert.int(), routing.plan.weight)


class DoubleWeights(Linear):
    def forward(self, inputs):
        routing = super().forward(inputs)
        return self.routing(routing.logits, routing.plan.expert, routing.plan.weight.double())


class NotANumber(Linear):
    """The logarithm of a negative logit."""

    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.topk(2)
        return self.routing(logits, expert, top.log())


class NegativeWeights(Linear):
    def forward(self, inputs):
        logits = self.score(inputs)
        top, expert = logits.topk(2)
        return self.routing(logits, expert, top)


class OneExpertTwice(Linear):
    def forward(self, inputs):
        routing = super().forward(inputs)
        return self.routing(routing.logits, routing.plan.expert[:, :1].expand(-1, 2), routing.plan.weight)


class NoiseInEvaluation(Linear):
    def score(self, inputs):
        return super().score(inputs) + 0.1 * torch.randn(inputs.x_TD.shape[0], self.num_experts)


class NoiseOfItsOwn(Linear):
    """From a generator that torch's seed does not reach."""

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.generator = torch.Generator().manual_seed(0)

    def score(self, inputs):
        return super().score(inputs) + torch.randn(inputs.x_TD.shape[0], self.num_experts, generator=self.generator)


class SelectsInHalfPrecision(Linear):
    def score(self, inputs):
        return F.linear(inputs.x_TD.bfloat16(), self.weight.bfloat16()).float()


class HeedsNoMask(Linear):
    loss_weights = {"balance": 0.01}

    def forward(self, inputs):
        routing = super().forward(inputs)
        loss = balance_loss(routing.probs, routing.plan.expert)
        return self.routing(routing.logits, routing.plan.expert, routing.plan.weight, {"balance": loss})


class NormalisedOverTheBatch(Linear):
    """Standard scores of the tokens, which are those of whatever batch they are in."""

    def score(self, inputs):
        x = inputs.x_TD
        return F.linear((x - x.mean(0)) / x.std(0).clamp_min(0.1), self.weight)


class WrongFormula(Linear):
    def cost(self, groups, positions):
        return Cost(2.0 * groups * positions * self.d_model, 0.0)


class WrongRows(Linear):
    def nominal_rows(self, groups, positions):
        return float(groups * positions)


class SharesOfTwo(Linear):
    """Twice the room, and twice the nominal cost, that was meant."""

    def shares(self, device):
        return torch.full((self.num_experts,), 2 / self.num_experts, dtype=torch.float64, device=device)


class HiddenState(Linear):
    """A plain attribute, which no checkpoint holds, moves the weights."""

    steps = 0

    def forward(self, inputs):
        logits = self.score(inputs) * (1 + self.steps)
        top, expert = logits.topk(2)
        return self.routing(logits, expert, top.softmax(-1))

    def update(self):
        self.steps += 1


class CountsCalls(Linear):
    """Asked twice under checkpointing, it would answer otherwise."""

    def __init__(self, d_model, num_experts):
        super().__init__(d_model, num_experts)
        self.calls = 0

    def score(self, inputs):
        self.calls += 1
        return super().score(inputs) * (-1) ** self.calls


class NeedsTwoTokens(Linear):
    def score(self, inputs):
        x = inputs.x_TD
        return F.linear(x / x.std(0), self.weight)


class OnlyEvenWidths(Linear):
    def score(self, inputs):
        half = inputs.x_TD.unflatten(-1, (2, -1)).mean(1)
        return F.linear(half, self.weight[:, : half.shape[1]])


BROKEN = {
    GatesOfOne: "gradients", OneExpertWithoutGradient: "gradients", LossOfCounts: "loss_gradients",
    HashOfPosition: "permutation_of_tokens", ExpertChoiceOverTheBatch: "causality", PredictorInWordsOnly: "causality",
    LeakThatIsNone: "causality", CoupledInWordsOnly: "batch_coupling", SoftmaxTwice: "one_softmax", SoftmaxOfChosenProbabilities: "one_softmax",
    BiasNeverUsed: "state_used", CountsInEvaluation: "updates", MovesInForward: "updates", LoadOverNoNoise: "losses",
    Unsorted: "best_first", ChangesItsInput: "inputs_unchanged", NarrowIndices: "shapes", DoubleWeights: "shapes",
    NotANumber: "values", NegativeWeights: "values", OneExpertTwice: "values", NoiseInEvaluation: "quiet_evaluation",
    NoiseOfItsOwn: "determinism", SelectsInHalfPrecision: "float32_selection", HeedsNoMask: "padding",
    NormalisedOverTheBatch: "batch_coupling", WrongFormula: "cost", WrongRows: "nominal_rows", SharesOfTwo: "shares", HiddenState: "save_and_load",
    NeedsTwoTokens: "smallest", OnlyEvenWidths: "any_shape",
}  # fmt: skip


@pytest.mark.parametrize("router", BROKEN, ids=lambda router: router.__name__)
def test_the_rule_named_for_it_catches_it(router):
    caught = RULES[BROKEN[router]].check(Subject(router))
    assert caught.failed
    assert caught.detail
    assert "\n" not in caught.detail


class TestLinear(RouterConformance):
    """What the broken ones depart from keeps every rule, so each of them fails for its own departure."""

    router = Linear
