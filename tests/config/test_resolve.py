"""Wrong words are one sentence each, and every value knows where it came from."""

from pathlib import Path

import pytest

from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.core.registry import only_for_now
from routelab.routers.router_registry import ROUTERS


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["bugdet.steps=3"], ["bugdet", "did you mean 'budget'"]),
        (["budget.setps=3"], ["budget.setps", "budget.steps"]),
        (["data=digit"], ["digit", "did you mean 'digits'"]),
        (["backbone=vitt"], ["vitt", "'vit'"]),
        (["budget.steps=0"], ["budget.steps=0", "above 0"]),
        (["budget.steps=10", "budget.flops=-1e9"], ["budget.flops=-1000000000.0", "above 0"]),
        (["budget.steps=abc"], ["budget.steps='abc'", "whole number"]),
        (["optimizer.lr=fast"], ["optimizer.lr='fast'", "a number"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1", "above 0"]),
        (["trainer.batch_size=0"], ["trainer.batch_size=0"]),
        (["experts.count=-2"], ["experts.count=-2", "at least 1"]),
        (["experts.shared=-1"], ["experts.shared=-1", "at least 0"]),
        (["experts.cuont=2"], ["experts.cuont", "experts.count"]),
        (["seeds=0"], ["seeds=0"]),
        (["seeds=[1,1]"], ["names a seed twice"]),
        (["seeds=[0,9223372036854775808]"], ["9223372036854775808", "must be at most 9223372036854775807"]),
        (["seeds=many"], ["seeds='many'", "auto"]),
        (["trainer.precision=fp8"], ["fp8", "bf16-mixed"]),
        (["match.on=params"], ["params", "flops_per_example"]),
        (["optimizer.schedule=cosin"], ["did you mean 'cosine'"]),
        (["novalue"], ["novalue", "key=value"]),
        (["budget=3"], ["budget=3", "flops, steps, epochs, seconds"]),
    ],
)
def test_wrong_words(words, parts):
    with pytest.raises(UsageError) as caught:
        resolve(words)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"a: [1\nb: }", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "cannot be read"),
        (b"- 1\n- 2\n", "keys and values"),
    ],
)
def test_broken_files(tmp_path, content, part):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=part):
        resolve(path)
    with pytest.raises(UsageError, match="configuration file"):
        resolve(tmp_path / "missing.yaml")


def test_a_later_budget_replaces_an_earlier_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("budget: {epochs: 2}\nseeds: 3\n")
    found = resolve(path, ["budget.flops=1e9"])
    assert (found.config.budget.flops, found.config.budget.epochs) == (1e9, None)
    assert found.name == "mine"
    shown = found.describe().splitlines()
    assert any(line.startswith("budget.flops: 1000000000.0") and line.endswith("# command line") for line in shown)
    assert any(line.startswith("seeds: 3") and line.endswith(f"# {path}") for line in shown)
    assert any(line.startswith("optimizer.clip") and line.endswith("# default") for line in shown)


def test_an_unquoted_on_is_a_key_whatever_yaml_makes_of_it(tmp_path):
    (tmp_path / "c.yaml").write_text("match: {on: none}\n")
    assert resolve(tmp_path / "c.yaml").config.match.on == "none"


def test_grids_and_labels():
    config = resolve(
        {"arms": ["dense", {"name": "switch", "capacity_factor": [1.0, 2.0], "label": "switch-cf{capacity_factor}"}]}
    ).config
    choices = arm_choices(config, config.arms)
    assert [choice.label for choice in choices] == ["dense", "switch-cf1.0", "switch-cf2.0"]
    assert [choice.spec.router.get("capacity_factor") for choice in choices] == [None, 1.0, 2.0]


def test_an_option_for_all_routers_reaches_those_that_take_it():
    config = resolve(["router.jitter=0.5"]).config
    by_label = {choice.label: choice.spec.router for choice in arm_choices(config, config.arms)}
    assert by_label["switch"] == {"jitter": 0.5}
    assert by_label["soft"] == {}
    config = resolve(["router.jiter=0.5"]).config
    with pytest.raises(UsageError, match="did you mean 'router.jitter'"):
        arm_choices(config, config.arms)


@pytest.mark.parametrize(
    ("arms", "part"),
    [
        (["swich"], "did you mean 'switch'"),
        ([{"label": "x"}], "`name`"),
        (["dense", "dense"], "labelled 'dense'"),
        ([], "arms is empty"),
    ],
)
def test_wrong_arms(arms, part):
    config = resolve({"arms": arms}).config
    with pytest.raises(UsageError, match=part):
        arm_choices(config, config.arms)


@pytest.mark.parametrize(
    ("words", "name", "source"),
    [
        ([], "vit", "default for data of the kind 'image'"),
        (["data=flights"], "tokens", "default for data of the kind 'table'"),
        (["data=flights", "backbone.depth=2"], "tokens", "default for data of the kind 'table'"),
        (["data=flights", "backbone=mlp"], "mlp", "command line"),
        (["backbone=mlp", "data=letter"], "mlp", "command line"),
    ],
)
def test_the_backbone_follows_the_data_unless_it_is_named(words, name, source):
    found = resolve(words)
    assert found.config.backbone["name"] == name
    assert any(
        line.startswith(f"backbone.name: {name}") and line.endswith(f"# {source}") for line in found.describe().splitlines()
    )
    assert arm_choices(found.config, ["dense"])[0].spec.backbone["name"] == name


def test_every_kind_of_input_has_a_default():
    from typing import get_args, get_type_hints

    from routelab.backbones.backbone_registry import DEFAULT_FOR
    from routelab.data.task import InputSpec

    assert set(DEFAULT_FOR) == set(get_args(get_type_hints(InputSpec)["kind"]))


def test_a_loader_that_does_not_say_its_kind_is_asked():
    from routelab.core.registry import only_for_now
    from routelab.data.base import DATA, load, register_data

    with only_for_now(DATA):
        register_data("mine")(lambda rows=5: load("flights", rows=rows))
        assert resolve({"data": {"name": "mine", "rows": 3}}).config.backbone == {"name": "tokens"}


def test_plugins_of_the_call_come_beside_those_of_the_configuration(tmp_path):
    """Not instead of them: the workers load what is listed here, and nothing else."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").touch()
    one, two = str(tmp_path / "one.py"), str(tmp_path / "two.py")
    assert resolve({"plugins": [one]}, plugins=[two, one]).config.plugins == [one, two]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "topk", "experts.cont": 3}, r"option of arm 'topk' 'experts.cont'.*'experts.count'"),
        ({"name": "dense", "optimizer.lrr": 3}, r"option of arm 'dense' 'optimizer.lrr'.*'optimizer.lr'"),
        ({"name": "dense", "depth": 3}, r"arm 'dense' takes no option 'depth'"),
    ],
)
def test_a_misspelt_key_of_one_arm_is_named_with_its_neighbour(given, said):
    config = resolve([]).config
    with pytest.raises(UsageError, match=said):
        arm_choices(config, [given])


def test_the_key_on_is_a_word_in_yaml(tmp_path):
    """YAML 1.1 takes it for true."""
    (tmp_path / "mine.yaml").write_text("match:\n  on: none\narms: [{name: dense, match: {on: 1}}]\n")
    config = resolve(tmp_path / "mine.yaml").config
    assert config.match.on == "none"
    assert config.arms[0]["match"] == {"on": 1}


def test_every_configuration_can_be_read():
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")):
        with only_for_now(ROUTERS):
            resolve(path)
