"""On a CUDA device: every kind of arm trains in bf16, nothing waits for the host, and results are those of the CPU."""

from dataclasses import replace

import pytest
import torch

from baselines.contract import ArmSpec
from experts.bank import ExpertBank
from experts.initialisation import initialise
from experts.mixture import MixtureLayer
from experts.zero_compute import ZeroCompute
from routelab.data.contract import load
from routelab.training.loop import RunSpec, execute
from routelab.training.settings import Budget, Optimizer, TrainerOptions
from routelab.training.telemetry import Tally
from routers.registry import ROUTERS, build_router

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
WIDTHS = {"name": "vit", "d_model": 64, "depth": 2, "heads": 2, "hidden": 128}
KIND_ARMS = {
    "topk-linear": {"kind": "linear"},
    "topk-lora": {"kind": "lora"},
    "topk-zero-compute": {"zero": 1, "copy": 1, "constant": 2},
}
ENSEMBLES = [
    "ensemble", "bagging", "adaboost", "gradient_boosting", "snapshot", "batch_ensemble", "stacking", "gated_mixture",
    "hierarchical_mixture",
]  # fmt: skip
ARMS = ["dense", *ROUTERS.names(), *ENSEMBLES, *KIND_ARMS]


def spec(name, **changes):
    trainer = TrainerOptions(accelerator="gpu", batch_size=64, checks=3)
    arm = "topk" if name in KIND_ARMS else name
    experts = {"count": 8, **KIND_ARMS.get(name, {})}
    made = RunSpec(name, ArmSpec(arm, WIDTHS, experts), 0, {"name": "digits"}, Budget(steps=30), Optimizer(), trainer)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def data():
    return load("digits")


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains_in_bf16(data, name):
    record = execute(spec(name), data=data).record
    assert record["status"] == "ok", record["error"]
    losses = [point["train/loss"] for point in record["curve"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ARMS)
def test_the_cpu_and_the_gpu_agree(data, name):
    """In float32, over a few steps: later ones drift apart by rounding, and choices at a tie with them."""
    short = spec(name, budget=Budget(steps=3))
    on = {
        where: execute(replace(short, trainer=replace(short.trainer, accelerator=where, precision="32-true")), data=data).record
        for where in ("cpu", "gpu")
    }
    assert on["gpu"]["curve"][0]["train/loss"] == pytest.approx(on["cpu"]["curve"][0]["train/loss"], rel=1e-3)
    assert on["gpu"]["test"]["loss"] == pytest.approx(on["cpu"]["test"]["loss"], rel=2e-2)
    assert on["gpu"]["flops_per_example"] == on["cpu"]["flops_per_example"]


def layer(name, dtype, **options):
    offered = {"positions": 32, "vocab_size": 256}
    import inspect

    wanted = {key: value for key, value in offered.items() if key in inspect.signature(ROUTERS.get(name)).parameters}
    router = build_router(name, d_model=64, num_experts=8, **wanted)
    made = MixtureLayer(router, ExpertBank("swiglu", num_experts=8, d_model=64, d_hidden=128), **options)
    initialise(made, 0)
    if hasattr(router, "calibrate"):
        router.calibrate()
    return made.to("cuda", dtype) if dtype else made.to("cuda")


# The assignment of base runs on the host.
@pytest.mark.parametrize("name", [name for name in ROUTERS.names() if name != "base"])
@pytest.mark.parametrize("capacity", ["default", 1.0])
def test_nothing_waits_for_the_host(name, capacity):
    """Under the sync debug mode, any copy from the device to the host raises."""
    made = layer(name, None, capacity_factor=capacity)
    x = torch.randn(4, 32, 64, device="cuda")
    ids = torch.randint(0, 256, (4, 32), device="cuda")
    mask = torch.ones(4, 32, dtype=torch.bool, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            out, routing = made(x, ids, mask)
        Tally().add([routing], 4, 32, mask)
        (out.float().square().mean() + sum(routing.losses.values())).backward()

    step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("kind", ["linear", "lora"])
@pytest.mark.parametrize("capacity", [None, 1.0])
def test_nothing_waits_with_zero_compute_experts_in_a_latent_space(kind, capacity):
    """The parts of a plan, unequal capacities, constants, updates of a shared feed-forward: all stay on the device."""
    router = build_router("moe_plus_plus", d_model=64, num_experts=12, zero_compute=4)
    bank = ExpertBank(kind, num_experts=8, d_model=32, d_hidden=None if kind == "linear" else 128, bias=True)
    beside = ZeroCompute(64, ["zero", "copy", "constant", "constant"])
    made = MixtureLayer(router, bank, zero_compute=beside, latent_dim=32, capacity_factor=capacity)
    initialise(made, 0)
    made.to("cuda")
    x, mask = torch.randn(4, 32, 64, device="cuda"), torch.ones(4, 32, dtype=torch.bool, device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            out, routing = made(x, mask=mask)
        (out.float().square().mean() + sum(routing.losses.values())).backward()
        assert all(parameter.grad is not None for parameter in made.parameters())

    step()
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())


def test_a_resumed_run_goes_on(data, tmp_path, monkeypatch):
    from routelab.training.module import TrainingModule

    class PowerCutError(BaseException):
        pass

    made = spec("switch", trainer=TrainerOptions(accelerator="gpu", checks=3, checkpoint_seconds=0.0), budget=Budget(steps=9))
    whole = execute(made, data=data).record
    real = TrainingModule._optimizer_step

    def until(self, share):
        if self.step == 5:
            raise PowerCutError
        real(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "_optimizer_step", until)
        with pytest.raises(PowerCutError):
            execute(made, data=data, folder=tmp_path, key="k")
    again = execute(made, data=data, folder=tmp_path, key="k").record
    assert again["resumed_at"] == 5
    assert again["test"]["loss"] == pytest.approx(whole["test"]["loss"], rel=2e-2)
    assert again["flops_model"] == pytest.approx(whole["flops_model"], rel=1e-3)
