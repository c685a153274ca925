"""What a plugin may not do, each in one sentence that names the plugin and the rule."""

from dataclasses import replace

import pytest
import torch

from routelab.backbones.base import BACKBONES, Backbone, must_be_backbone
from routelab.baselines.base import Arm, ArmSpec, Prediction, StepLoss, must_be_arm, predicted, step_loss
from routelab.baselines.build import make_arm, plugins_in
from routelab.core.errors import PluginError, UsageError
from routelab.core.registry import only_for_now
from routelab.data.base import DATA, DataSet, load
from routelab.data.task import Batch, InputSpec, Task
from routelab.experts.feed_forward import Kind, must_be_kind
from routelab.routers.base import Router, RouterInput, Routing, must_be_router, routed
from routelab.routers.plans import TopK
from routelab.routers.router_registry import ROUTERS

E, D = 4, 8
TASK = Task("toy", "classification", InputSpec("image", (1, 8, 8)), 3)


class Good(Router):
    """Expert 0 for every token."""

    def forward(self, inputs):
        tokens = inputs.x_TD.shape[0]
        return Routing(TopK(torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1), self.num_experts))


def test_good_parts_pass():
    must_be_router(Good)
    must_be_kind(Kind(torch.tanh))
    must_be_kind(Kind(torch.tanh, gated=True))


class OneArgument(Router):
    def __init__(self, d_model):
        super().__init__(d_model, 1)

    forward = Good.forward


class NoInput(Router):
    def forward(self):
        pass


class TwoInputs(Router):
    def forward(self, x, mask):
        pass


class NoForward(Router):
    pass


@pytest.mark.parametrize(
    ("check", "value", "rule"),
    [
        (must_be_router, 3, "must be a subclass of Router; it is of type int"),
        (must_be_router, None, "it is of type NoneType"),
        (must_be_router, Good(D, E), "it is of type Good"),
        (must_be_router, Backbone, "it is the class Backbone"),
        (must_be_router, OneArgument, "constructor must take .d_model, num_experts, ..options.: too many positional"),
        (must_be_router, NoForward, "must define forward.inputs.$"),
        (must_be_router, NoInput, "must define forward.inputs.: too many positional"),
        (must_be_router, TwoInputs, "must define forward.inputs.: missing a required argument: 'mask'"),
        (must_be_kind, torch.tanh, "must be a Kind; it is of type builtin_function_or_method"),
        (must_be_kind, Kind(lambda up: up.sum()), r"keep floating point and the shape \(2, 3\); it returned torch.float32 of shape \(\)"),
        (must_be_kind, Kind(lambda up: None), "it returned NoneType"),
        (must_be_kind, Kind(lambda up, gate: up), "its activation fails on a tensor of shape .2, 3.: TypeError"),
        (must_be_kind, Kind(torch.log), "must be finite between -1 and 1"),
        (must_be_backbone, Good, "must be a subclass of Backbone; it is the class Good"),
        (must_be_backbone, Backbone, "its constructor must take .inputs, outputs, feed_forward"),
        (must_be_arm, Good, "must be a subclass of Arm"),
        (must_be_arm, Arm, r"must define build\(task, seed\)"),
    ],
)  # fmt: skip
def test_what_is_no_such_part_at_all(check, value, rule):
    with pytest.raises(ValueError, match=rule):
        check(value)


def answer(**changes):
    """A good answer for 2 groups of 3 tokens, with changes."""
    plan = {"expert": torch.zeros(6, 1, dtype=torch.int64), "weight": torch.ones(6, 1), "num_experts": E}
    rest = {key: changes.pop(key) for key in ("losses", "logits", "probs") if key in changes}
    return Routing(TopK(**{**plan, **changes}), **rest)


