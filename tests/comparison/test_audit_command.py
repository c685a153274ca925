"""The audit as a command: three counts that agree for every arm, and an arm whose formula is wrong is found."""

import pytest
import torch

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.cli.app import app, guarded
from routelab.comparison.audit import Audit, audit, audit_step
from routelab.comparison.prepared_comparison import plan
from routelab.config.resolve import resolve
from routelab.core.flops import Flops
from routelab.experts import moe_layer
from routelab.routers.router_registry import ROUTERS


def planned(folder, arms, *words):
    return plan(
        resolve([f"output={folder}/results/mine", "tracking.uri=null", "backbone.d_model=16", "backbone.depth=2", "backbone.heads=2",
                 "backbone.hidden=64", "experts.count=4", "trainer.batch_size=8", f"arms=[{','.join(arms)}]", *words])
    )  # fmt: skip


def test_every_router_and_dense(tmp_path):
    found = audit(planned(tmp_path, ["dense", *ROUTERS.names()], "match.on=none"))
    for each in found:
        assert each.passed, each
        assert each.counter > 0
    assert found[0].ledger == found[0].counter
    by_rows = [each.arm for each in found if each.rows is not None]
    assert {"switch", "topk", "soft", "expert_choice", "relu"} <= set(by_rows)
    assert not (tmp_path / "results/cells").exists(), "an audit trains nothing"


@pytest.mark.parametrize("wrong", ["ledger", "rows", "unknown"])
def test_a_wrong_count_is_found(wrong, tmp_path, monkeypatch):
    ready = planned(tmp_path, ["dense", "topk"])
    spec = ready.rows[1].matched.choice.spec
    arm = make_arm(ArmSpec(spec.name, spec.backbone, spec.experts, spec.router), ready.data.task, 0)
    if wrong == "ledger":
        flops = arm.flops
        monkeypatch.setattr(arm, "flops", lambda *a, **k: Flops(flops(*a, **k).model, flops(*a, **k).executed * 1.02))
    elif wrong == "rows":
        # A dispatch that reports half the rows that it ran.
        run = moe_layer.run

        def halved(*given):
            out, executed = run(*given)
            return out, executed / 2

        monkeypatch.setattr(moe_layer, "run", halved)
    else:
        total = arm.task.loss
        monkeypatch.setattr(
            type(arm.task), "loss", lambda task, out, y: total(out, y) + 0 * torch.cdist(out, out).mean(), raising=False
        )
    found = audit_step("topk", arm, ready.data.train, 8)
    assert not found.passed
    assert found.unknown == (("aten._cdist_forward", "aten._cdist_backward")[::-1] if wrong == "unknown" else ())
    if wrong == "rows":
        assert found.rows == pytest.approx(found.counter, rel=0.01), "counted at the kernels"


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["compare", "--audit", "arms=[dense,switch]", "backbone.depth=1", "backbone.d_model=16", "backbone.heads=2"]
    assert guarded(lambda: app(words, standalone_mode=False)) == 0
    out = capsys.readouterr().out
    assert "switch" in out
    assert "all counts agree within 1%" in out


def test_a_counter_that_saw_nothing_agrees_with_nothing():
    assert not Audit("mine", ledger=1e6, counter=0.0).passed
    assert Audit("mine").passed
