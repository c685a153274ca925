"""The map of keys translates configurations and recordings; comparisons name what differs."""

import pytest
from against_commit import differences
from committed import differences as committed_differences
from committed import is_close
from key_map import KEY_MAP, ORIGINAL, KeyMap, KeyMapError, Names

MAP = KeyMap(
    version=1,
    config=Names(exact={"trainer.accumulate": "trainer.micro_batches", "arm.hash.method": "rule", "workers": None}),
    config_values={"arm.name": {"gated_mixture": "gated"}, "arm.hash.method": {"random": "drawn"}, "match.on": {"none": "off"}},
    record=Names(exact={"load_cv": "load_variation"}, patterns=((r"^curve\.(\d+)\.val/", r"curve.\1.validation/"),)),
    summary=Names(patterns=((r"\.p_t$", ".p_value"),), added=(r"arms\..*\.new",)),
    columns=Names(exact={"test_loss": "loss"}),
    weights=Names(exact={"network.head.weight": "head"}, patterns=((r"\bfeed_forward\.experts\.", "mixture.bank."),)),
)


def test_config():
    config = {
        "trainer.accumulate": 2,
        "match.on": "none",
        "workers": 1,
        "arm": {"name": "hash", "method": ["random", "bigram"], "experts.count": 4},
        "arms": ["gated_mixture", {"name": "topk", "method": "random"}],
    }
    assert MAP.translate_config(config) == {
        "trainer.micro_batches": 2,
        "match.on": "off",
        "arm": {"name": "hash", "rule": ["drawn", "bigram"], "experts.count": 4},
        "arms": ["gated", {"name": "topk", "method": "random"}],
    }


def test_recording():
    weights = {"network.head.weight": [1], "network.blocks.0.feed_forward.experts.up": [2]}
    record = {"load_cv": 1.0, "curve.0.val/loss": 2.0, "steps": 3}
    sections = {"record": record, "weights": weights, "start": {"0.weights": [4]}}
    compared = {"summary": {"arms.switch.p_t": 0.5}, "columns:results.csv": {"test_loss": [1.0], "arm": ["switch"]}}
    translated = MAP.translate_recording({"torch": "2", "cases": {"a": sections, "compare/b": compared}})
    assert translated["torch"] == "2"
    assert translated["cases"]["a"] == {
        "record": {"load_variation": 1.0, "curve.0.validation/loss": 2.0, "steps": 3},
        "weights": {"head": [1], "network.blocks.0.mixture.bank.up": [2]},
        "start": {"0.weights": [4]},
    }
    assert translated["cases"]["compare/b"] == {
        "summary": {"arms.switch.p_value": 0.5},
        "columns:results.csv": {"loss": [1.0], "arm": ["switch"]},
    }


def test_original_map_changes_nothing():
    recording = {"cases": {"a": {"record": {"load_cv": 1.0}, "weights": {"network.head.weight": [1]}}}}
    assert ORIGINAL.translate_recording(recording) == recording
    assert ORIGINAL.version == 0
    assert KEY_MAP.version >= 0


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(KeyMapError, match="'steps'"):
        Names(exact={"step": "steps"}).translate_all({"step": 1, "steps": 2})


def test_exact_comparison_names_case_and_key():
    old = {"cases": {"a": {"record": {"loss": 1.0, "gone": 2, "zero": 0.0}}, "b": {"summary": {}}}}
    new = {
        "cases": {"a": {"record": {"loss": 1.0000000000000002, "zero": -0.0}}, "b": {"summary": {"arms.x.new": 1, "other": 1}}}
    }
    lines, compared = differences(old, new, MAP)
    assert compared == 3
    assert [line.partition(":")[0] for line in lines] == [
        "case 'a', record 'gone'",
        "case 'a', record 'loss'",
        "case 'a', record 'zero'",
        "case 'b', summary 'other'",
    ]


@pytest.mark.parametrize(
    ("kind", "committed", "present", "expected"),
    [
        ("record", 1.0, 1.000009, True),
        ("record", 1.0, 1.00002, False),
        ("record", None, 1.0, False),
        ("record", True, 1, True),
        ("record", float("nan"), float("nan"), True),
        ("columns:results.csv", [1.0, "ok"], [1.000001, "ok"], True),
        ("columns:results.csv", [1.0, "ok"], [1.0, "failed"], False),
        # The norm is 100: the sum may differ by 1e-3, the sum of squares by 0.1.
        ("weights", [4, 0.0, 1e4], [4, 9e-4, 1e4], True),
        ("weights", [4, 0.0, 1e4], [4, 2e-3, 1e4], False),
        ("weights", [4, 0.0, 1e4], [4, 0.0, 1e4 + 0.2], False),
        ("weights", [4, 0.0, 1e4], [5, 0.0, 1e4], False),
    ],
)
def test_tolerance(kind, committed, present, expected):
    assert is_close(kind, committed, present) is expected


def test_committed_comparison_names_case_key_and_values():
    lines = list(committed_differences("a", {"record": {"loss": 1.0, "gone": 2}}, {"record": {"loss": 1.5}}))
    assert lines == [
        "case 'a', record 'loss': committed 1.0, present 1.5",
        "case 'a', record 'gone': committed 2, the present tree lacks it",
    ]
