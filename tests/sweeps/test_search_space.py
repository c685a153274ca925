"""The search space: what parts suggest, what a configuration makes of it, and what it refuses."""

import random

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from routelab.baselines.build import arm_class, arm_names, make_arm
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.core.errors import PluginError, UsageError
from routelab.core.registry import only_for_now
from routelab.data.base import load
from routelab.routers.base import Router, RouterInput, Routing
from routelab.routers.router_registry import ROUTERS, register_router
from routelab.sweeps.arm_settings import apply
from routelab.sweeps.distributions import points
from routelab.sweeps.search_overrides import wishes
from routelab.sweeps.search_space import check_keys, space_of

SMALL = ["backbone.d_model=16", "backbone.depth=1", "backbone.heads=2", "experts.count=4"]


def space(name, search=None, *words, grid=False, refusal=lambda choice: None):
    config = resolve([*SMALL, f"arms=[{name}]", *words]).config
    choice = arm_choices(config, config.arms)[0]
    return space_of(choice, wishes(search or {}), grid, refusal).narrowed()


def on_digits(choice):
    """Why an arm cannot be built for digits."""
    try:
        make_arm(choice.spec, load("digits").task, 0, sizing=True)
    except UsageError as error:
        return str(error)
    return None


def test_the_space_of_an_arm_comes_from_its_optimizer_its_router_and_its_experts():
    assert list(space("dense").dimensions()) == ["optimizer.lr", "optimizer.weight_decay"]
    found = space("switch").dimensions()
    assert list(found) == [
        "optimizer.lr", "optimizer.weight_decay", "experts.count", "router.capacity_factor", "router.loss_weights.balance",
        "router.init_scale",
    ]  # fmt: skip
    assert found["optimizer.lr"].log
    assert found["router.loss_weights.balance"] == FloatDistribution(1e-3, 1e-1, log=True)
    assert "router.top_k" in space("topk").dimensions()
    assert "router.capacity_factor" not in space("topk").dimensions()
    assert "experts.rank" in space("topk", None, "experts.kind=lora").dimensions()


def test_a_configuration_pins_narrows_and_widens():
    search = {"optimizer.lr": [1e-3, 1e-2], "router.capacity_factor": {"low": 1, "high": 4}, "router.jitter": [0.0, 0.1]}
    found = space("switch", {**search, "experts": {"count": 4}}).dimensions()
    assert found["optimizer.lr"] == CategoricalDistribution((1e-3, 1e-2))
    assert found["router.capacity_factor"] == FloatDistribution(1.0, 4.0)
    assert found["router.jitter"] == CategoricalDistribution((0.0, 0.1))
    assert "experts.count" not in found
    settings = space("switch", {"experts.count": 4}).suggest(lambda key, each: getattr(each, "low", None) or each.choices[0])
    assert settings["experts.count"] == 4


def test_several_learning_rates_of_a_configuration_are_choices():
    assert space("dense", None, "optimizer.lr=[0.001,0.01]").dimensions()["optimizer.lr"].choices == (0.001, 0.01)


def test_a_grid_takes_only_what_search_names_and_needs_an_end():
    grid = space("switch", {"optimizer.lr": [1e-3, 1e-2], "experts.count": {"low": 2, "high": 6, "step": 2}}, grid=True)
    assert {key: points(each) for key, each in grid.dimensions().items()} == {
        "optimizer.lr": [1e-3, 1e-2],
        "experts.count": [2, 4, 6],
    }
    with pytest.raises(UsageError, match=r"search\.optimizer\.lr has no end"):
        space("dense", {"optimizer.lr": {"low": 1e-3, "high": 1e-2}}, grid=True)


def test_defaults_and_published_settings_come_first():
    starts = space("switch").starts()
    assert starts[0]["optimizer.lr"] == 2e-3
    assert starts[0]["router.capacity_factor"] == 1.25
    assert [(start["router.capacity_factor"], start["router.init_scale"]) for start in starts[1:]] == [
        (1.0, None),
        (2.0, None),
        (1.25, 0.1),
    ]
    assert starts[0]["router.init_scale"] is None
    # What lies outside a narrowed space is left to the sampler.
    assert "optimizer.lr" not in space("switch", {"optimizer.lr": [1e-4, 1e-3]}).starts()[0]


