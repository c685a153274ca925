"""Names of installed plugins: found with their origin, never replaced in silence, and broken ones harm nobody else."""

import sys

import pytest

from routelab.core import registry
from routelab.core.errors import PluginError, PluginWarning, UsageError
from routelab.core.plugins import load_plugin
from routelab.routers.router_registry import register_router

ROUTER = '''from routelab.routers import Blend, Router, Routing, register_router

{decorator}
class {name}(Router):
    """A router of {name}."""

    def forward(self, inputs):
        weight = inputs.x_TD.new_full((len(inputs.x_TD), self.num_experts), 1 / self.num_experts)
        return Routing(Blend(weight, self.num_experts))
'''
EXPERT = 'from torch import tanh\nfrom routelab.experts import Kind\n\nTANH = Kind(tanh)\n"""tanh(x up) down."""\n'
BACKBONE = (
    "from routelab.backbones import Backbone\n\nclass Mine(Backbone):\n    '''My own.'''\n"
    "    def __init__(self, inputs, outputs, feed_forward):\n        super().__init__(inputs, outputs)\n"
    "    def forward(self, x, mask=None):\n        return x, []\n"
)
BASELINE = (
    "from routelab.baselines import Arm\n\nclass Mine(Arm):\n    '''My own.'''\n    def build(self, task, seed, *, sizing=False): pass\n"
    "    def loss(self, batch, index): pass\n    def predict(self, batch): pass\n    def flops_per_example(self): return None\n"
)
DATA = "def mine():\n    '''My own.'''\n"
GROUPS = {
    "routers": (ROUTER.format(decorator="", name="Mine"), "Mine", "A router of Mine."),
    "experts": (EXPERT, "TANH", "tanh(x up) down."),
    "backbones": (BACKBONE, "Mine", "My own."),
    "baselines": (BASELINE, "Mine", "My own."),
    "data": (DATA, "mine", "My own."),
}


def router(name="Mine", decorator=""):
    return ROUTER.format(decorator=decorator, name=name)


@pytest.mark.parametrize("group", GROUPS)
def test_an_entry_point_of_every_group_is_found_with_its_origin(group, install, table):
    text, attribute, summary = GROUPS[group]
    install("pack", {group: {"mine": f"entry_{group}:{attribute}"}}, {f"entry_{group}.py": text})
    registry = table(group)
    assert "mine" in registry.names()
    assert registry.origin("mine") == "pack 1.2"
    assert registry.summary("mine") == summary
    assert registry.source("mine").name == f"entry_{group}.py"
    assert registry.get("mine") is not None
    assert registry.title("mine") == f"{registry.kind} 'mine' (pack 1.2)"
    assert registry.problem("mine") is None


@pytest.mark.parametrize("group", GROUPS)
def test_two_distributions_with_one_name_can_be_used_but_for_that_name(group, install, table):
    text, attribute, _ = GROUPS[group]
    for name in ("one", "two"):
        install(
            name,
            {group: {"mine": f"{name}_{group}:{attribute}", f"only_{name}": f"{name}_{group}:{attribute}"}},
            {f"{name}_{group}.py": text},
        )
    registry = table(group)
    with pytest.warns(PluginWarning, match="'mine' is defined twice, by one 1.2 and by two 1.2; rename one of them"):
        assert "mine" in registry.names()
    with pytest.raises(PluginError, match="'mine' is defined twice, by one 1.2 and by two 1.2"):
        registry.get("mine")
    assert registry.origin("mine") == "one 1.2 and two 1.2"
    assert registry.get("only_one") is not None
    assert registry.get("only_two") is not None


def test_an_installed_plugin_never_replaces_what_is_built_in(install, table):
    install("pack", {"routers": {"topk": "taken:Mine", "fine": "taken:Mine"}}, {"taken.py": router()})
    registry = table("routers")
    with pytest.warns(PluginWarning, match="'topk' is defined twice, by built in and by pack 1.2"):
        registry.names()
    assert registry.get("topk").__name__ == "TopKRouter"
    assert registry.get("fine").__name__ == "Mine"


@pytest.mark.parametrize("first", ["file", "names"])
def test_a_plugin_asked_for_whose_name_is_installed_is_refused_whoever_comes_first(first, install, table, tmp_path):
    install("pack", {"routers": {"mine": "settled:Mine"}}, {"settled.py": router()})
    (tmp_path / "again.py").write_text(router(decorator="@register_router('mine')"))
    registry = table("routers")
    if first == "names":
        registry.names()
    with pytest.raises(UsageError, match=r"'mine' is defined twice, by pack 1.2 and by plugin .*again.py"):
        load_plugin(str(tmp_path / "again.py"))


