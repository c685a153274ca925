"""The classic mixtures as arms: batched experts are the same networks, every FLOP is charged, any base, every task."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.baselines.classic_moe.classic_moe_losses import posterior
from routelab.baselines.classic_moe.gated_mixture import IN_USE
from routelab.core.errors import UsageError
from routelab.data.task import Batch, InputSpec, Task
from routelab.routers.plans import Blend
from routelab.training.ledger import counter_formulas

B, K, FEATURES = 6, 3, 5
BACKBONES = {
    "mlp": {"name": "mlp", "d_model": 8, "depth": 1},
    "tokens": {"name": "tokens", "d_model": 8, "depth": 1, "heads": 2},
    "vit": {"name": "vit", "d_model": 8, "depth": 1, "heads": 2, "patch_size": 2},
    "decoder": {"name": "decoder", "d_model": 8, "depth": 1, "heads": 2},
}
INPUTS = {
    "mlp": InputSpec("table", (FEATURES,), categories=(0, 0, 4, 0, 3)),
    "tokens": InputSpec("table", (FEATURES,), categories=(0, 0, 4, 0, 3)),
    "vit": InputSpec("image", (1, 4, 4)),
    "decoder": InputSpec("text", (7,), vocab_size=11),
}


def task_of(backbone, kind="classification"):
    kind = "language" if backbone == "decoder" else kind
    return Task("toy", kind, INPUTS[backbone], 11 if backbone == "decoder" else K)


def batch_of(task, size=B):
    generator = torch.Generator().manual_seed(0)
    if task.kind == "language":
        rows = torch.randint(0, 11, (size, 8), generator=generator)
        return Batch(rows[:, :-1], rows[:, 1:])
    x = torch.randn(size, *task.inputs.shape, generator=generator)
    for column, codes in enumerate(task.inputs.categories):
        if codes:
            x[:, column] = torch.randint(0, codes, (size,), generator=generator).float()
    if task.kind == "regression":
        return Batch(x, torch.randn(size, K, generator=generator))
    return Batch(x, torch.randint(0, K, (size,), generator=generator))


def arm_of(name="gated_mixture", backbone="mlp", kind="classification", seed=0, sizing=False, **options):
    if name == "gated_mixture":
        options = {"members": 4, **options}
    spec = ArmSpec(name, BACKBONES[backbone], {"count": 2, "hidden": None}, {}, options)
    return make_arm(spec, task_of(backbone, kind), seed, sizing=sizing)


ARMS = {
    "gated": {},
    "gated-network": {"gate": "network"},
    "gated-linear": {"base": "linear"},
    "gated-routed": {"base": "topk"},
    "hierarchical": {"name": "hierarchical_mixture", "branching": 2, "depth": 2},
    "hierarchical-network": {"name": "hierarchical_mixture", "branching": 3, "depth": 2, "gate": "network"},
    "hierarchical-linear": {"name": "hierarchical_mixture", "branching": 2, "depth": 2, "base": "linear"},
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_step(arm, batch):
    arm.zero_grad()
    loss = arm.loss(batch, torch.arange(len(batch)))
    loss.total.backward()
    return loss


# --- cost ---


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", ARMS)
def test_the_ledger_is_torch_s_own_count(case, backbone):
    arm = arm_of(backbone=backbone, **ARMS[case])
    batch = batch_of(arm.task)
    train_step(arm, batch)
    with FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        loss = train_step(arm, batch)
    assert float(loss.flops.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)
    arm.eval()
    arm.predict(batch)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counter_formulas()) as counter:
        spent = arm.predict(batch).flops
    assert float(spent.executed) == pytest.approx(counter.get_total_flops(), rel=0.01)
    if case != "gated-routed" or backbone != "mlp":
        assert float(spent.model) / B == pytest.approx(arm.flops_per_example(), rel=0.01)


@pytest.mark.parametrize("case", ARMS)
def test_sizing_is_right_without_memory(case):
    real, sized = arm_of(**ARMS[case]), arm_of(sizing=True, **ARMS[case])
    assert sized.total_params == real.total_params == sum(parameter.numel() for parameter in real.parameters())
    assert sized.active_params == real.active_params
    assert sized.flops_per_example() == real.flops_per_example()
    assert sized.train_flops_per_example() == real.train_flops_per_example()


# --- what is learned ---


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gradients_are_the_closed_forms(kind):
    """dE/ds = p - h, and dE/do_i = -h_i (d - o_i), or -h_i (onehot - softmax(o_i)) for logits, per example."""
    arm = arm_of(kind=kind, base="linear")
    batch = batch_of(arm.task)
    out, logits = arm.members(batch, False), torch.randn(B, 4, generator=torch.Generator().manual_seed(3))
    outputs, logits = out.values.detach().transpose(0, 1).requires_grad_(), logits.requires_grad_()
    arm.error(arm.log_proportions(logits), outputs, batch.targets).sum().backward()
    with torch.no_grad():
        if kind == "regression":
            wanted, seen = batch.targets.unsqueeze(1), outputs
            fit = -0.5 * (wanted - seen).square().sum(-1)
        else:
            wanted, seen = torch.nn.functional.one_hot(batch.targets, K).unsqueeze(1), outputs.softmax(-1)
            fit = seen.log()[torch.arange(B), :, batch.targets]
        h = posterior(logits.log_softmax(-1), fit)
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - h, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(outputs.grad, -h.unsqueeze(-1) * (wanted - seen.detach()), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["mlp", "vit", "decoder"])
def test_experts_side_by_side_are_the_arms_they_would_be_alone(backbone):
    """Expert m starts as the dense arm of its own seed, and the prediction is the mean of their distributions at first."""
    from routelab.baselines.ensembles.ensemble_base import member_seed

    arm = arm_of(backbone=backbone).eval()
    batch = batch_of(arm.task)
    alone = [
        make_arm(ArmSpec("dense", BACKBONES[backbone]), arm.task, member_seed(0, number)).eval().predict(batch).outputs
        for number in range(4)
    ]
    mean = torch.stack([outputs.softmax(-1) for outputs in alone]).mean(0)
    torch.testing.assert_close(arm.predict(batch).outputs.exp(), mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "error"),
    [*((case, "likelihood") for case in ARMS), ("gated", "competitive"), ("gated", "coupled"), ("hierarchical", "coupled")],
)
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_every_error_is_learned(case, error, kind):
    arm = arm_of(kind=kind, error=error, **ARMS[case])
    batch = batch_of(arm.task)
    optimizer = torch.optim.Adam(arm.parameters(), lr=0.03)
    losses = []
    for _ in range(10):
        losses.append(train_step(arm, batch).task.item())
        assert all(parameter.grad is not None for parameter in arm.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]


def test_likelihood_is_the_cross_entropy_of_the_prediction():
    arm = arm_of(backbone="decoder", gate="network")
    batch = batch_of(arm.task)
    loss = arm.loss(batch, torch.arange(B)).task
    torch.testing.assert_close(loss, arm.task.loss(arm.predict(batch).outputs, batch.targets).mean())


def test_experts_specialise():
    """y = |x| with linear experts under a linear gate: two lines, each with a side of its own."""
    x = torch.linspace(-2, 2, 64).unsqueeze(1)
    task = Task("toy", "regression", InputSpec("table", (1,)), 1)
    arm = make_arm(ArmSpec("gated_mixture", {"name": "mlp"}, {}, {}, {"members": 2, "base": "linear"}), task, 0)
    batch = Batch(x, 4 * x.abs())
    optimizer = torch.optim.Adam(arm.parameters(), lr=0.1)
    for _ in range(300):
        train_step(arm, batch)
        optimizer.step()
    prediction = arm.eval().predict(batch)
    assert (prediction.outputs - batch.targets).square().mean() < 0.1
    proportions = prediction.routings[0].plan.weight
    left, right = proportions[:16].mean(0), proportions[-16:].mean(0)
    assert left.argmax() != right.argmax()
    assert min(left.max(), right.max()) > 0.95


@pytest.mark.parametrize("case", ["gated", "gated-network", "hierarchical"])
def test_a_text_s_outputs_depend_on_earlier_bytes_only(case):
    arm = arm_of(backbone="decoder", **ARMS[case]).eval()
    batch = batch_of(arm.task)
    changed = batch.inputs.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = arm.predict(batch).outputs, arm.predict(Batch(changed, batch.targets)).outputs
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    assert arm.causal


def test_depth_one_is_the_flat_mixture():
    flat, tree = arm_of(), arm_of("hierarchical_mixture", branching=4, depth=1)
    batch = batch_of(flat.task)
    assert torch.equal(flat.loss(batch, torch.arange(B)).task, tree.loss(batch, torch.arange(B)).task)
    assert flat.total_params == tree.total_params


# --- what is shown ---


def test_proportions_are_the_load_of_a_blend():
    arm = arm_of("hierarchical_mixture", branching=2, depth=2)
    with torch.no_grad():
        next(arm.gate.parameters()).normal_(generator=torch.Generator().manual_seed(0))
    batch = batch_of(arm.task)
    prediction = arm.eval().predict(batch)
    plan = prediction.routings[0].plan
    assert isinstance(plan, Blend)
    assert plan.weight.shape == (B, 4)
    torch.testing.assert_close(plan.weight.sum(1), torch.ones(B))
    assert (prediction.positions, prediction.groups) == (1, B)
    figures, flops = arm.figures(batch)
    assert figures["proportions"] == pytest.approx(plan.weight.mean(0).tolist(), abs=1e-6)
    assert figures["experts_in_use"] == sum(share >= IN_USE / 4 for share in figures["proportions"])
    assert flops.model == arm.gate.flops(B, [], training=False).model


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"error": "coupling"}, "unknown error of arm 'gated_mixture' 'coupling'; did you mean 'coupled'"),
        ({"gate": "mlp"}, "unknown gate of arm 'gated_mixture' 'mlp' .allowed: linear, network"),
        ({"members": 0}, "members is 0; it must be a whole number of at least 1"),
        ({"base": "linaer"}, "did you mean 'linear'"),
        ({"name": "hierarchical_mixture", "depth": 0}, "depth is 0; it must be a whole number of at least 1"),
        ({"name": "hierarchical_mixture", "members": 4}, "members"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        arm_of(**options)