def test_settings_reach_the_parts_that_they_name():
    choice = space("switch").choice
    made = apply(choice, {"optimizer.lr": 0.5, "router.loss_weights.balance": 0.3, "experts.count": 2, "backbone.depth": 3})
    assert (made.optimizer.lr, made.rates) == (0.5, (0.5,))
    assert made.spec.router["loss_weights"] == {"balance": 0.3}
    assert (made.spec.experts["count"], made.spec.backbone["depth"]) == (2, 3)
    assert choice.spec.experts["count"] == 4


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"optimizer.lr": []}, r"search\.optimizer\.lr=\[\] leaves no point"),
        ({"optimizer.lr": {"low": 1, "high": 0.1}}, "low=1 is above high=0.1"),
        ({"optimizer.lr": {"low": 0, "high": 1, "log": True}}, "log scale begins above 0"),
        ({"optimizer.lr": {"low": "a", "high": 1}}, r"low='a' must be a number"),
        ({"optimizer.lr": {"low": 0, "hihg": 1}}, "did you mean 'high'"),
        ({"optimizer": {"lr": {"low": 0, "high": 1, "step": 0}}}, "step=0 must be above 0"),
    ],
)
def test_a_space_without_points_is_refused_in_one_sentence(search, message):
    with pytest.raises(UsageError, match=message):
        wishes(search)


def test_a_name_that_no_arm_takes_is_refused_with_the_nearest():
    choice = space("switch").choice
    with pytest.raises(UsageError, match=r"did you mean 'search\.router\.capacity_factor'"):
        check_keys(wishes({"router.capacity_facto": 1.0}), [choice])
    check_keys(wishes({"router.capacity_factor": 1.0}), [choice])


def test_a_plugin_brings_its_space_and_a_broken_one_is_named():
    with only_for_now(ROUTERS):

        @register_router("mine")
        class Mine(Router):
            def __init__(self, d_model: int, num_experts: int, *, strength: float = 1.0) -> None:
                super().__init__(d_model, num_experts)

            def forward(self, inputs: RouterInput) -> Routing:
                raise AssertionError("never asked")

            @classmethod
            def suggest(cls, trial):
                return {"strength": trial.suggest_float("strength", 0.1, 10, log=True)}

        assert "router.strength" in space("mine").dimensions()
        assert space("mine").starts()[0]["router.strength"] == 1.0
        Mine.suggest = classmethod(lambda cls, trial: 1 / 0)
        with pytest.raises(PluginError, match="arm 'mine': suggest failed: ZeroDivisionError"):
            space("mine").dimensions()
        Mine.suggest = classmethod(lambda cls, trial: None)
        with pytest.raises(PluginError, match="arm 'mine': suggest failed: it must return a dict, and returned None"):
            space("mine").dimensions()


def tuned_arms():
    return [name for name in arm_names() if not arm_class(name).fit_outside_loop]


def test_the_first_trial_of_every_arm_is_the_arm_as_it_is():
    for name in tuned_arms():
        here = space(name, None, "experts.count=8")
        first = here.starts()[0]
        assert list(first) == list(here.dimensions()), name
        assert first == {key: here.current(key) for key in first}
        for start in here.starts()[1:]:
            assert start != first, f"{name} calls its default published"
        published = ROUTERS.get(name).published if name in ROUTERS.names() else ()
        assert len(here.starts()) == 1 + len(published), f"{name} has published settings outside its own space"


def test_every_arm_can_be_built_anywhere_in_its_space():
    """The ends of every range, and choices, in many combinations: what is suggested is accepted."""
    task, chance = load("digits").task, random.Random(0)

    def pick(key, each):
        return chance.choice(each.choices if hasattr(each, "choices") else (each.low, each.high))

    # Not here: a student needs a run for a teacher, and specialists need data with domains.
    for name in (each for each in tuned_arms() if each not in ("distilled", "specialists")):
        here = space(name, None, "experts.count=8")
        for _ in range(8):
            make_arm(apply(here.choice, here.suggest(pick)).spec, task, 0, sizing=True)


def test_what_a_user_would_tune_is_suggested():
    expected = {
        "top_p": "router.p", "expert_choice": "router.capacity_factor", "soft": "router.slots_per_expert",
        "sinkhorn": "router.tau", "deepseek": "router.bias_speed", "relu": "router.penalty_growth",
        "mixture_of_depths": "router.capacity", "moe_plus_plus": "router.tau", "hierarchical": "router.top_groups",
        "gpt_oss": "router.top_k", "bagging": "options.members", "adaboost": "options.shrinkage",
        "gradient_boosting": "options.subsample", "stacking": "options.penalty", "hierarchical_mixture": "options.depth",
    }  # fmt: skip
    for name, key in expected.items():
        assert key in space(name).dimensions(), name