def test_two_files_with_one_name_are_refused(table, tmp_path):
    table("routers")
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(router(decorator="@register_router('mine')"))
    load_plugin(str(tmp_path / "first.py"))
    with pytest.raises(UsageError, match=r"defined twice, by plugin .*first.py and by plugin .*second.py"):
        load_plugin(str(tmp_path / "second.py"))


@pytest.mark.parametrize("first", ["import", "names"])
def test_a_decorator_beside_its_own_entry_point_is_one_definition(first, install, table):
    """The entry point names the package, which passes on a class that its decorator knows by a deeper module."""
    inner = router(decorator="@register_router('mine')")
    files = {"both/__init__.py": "from both.inner import Mine\n", "both/inner.py": inner}
    install("pack", {"routers": {"mine": "both:Mine"}}, files)
    registry = table("routers")
    if first == "import":
        load_plugin("both")
    assert registry.names().count("mine") == 1
    assert registry.get("mine").__module__ == "both.inner"
    assert registry.origin("mine") == "pack 1.2"
    assert [path.name for path in registry.sources("mine")] == ["__init__.py", "inner.py"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_of_that_name\n", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')\n", "SystemExit: bye"),
        ("def (\n", "SyntaxError: invalid syntax"),
        ("x = 1\n", "AttributeError: module 'broken_entry' has no attribute 'Mine'"),
        (None, "ModuleNotFoundError: No module named 'broken_entry'"),
    ],
)
def test_an_entry_point_that_fails_to_import_is_a_warning_by_name_and_the_rest_works(text, reason, install, table):
    install("pack", {"routers": {"broken": "broken_entry:Mine"}}, {} if text is None else {"broken_entry.py": text})
    registry = table("routers")
    assert {"broken", "topk"} <= set(registry.names())
    assert registry.summary("broken") == ""
    registry.sources("broken")
    with pytest.warns(PluginWarning, match="router 'broken' .pack 1.2. cannot be imported") as said:
        problem = registry.problem("broken")
    assert reason in problem == str(said[0].message)
    with pytest.raises(PluginError, match="cannot be imported"):
        registry.get("broken")
    assert registry.get("topk").__name__ == "TopKRouter"


def test_looking_for_a_source_imports_no_package(install, table):
    files = {"loud/__init__.py": "raise RuntimeError('imported')\n", "loud/part.py": router()}
    install("pack", {"routers": {"mine": "loud.part:Mine"}}, files)
    registry = table("routers")
    assert registry.summary("mine") == "A router of Mine."
    assert registry.source("mine").name == "part.py"
    assert "loud" not in sys.modules


def test_a_kind_made_by_a_call_knows_its_file(table, tmp_path, monkeypatch):
    """Else its code would not be part of a cell's address, and two kinds of one name would not be told apart."""
    from routelab.experts import feed_forward

    registry = table("experts")
    monkeypatch.setattr(feed_forward, "KINDS", registry)
    text = (
        "from torch import tanh\nfrom routelab.experts import Kind, register_expert\n\n"
        "TANH = register_expert('mine')(Kind(tanh))\n'''tanh(x up) down.'''\n"
    )
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(text)
    load_plugin(str(tmp_path / "first.py"))
    assert registry.source("mine") == tmp_path / "first.py"
    assert registry.summary("mine") == "tanh(x up) down."
    with pytest.raises(UsageError, match="expert kind 'mine' is defined twice"):
        load_plugin(str(tmp_path / "second.py"))


def test_a_plugin_that_leaves_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=r"leaves.py' failed to import: SystemExit: 3 .line 1."):
        load_plugin(str(tmp_path / "leaves.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="No module named 'leaves'; a file is given with its ending: leaves.py"):
        load_plugin("leaves")


def test_registering_the_same_class_twice_is_no_clash(table):
    registry = table("routers")
    from routelab.routers.topk import TopKRouter

    assert register_router("mine")(register_router("mine")(TopKRouter)) is registry.get("mine")


def test_a_file_counts_with_the_helpers_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_helper.py").write_text("import b_helper, math, torch\n")
    (tmp_path / "b_helper.py").write_text("import a_helper\nK = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "helped.py").write_text("from a_helper import b_helper\nfrom routelab import Router\n")
    found = registry._with_helpers(tmp_path / "helped.py")
    assert [path.name for path in found] == ["a_helper.py", "b_helper.py", "helped.py"]