ANSWERS = [
    (None, "forward returned NoneType; it must return a Routing"),
    ((1, 2), "forward returned tuple"),
    (Routing("topk"), "a plan must be one of TopK, PerExpert, Ragged, Slots, Blend; got str"),
    (answer(expert=torch.zeros(6, 1)), "TopK.expert must be int64; got torch.float32"),
    (answer(expert=torch.zeros(6, 1, dtype=torch.int32)), "TopK.expert must be int64; got torch.int32"),
    (answer(expert=[0]), "TopK.expert must be a tensor; got list"),
    (answer(weight=torch.ones(6, 2)), "TopK.weight has shape .6, 2., but its fellow fields have .6, 1."),
    (answer(weight=torch.ones(6, 1, dtype=torch.int64)), "TopK.weight must be floating point"),
    (answer(expert=torch.zeros(2, 3, dtype=torch.int64)), "TopK.expert has shape .2, 3.; for 2 groups of 3 tokens"),
    (answer(expert=torch.full((6, 1), E)), "TopK.expert holds 4; it must be 0 to 3"),
    (answer(expert=torch.full((6, 1), -1)), "TopK.expert holds -1; it must be 0 to 3"),
    (answer(weight=torch.full((6, 1), torch.nan)), "TopK.weight holds a value that is not finite"),
    (answer(weight=torch.full((6, 1), torch.inf)), "TopK.weight holds a value that is not finite"),
    (answer(num_experts=5), "the plan names 5 experts; there are 4"),
    (answer(losses=torch.zeros(())), "Routing.losses must map names to scalars; got Tensor"),
    (answer(losses={"balance": 1.0}), "the loss 'balance' must be a floating point scalar; got float"),
    (answer(losses={"balance": torch.ones(3)}), "the loss 'balance' must be a floating point scalar; got a tensor of torch.float32"),
    (answer(losses={"balance": torch.tensor(torch.nan)}), "the loss 'balance' is nan"),
    (answer(losses={"spread": torch.zeros(())}), "forward returns a loss 'spread' that `loss_weights` of the class does not name"),
    (answer(probs=[1]), "Routing.probs must be a tensor or None; got list"),
]  # fmt: skip


class Fixed(Router):
    """Gives one answer."""

    loss_weights = {"balance": 1e-2}

    def forward(self, inputs):
        return self.answer


