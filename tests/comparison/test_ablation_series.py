"""Series: which arms differ in one option alone, and what their figure and table say."""

import pytest

from routelab.comparison.ablation_series import series_of
from routelab.config.arm_grid import arm_choices
from routelab.config.resolve import resolve
from routelab.core.errors import UsageError
from routelab.report.plots.series_plots import figures_of_arm, series


def found(arms):
    config = resolve([f"arms={arms}"]).config
    return series_of(arm_choices(config, config.arms))


def test_a_grid_of_one_option_is_a_series_and_single_arms_are_none():
    (made,) = found("[dense,switch,{name: topk, top_k: [1,2,4], renormalize: false}]")
    assert (made["name"], made["options"]) == ("topk", ["top_k"])
    assert [(point["arm"], point["at"]) for point in made["points"]] == [
        ("topk-top_k=1", [1]), ("topk-top_k=2", [2]), ("topk-top_k=4", [4]),
    ]  # fmt: skip


def test_options_that_vary_together_are_one_series():
    each = "{name: topk, renormalize: false, each: [{experts.count: 8, top_k: 1},{experts.count: 16, top_k: 2}], label: 'e{experts_count}'}"
    (made,) = found(f"[dense,{each}]")
    assert made["options"] == ["experts.count", "top_k"]
    assert made["points"] == [{"arm": "e8", "at": [8, 1]}, {"arm": "e16", "at": [16, 2]}]


def test_a_grid_of_two_options_is_a_series_for_each_value_of_the_second():
    made = found("[{name: switch, experts.count: [2,4], capacity_factor: [1.0,2.0]}]")
    assert [(each["name"], each["options"]) for each in made] == [
        ("switch, capacity_factor=1.0", ["experts.count"]), ("switch, capacity_factor=2.0", ["experts.count"]),
    ]  # fmt: skip
    assert [point["at"] for point in made[1]["points"]] == [[2], [4]]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("{name: topk, each: 3}", "must be a list of mappings"),
        ("{name: topk, each: [{top_k: 1},{experts.count: 4}]}", "all with the same options"),
        ("{name: topk, top_k: 1, each: [{top_k: 1}]}", "each varies 'top_k', which is given beside it too"),
    ],
)
def test_wrong_words_are_one_sentence(item, sentence):
    with pytest.raises(UsageError, match=sentence):
        found(f"[{item}]")


ARM = {
    "loss": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}, "n": 3, "difference": {"mean": -0.1, "low": -0.2, "high": 0.0},
    "total_params": 1000, "memory": {"parameters": 4000.0, "optimizer": 8000.0, "peak": 1e6},
    "inference": {"1": 0.01, "16": 0.002}, "examples_per_second": 50.0, "state": "open",
}  # fmt: skip


def test_speeds_are_of_tokens_where_there_are_any_and_of_the_largest_batch():
    """0.002 s for an example of 128 tokens: 64,000 tokens a second."""
    assert figures_of_arm({"tokens_per_example": 128}, ARM)["predicted"] == pytest.approx(64_000)
    assert figures_of_arm({"tokens_per_example": 128}, ARM)["trained"] == 6400.0
    assert figures_of_arm({"tokens_per_example": None}, ARM)["predicted"] == pytest.approx(500)
    assert figures_of_arm({}, ARM)["held"] == 12_000
    assert figures_of_arm({}, {})["predicted"] is None


def test_one_figure_for_each_option_with_its_table():
    points = [{"arm": "a", "at": [None]}, {"arm": "b", "at": [2.0]}]
    lines = [{"name": "one", "options": ["capacity_factor"], "points": points}]
    lines.append({"name": "two", "options": ["top_k"], "points": [{"arm": "a", "at": [1]}, {"arm": "b", "at": [64]}]})
    arms = {"dense": ARM | {"difference": None}, "a": ARM, "b": ARM | {"loss": None, "difference": None, "inference": {}}}
    drawn = series({"arms": arms, "reference": "dense", "series": lines, "tokens_per_example": 128})
    assert [each.name for each in drawn] == ["series-capacity_factor", "series-top_k"]
    rows = [dict(zip(drawn[0].table[0], row, strict=True)) for row in drawn[0].table[1:]]
    assert [row["arm"] for row in rows] == ["dense", "a", "b"]
    assert rows[1]["change_from_dense"] == "-9.52%"  # exp(-0.1) - 1
    assert rows[1]["tokens_per_second_predicting"] == pytest.approx(64_000)
    assert [label.get_text() for label in drawn[0].figure.axes[0].get_xticklabels()] == ["null", "2.0"]
    assert drawn[1].figure.axes[0].get_xscale() == "log"
    assert all(len(row) == len(drawn[0].table[0]) for row in drawn[0].table)


def test_an_arm_that_failed_lends_its_name_to_no_other_line():
    points = [{"name": name, "options": ["top_k"], "points": [{"arm": name, "at": [1]}]} for name in ("gone", "here")]
    arms = {"dense": ARM, "gone": ARM | {"loss": None}, "here": ARM}
    (drawn,) = series({"arms": arms, "reference": "dense", "series": points})
    (legend,) = drawn.figure.legends
    shown = {text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert list(shown) == ["here", "dense"]
    assert shown["here"] == drawn.figure.axes[0].get_lines()[0].get_color()
    (alone,) = series({"arms": arms, "reference": None, "series": points})
    assert alone.table[0][5] == "change_from_reference"
