"""Names lead to routers, and a wrong name must say which one was meant: a sweep over typos is lost work."""

import subprocess
import sys
from typing import Literal

import pytest

from routelab.core.errors import UsageError
from routelab.core.options import check_options, option_names
from routelab.core.plugins import load_plugin
from routelab.core.registry import only_for_now
from routelab.routers.base import Router
from routelab.routers.build import build_router
from routelab.routers.router_registry import ROUTERS, register_router
from routelab.routers.topk import TopKRouter

PLUGIN = '''"""A plugin."""
from routelab.routers import Blend, Router, Routing, register_router

@register_router("mine")
class Mine(Router):
    """My own router."""

    def __init__(self, d_model, num_experts, *, strength: float = 1.0):
        super().__init__(d_model, num_experts)
        self.strength = strength

    def forward(self, inputs):
        weight = inputs.x_TD.new_full((len(inputs.x_TD), self.num_experts), self.strength / self.num_experts)
        return Routing(Blend(weight, self.num_experts))
'''


def test_built_in_names():
    assert {"switch", "top2", "topk", "expert_choice", "hash", "soft"} <= set(ROUTERS.names())
    assert ROUTERS.get("topk") is TopKRouter
    assert ROUTERS.origin("topk") == "built in"


def test_every_router_has_a_summary():
    for name in ROUTERS.names():
        assert ROUTERS.summary(name), name


def test_summaries_are_the_docstrings():
    """Read by parsing, so that listing is quick; the answer must not depend on whether the class was loaded."""
    code = (
        "import routelab.routers.router_registry as r, sys; print(r.ROUTERS.summary('soft')); assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ROUTERS.get("soft").__doc__.split("\n")[0]


def test_unknown_router_offers_the_nearest():
    with pytest.raises(UsageError, match="unknown router 'swich'; did you mean 'switch'"):
        build_router("swich", d_model=4, num_experts=2)


def test_unknown_option_offers_the_nearest():
    with pytest.raises(UsageError, match=r"option of router 'topk'.*'topk'.*did you mean 'top_k'"):
        build_router("topk", d_model=4, num_experts=2, topk=1)


def test_constructor_error_names_the_router():
    with pytest.raises(UsageError, match="router 'topk': top_k is 5"):
        build_router("topk", d_model=4, num_experts=2, top_k=5)


def test_values_are_checked_against_annotations():
    def part(
        a,
        b,
        *,
        whole: int = 1,
        number: float | Literal["auto"] | None = None,
        yes: bool = False,
        mode: Literal["x"] = "x",
        free=3,
    ):
        pass

    good = {"whole": 2, "number": 3, "yes": True, "mode": "anything", "free": object()}
    check_options("part", part, good)
    check_options("part", part, {"number": "auto"})
    check_options("part", part, {"number": None})
    for options, message in (
        ({"whole": 1.5}, "part: whole is 1.5; it must be a whole number$"),
        ({"whole": True}, "whole is True"),
        ({"number": "much"}, "number is 'much'; it must be a number or 'auto' or null$"),
        ({"number": True}, "number is True"),
        ({"yes": 1}, "yes is 1; it must be true or false"),
        ({"hole": 1}, "unknown option of part 'hole'; did you mean 'whole'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_options("part", part, options)


def test_option_names():
    assert option_names(TopKRouter) == ["top_k", "renormalize"]
    assert option_names(lambda d_model, num_experts, **rest: None) is None


def test_register_and_forget():
    with only_for_now(ROUTERS):

        @register_router("temporary")
        class Temporary(TopKRouter):
            """For now."""

        assert isinstance(build_router("temporary", d_model=4, num_experts=2), Temporary)
        assert ROUTERS.summary("temporary") == "For now."
    assert "temporary" not in ROUTERS


def test_a_name_cannot_be_taken_twice():
    """A plugin that replaced `topk` silently would change what published configs mean."""
    with only_for_now(ROUTERS), pytest.raises(UsageError, match="'topk' is defined twice, by built in and by"):

        @register_router("topk")
        class Other(Router):
            pass

    assert ROUTERS.get("topk") is TopKRouter


def test_plugin_file(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    with only_for_now(ROUTERS):
        load_plugin(str(path))
        load_plugin(str(path))
        assert build_router("mine", d_model=4, num_experts=2, strength=3.0).strength == 3.0
        assert str(path) in ROUTERS.origin("mine")
        assert ROUTERS.source("mine") == path
        with pytest.raises(UsageError, match="did you mean 'strength'"):
            build_router("mine", d_model=4, num_experts=2, strenght=3.0)


def test_two_plugins_of_one_file_name(tmp_path):
    with only_for_now(ROUTERS):
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "plugin.py").write_text(PLUGIN.replace("mine", name))
            load_plugin(str(tmp_path / name / "plugin.py"))
        assert ROUTERS.get("first") is not ROUTERS.get("second")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"ZeroDivisionError.*\(line 2\)"),
        ("def broken(:\n", r"SyntaxError.*\(line 1\)"),
    ],
)
def test_broken_plugin_names_the_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_plugin(str(path))


def test_missing_plugin():
    with pytest.raises(UsageError, match="there is no such file"):
        load_plugin("nowhere/plugin.py")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        load_plugin("no_such_module_anywhere")


def test_base_class_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="Router must define forward"):
        Router(4, 2)(None)
    with pytest.raises(ValueError, match="num_experts is 0"):
        Router(4, 0)