@pytest.mark.parametrize(("given", "rule"), ANSWERS)
def test_a_wrong_answer_names_the_router_its_origin_and_the_rule(given, rule):
    router = Fixed(D, E)
    router.answer = given
    here = rf"router 'mine' .module {Fixed.__module__}. broke the contract: "
    with only_for_now(ROUTERS):
        ROUTERS.register("mine")(Fixed)
        with pytest.raises(PluginError, match=here + rule) as caught:
            routed(router, RouterInput(torch.randn(2, 3, D)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_router_is_not_blamed_for_tokens_that_are_not_finite():
    """Training has diverged: the loop says that, and which rate to try."""
    router = Fixed(D, E)
    router.answer = answer(weight=torch.full((6, 1), torch.nan))
    routed(router, RouterInput(torch.full((2, 3, D), torch.nan)))


def test_values_cost_no_wait_where_the_tokens_are_not_on_a_cpu():
    router = Fixed(D, E)
    router.answer = answer(expert=torch.zeros(6, 1, dtype=torch.int64, device="meta"), weight=torch.ones(6, 1, device="meta"))
    routed(router, RouterInput(torch.randn(2, 3, D, device="meta")))  # reading a value of the meta device would raise


def arm_of(**methods):
    return type("Mine", (Arm,), methods)(ArmSpec("mine"))


BATCH = Batch(torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("returned", "rule"),
    [
        (torch.zeros(()), "arm Mine broke the contract: loss returned Tensor; it must return a StepLoss"),
        (StepLoss(torch.zeros(5), None), r"StepLoss.task must be a scalar tensor, the mean over the batch; got shape \(5,\)"),
        (StepLoss(1.0, None), "must be a scalar tensor, the mean over the batch; got float"),
    ],
)
def test_a_loss_that_is_none(returned, rule):
    with pytest.raises(PluginError, match=rule):
        step_loss(arm_of(loss=lambda self, batch, index: returned), BATCH, torch.arange(5))


@pytest.mark.parametrize(
    ("returned", "rule"),
    [
        (torch.zeros(5, 3), "arm Mine broke the contract: predict returned Tensor; it must return a Prediction"),
        (Prediction(torch.zeros(4, 3), None), r"must have a row for each of 5 examples; got shape \(4, 3\)"),
    ],
)
def test_a_prediction_that_is_none(returned, rule):
    with pytest.raises(PluginError, match=rule):
        predicted(arm_of(predict=lambda self, batch: returned), BATCH)


class Wrong(Backbone):
    """A backbone that does one thing wrong at a time."""

    def __init__(self, inputs, outputs, feed_forward, *, fault: str = ""):
        super().__init__(inputs, outputs)
        self.fault = fault
        if fault == "raises":
            raise RuntimeError("no idea\nat all")
        if fault != "unset":
            self.d_model, self.positions = 4, 1
        self.head = torch.nn.Linear(64, outputs)

    def forward(self, x, mask=None):
        out = self.head(x.flatten(1))
        return {"bare": out, "shape": (out[:, :1], []), "routings": (out, [None])}[self.fault]


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("raises", "cannot be built: RuntimeError: no idea$"),
        ("unset", "broke the contract: its constructor must set d_model, a whole number"),
        ("bare", r"broke the contract: forward returned Tensor; it must return \(outputs, routings\)"),
        ("shape", r"broke the contract: forward gave outputs of shape \(5, 1\); they must be \(5, ..., 3\)"),
        ("routings", "broke the contract: forward returned 1 routings; it must return one for each of 0 mixture layers"),
    ],
)
def test_a_wrong_backbone_is_named(fault, rule):
    with only_for_now(BACKBONES):
        BACKBONES.register("wrong")(Wrong)
        spec = ArmSpec("dense", {"name": "wrong", "fault": fault})
        assert plugins_in(spec) == {"wrong": f"backbone 'wrong' (module {__name__})"}
        with pytest.raises(PluginError, match=rf"backbone 'wrong' .module {__name__}. {rule}"):
            make_arm(spec, TASK, 0).predict(BATCH)


def data(**changes):
    task = Task("mine", "classification", InputSpec("table", (2,)), 3)
    whole = {"inputs": torch.zeros(6, 2), "targets": torch.arange(6) % 3}
    return DataSet(task, *(Batch(**whole),) * 2, Batch(**{**whole, **changes}), "here")


@pytest.mark.parametrize(
    ("loader", "rule"),
    [
        (lambda: 3, "broke the contract: it must return a DataSet; it returned int"),
        (lambda: data(inputs=torch.zeros(6, 3)), r"test has inputs of shape \(3,\); the task says \(2,\)"),
        (lambda: data(inputs=torch.full((6, 2), torch.nan)), "test has inputs that are not finite"),
        (lambda: data(targets=torch.arange(5)), "test has 6 inputs and 5 targets; it must have as many of both"),
        (lambda: data(targets=torch.arange(6)), "labels of test run from 0 to 5; they must be 0 to 2"),
        (lambda: data(targets=torch.zeros(6)), "labels of test must be int64; got torch.float32"),
        (
            lambda: replace(
                data(targets=torch.full((6, 1), torch.nan)), task=Task("m", "regression", InputSpec("table", (2,)), 1)
            ),
            "test has targets that are not finite",
        ),
        (lambda: {}["gone"], "cannot be built: KeyError: 'gone'"),
        ("text", "broke the contract: it must be a function that returns a DataSet; it is of type str"),
    ],
)
def test_a_wrong_data_set_is_named(loader, rule):
    with only_for_now(DATA):
        DATA.register("wrong")(loader)
        with pytest.raises(UsageError, match=rf"data set 'wrong' .module {__name__}. .*{rule}"):
            load("wrong")


def test_a_good_data_set_loads():
    with only_for_now(DATA):
        DATA.register("mine")(data)
        assert len(load("mine").test) == 6
