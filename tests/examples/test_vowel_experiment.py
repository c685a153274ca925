"""The vowel experiment: what is stopped where, what is counted, and what its command says."""

import json

import pytest
import torch
import vowel_experiment as experiment
import vowels1991
from report_1991 import lines, verdict

from routelab.core.errors import UsageError

CONFIG = str(vowels1991.CONFIG)


def test_criteria_by_hand():
    """0.08 is a squared distance of 0.08 per case, of 0.16 if half of it is meant, of 0.32 if the mean over 4 outputs is."""
    criteria = experiment.criteria_of(0.08)
    found = {name: criterion.threshold for name, criterion in criteria.items() if criterion.measure == "prediction"}
    assert found == pytest.approx({"per case, prediction": 0.08, "halved, prediction": 0.16, "per output, prediction": 0.32})


def test_the_best_step_is_the_fastest_of_those_with_which_all_arrive():
    nan = float("nan")
    epochs = torch.tensor([[900.0, 1100.0], [500.0, 520.0], [10.0, nan], [nan, nan]]).flatten()
    step, curve = experiment.best_step(epochs, [1.0, 2.0, 4.0, 8.0])
    assert step == 2.0
    assert curve == {"1": 1000.0, "2": 510.0, "4": 10.0, "8": None}
    assert experiment.best_step(torch.full((4,), nan), [1.0, 2.0])[0] is None


def row(system, epochs, **more):
    gated = {"in_use": [2.0] * len(epochs)} if "experts" in system else {}
    shares = {"train": [0.9] * len(epochs), "test": [0.8] * len(epochs)}
    return {"system": system, "step": 1.0, "runs": 2, "reached": len(epochs), "epochs": epochs, **shares, **gated, **more}


def test_the_ratio_is_of_geometric_means():
    """100 and 400 against 400 and 1600: 200 / 800."""
    rows = [row("4 experts", [100.0, 400.0]), row("backprop, 6 hidden", [400.0, 1600.0])]
    found = experiment.ratio(rows, 4000)
    assert found["ratio"] == pytest.approx(0.25)
    assert found["low"] < 0.25 < found["high"]
    assert "need 0.25 [" in verdict(rows, 4000)
    assert verdict(rows, 4000).endswith("(published: 0.48)")


def test_runs_that_never_arrived_count_as_given_up():
    """100 and, given up, 400."""
    rows = [row("4 experts", [100.0]), row("backprop, 6 hidden", [400.0, 1600.0])]
    assert experiment.ratio(rows, 400)["ratio"] == pytest.approx(0.25)
    assert verdict(rows, 400).endswith("runs that never arrived count as 400 epochs: 1 of mixtures")
    never = {"system": "8 experts", "step": None}
    assert experiment.ratio([*rows, never], 400) is None


def test_lines_stand_beside_the_published_ones():
    first, second = lines([row("4 experts", [100.0, 400.0]), row("backprop, 6 hidden", [])], 4000)
    assert first[0] == "4 experts"
    assert first[3].startswith("250")
    assert first[-2:] == ("1124", "23")
    assert "0 within 4000 epochs" in second


def test_a_small_experiment_reaches_the_criterion_and_repeats_itself():
    settings = experiment.settings_of(
        CONFIG, ["runs=3", "search=[4]", "search_runs=2", "counts=[per output]", "experts=[4]", "hidden=[6]"]
    )
    reading = experiment.Reading("random", "softmax", 0.5)
    rows = {(each["criterion"], each["system"]): each for each in experiment.run_reading(settings, reading)}
    for system in ("4 experts", "backprop, 6 hidden"):
        found = rows["per output, prediction", system]
        assert found["reached"] == 3
        assert min(found["train"]) > 0.6
        assert found["step"] == 4
    mixture = rows["per output, prediction", "4 experts"]
    assert all(1 <= used <= 4 for used in mixture["in_use"])
    assert rows["per output, experts", "backprop, 6 hidden"]["epochs"] == found["epochs"]
    assert mixture["epochs"] == next(
        each["epochs"]
        for each in experiment.run_reading(settings, reading)
        if (each["criterion"], each["system"]) == ("per output, prediction", "4 experts")
    )


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("run=3", "unknown key"),
        ("runs=0", "runs=0 must be above 0"),
        ("search=[]", r"search=\[\] must hold at least one value"),
        ("counts=[per outptu]", "did you mean 'per output'"),
        ("splits=[firts]", "unknown data.split 'firts'; did you mean 'first'"),
        ("readings=[{outputs: softmix, scale: 1}]", "did you mean 'softmax'"),
        ("runs=many", "runs"),
    ],
)
def test_wrong_words_are_one_sentence(word, sentence):
    with pytest.raises(UsageError, match=sentence):
        experiment.settings_of(CONFIG, [word])


def test_the_command_prints_table_and_ratio(tmp_path, capsys):
    words = ["runs=2", "search=[4]", "search_runs=1", "counts=[per output]", "experts=[4]", "hidden=[6]", "splits=[random]"]
    words += ["readings=[{outputs: softmax, scale: 0.5}]", f"output={tmp_path / 'out'}"]
    vowels1991.main(words)
    out = capsys.readouterr().out
    assert "criterion 0.08 per output, prediction" in out
    assert "times the epochs of backprop (published: 0.48)" in out
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(kept["rows"]) == 2 * 2
    assert kept["settings"]["runs"] == 2
