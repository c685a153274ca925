"""`routelab count` and `routelab list presets`."""

import json
import subprocess
import sys

import pytest

from routelab.cli.app import app, guarded
from routelab.comparison.prepared_comparison import plan
from routelab.config.resolve import resolve
from routelab.presets import PRESETS

ARMS = ["data=digits", "arms=[dense,top2,{name: switch, experts.count: 4}]", "backbone.d_model=16", "backbone.depth=2"]


def called(capsys, *words):
    code = guarded(lambda: app(list(words), standalone_mode=False))
    return code, capsys.readouterr()


def test_a_preset_needs_no_torch():
    code = (
        "import sys\nfrom routelab.cli.app import app\n"
        "app(['count', 'mixtral-8x7b', '--json'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert (counted["total_params"], counted["active_params"]) == (46_702_792_704, 12_879_925_248)
    assert all(isinstance(counted[key], int) for key in ("flops_per_token", "weight_bytes", "cache_bytes_per_token"))
    assert counted["layer"][:3] == ["arm=topk", "router.top_k=2", "router.renormalize=true"]


def test_context_and_precision_count(capsys):
    code, said = called(capsys, "count", "gpt-oss-20b", "--context", "1000", "--precision", "mxfp4", "--json")
    assert code == 0
    counted, preset = json.loads(said.out), PRESETS["gpt-oss-20b"]
    assert counted["flops_per_token"] == preset.flops(1000)
    assert counted["cache_bytes"] == 2 * preset.cached(1000)
    assert counted["parts"]["experts"] == preset.parts().experts
    code, said = called(capsys, "count", "gpt-oss-20b", "--context", "1000", "--precision", "mxfp4")
    assert f"{counted['flops_per_token']:,}" in said.out
    assert "experts.kind=clamped_swiglu" in said.out


def test_arms_of_a_configuration_are_counted_as_compare_would_match_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = called(capsys, "count", *ARMS, "--json")
    assert code == 0
    rows = json.loads(said.out)
    assert not list(tmp_path.iterdir()), "counting leaves nothing behind"
    assert [row["name"] for row in rows] == ["dense", "top2", "switch"]
    for row, arm in zip(rows, (each.matched for each in plan(resolve(ARMS)).rows), strict=True):
        assert (row["total_params"], row["active_params"]) == (arm.total_params, arm.active_params)
        assert row["flops_per_example"] == arm.flops_per_example
        assert row["ratio"] == arm.ratio
    assert rows[1]["widths"]["experts.hidden"] > 0
    (tmp_path / "mine.yaml").write_text("data: digits\narms: [dense, top2]\nbackbone: {d_model: 16, depth: 2}\n")
    code, said = called(capsys, "count", "mine.yaml")
    assert code == 0
    assert f"{rows[1]['active_params']:,}" in said.out


def test_words_for_train_count_its_arm_and_the_reference(capsys):
    words = ["arm=topk", "router.top_k=3", "backbone.d_model=16", "backbone.depth=2"]
    code, said = called(capsys, "count", *words, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(said.out)] == ["dense", "topk"]
    code, said = called(capsys, "count", *words, "match.on=none", "--json")
    (row,) = json.loads(said.out)
    assert (row["name"], row["ratio"]) == ("topk", 1.0)


def test_list_presets(capsys):
    code, said = called(capsys, "list", "presets", "--json")
    assert code == 0
    rows = json.loads(said.out)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert all(row["origin"] == "built in" and "active" in row["summary"] for row in rows)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["mixtral-8x7"], "unknown preset 'mixtral-8x7'; did you mean 'mixtral-8x7b'"),
        (["deepseek-v3", "--precision", "fp4"], "unknown precision 'fp4'; did you mean 'mxfp4'"),
        (["deepseek-v3", "--context", "0"], "--context 0 must be at least 1"),
        (["deepseek-v3", "seeds=3"], "a preset takes no key=value"),
        (["nothere.yaml"], "unknown configuration file"),
        (["data=digits", "--context", "8"], "--context 8 goes with a preset"),
        (["arms=[dense,swich]"], "did you mean 'switch'"),
    ],
)
def test_wrong_calls_are_one_sentence(words, part, capsys):
    code, said = called(capsys, "count", *words)
    assert code == 2
    assert part in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_arms_whose_widths_depend_on_their_options_are_counted(capsys):
    """`gated_mixture` has no width to match where its experts are linear."""
    arms = "arms=[dense,gated_mixture,{name: gated_mixture, base: linear, label: linear}]"
    code, said = called(capsys, "count", arms, "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert set(rows["gated_mixture"]["widths"]) == {"options.d_model", "options.hidden"}
    assert rows["linear"]["widths"] == {}