def test_what_an_arms_own_entry_says_is_not_searched_unless_search_names_it():
    entry = "{name: topk, top_k: 4, loss_weights.balance: 0.02, label: k4}"
    found = space(entry)
    assert {"router.top_k", "router.loss_weights.balance"}.isdisjoint(found.dimensions())
    assert found.suggest(lambda key, each: found.current(key))["router.top_k"] == 4
    assert "router.top_k" in space(entry, {"router.top_k": [2, 4]}).dimensions()
    # For all routers alike it is only where the search begins.
    assert space("topk", None, "router.top_k=4").starts()[0]["router.top_k"] == 4
    assert "optimizer.lr" not in space("{name: dense, optimizer.lr: 0.003}").dimensions()
    assert space("{name: dense, optimizer.lr: [0.003, 0.01]}").dimensions()["optimizer.lr"].choices == (0.003, 0.01)
    assert "options.members" not in space("{name: bagging, members: 2}").dimensions()


def test_an_arms_own_option_goes_by_its_short_and_its_full_name():
    for key in ("members", "options.members"):
        found = space("bagging", {key: [3, 5]})
        assert found.dimensions()["options.members"].choices == (3, 5)
        assert key == "options.members" or key not in found.dimensions()
    assert space("bagging").starts()[0]["options.members"] == 8


@pytest.mark.parametrize(
    ("entry", "search", "key", "left"),
    [
        ("{name: topk, experts.count: 3}", {"router.top_k": [2, 3, 4]}, "router.top_k", CategoricalDistribution((2, 3))),
        # One choice of weight 1 could not learn, so topk refuses it.
        ("topk", {"experts.count": 3, "router.top_k": {"low": 1, "high": 8}}, "router.top_k", IntDistribution(2, 3)),
        ("{name: topk, top_k: 8}", {}, "experts.count", CategoricalDistribution((8, 16))),
        ("topk", {"experts.count": 2}, "router.top_k", None),
        ("topk", {"backbone.heads": 4, "backbone.d_model": {"low": 10, "high": 20, "step": 2}}, "backbone.d_model",
         IntDistribution(12, 20, step=2)),
        # What no arm can be built with stays: its trials say why.
        ("topk", {"experts.count": 2, "router.top_k": [4, 8]}, "router.top_k", CategoricalDistribution((4, 8))),
    ],
)  # fmt: skip
def test_values_that_never_go_with_what_is_pinned_are_not_searched(entry, search, key, left):
    assert space(entry, search, refusal=on_digits).dimensions().get(key) == left


def test_values_that_do_not_go_together_are_not_drawn_together():
    """The product of two lists, of which only some go together, and every one of whose values is drawn."""
    entry = "{name: topk, renormalize: false}"
    here = space(entry, {"experts.count": [2, 4], "router.top_k": [1, 2, 4]}, refusal=on_digits)
    found = set()
    for count in (2, 4):
        for k in (1, 2, 4):
            point = {"experts.count": count, "router.top_k": k}
            settings = here.suggest(lambda key, each, point=point: point.get(key, getattr(each, "low", None)))
            found.add((settings["experts.count"], settings["router.top_k"]))
    # (2, 4) gives way in what was asked for last, by as little as can be.
    assert found == {(2, 1), (2, 2), (4, 1), (4, 2), (4, 4)}


def test_arms_are_built_once_for_every_combination_of_few_values():
    built = []

    def noted(choice):
        built.append(choice)

    here = space("switch", refusal=noted)
    before = len(built)
    chance = random.Random(0)
    for _ in range(50):
        here.suggest(lambda key, each: chance.choice(each.choices) if hasattr(each, "choices") else chance.uniform(1, 2))
    # Three numbers of experts, two scales.
    assert len(built) <= 6
    assert before < 6


def test_a_published_setting_is_tried_with_what_goes_with_it():
    with only_for_now(ROUTERS):

        @register_router("mine")
        class Mine(Router):
            published = ({"top_k": 4},)
            tuned_top_k = (1, 4)

            def __init__(self, d_model: int, num_experts: int, *, top_k: int = 2) -> None:
                super().__init__(d_model, num_experts)
                if top_k > num_experts:
                    raise ValueError(f"top_k is {top_k}; it must be at most {num_experts}")

            def forward(self, inputs: RouterInput) -> Routing:
                raise AssertionError("never asked")

        starts = space("mine", {"experts.count": [2, 8]}, "experts.count=2", refusal=on_digits).starts()
        assert [(start["experts.count"], start["router.top_k"]) for start in starts] == [(2, 2), (8, 4)]
