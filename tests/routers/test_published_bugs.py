"""The bugs that published comparison codes of routers were found to have, each looked for in the routers here."""

import ast
import itertools
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch

from routelab import routers
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.plans import PerExpert, Slots, TopK

D, E, V = 8, 4, 50  # the sizes of the conformance suite


def test_a_router_whose_output_carries_no_gradient_to_its_weights(case, make_router, data):
    """Gates replaced by ones: whatever has parameters must hand out weights that depend on them."""
    router = make_router(case)
    x, ids = data(3, 8)
    plan = router(RouterInput(x, ids)).plan
    for weight in (plan.dispatch, plan.combine) if isinstance(plan, Slots) else (plan.weight,):
        assert weight.requires_grad == any(parameter.requires_grad for parameter in router.parameters())
        if weight.requires_grad:
            assert weight.detach().std() > 1e-3, "weights that are all alike say nothing"


def test_a_loss_of_integer_counts(case, make_router, data):
    """Counts have no gradient: such a loss is printed, falls for other reasons, and trains nothing."""
    router = make_router(case)
    x, ids = data(3, 8)
    losses = router(RouterInput(x, ids)).losses
    assert set(losses) == set(router.loss_weights)
    for name, loss in losses.items():
        gradient = torch.autograd.grad(loss, list(router.parameters()), retain_graph=True, allow_unused=True)
        assert any(value is not None and value.abs().max() > 0 for value in gradient), name


def test_hash_routing_that_hashes_the_position(make_router, data):
    """A token goes where its id says, wherever it stands and whatever stands around it."""
    router = make_router("hash")
    x, ids = data(3, 40)
    expert = router(RouterInput(x, ids)).plan.expert.view(3, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(router(RouterInput(x[:, order], ids[:, order])).plan.expert.view(3, 40), expert[:, order])
    of_id = {}
    for token, where in zip(ids.flatten().tolist(), expert.flatten().tolist(), strict=True):
        assert of_id.setdefault(token, where) == where
    assert len(set(of_id.values())) == E
    again = router(RouterInput(x, (ids + 1) % V)).plan.expert.view(3, 40)
    assert not torch.equal(again, expert), "other ids in the same places"


@pytest.mark.parametrize("across", ["sequence", "batch"])
def test_expert_choice_over_the_flattened_batch(across, make_router, data):
    """One sequence full of tokens that an expert likes best must not take the places of all others."""
    router = make_router("expert_choice", across=across)
    x, _ = data(4, 8)
    with torch.no_grad():
        x[0] += 3 * router.weight[0] / router.weight[0].norm()  # in the first sequence all like expert 0
    plan = router(RouterInput(x)).plan
    if across == "sequence":
        assert isinstance(plan, PerExpert)
        assert plan.position.shape == (4, E, 4)  # ceil(2 * 8 / 4) places of each expert in every sequence
        assert not router.causal
    else:
        # Ranked over the G tokens of one position: ceil(2 * 4 / 4) of each, whatever the others hold.
        taken = torch.zeros(8, E).index_put_((plan.token % 8, plan.expert), torch.ones(()), accumulate=True)
        assert (taken == 2).all()
        assert router.causal


def test_a_cosine_router_that_is_softmaxed_twice():
    """A token along one expert's direction, the others across it: 1 / (1 + exp(-1 / .07)), not exp(1) / (exp(1) + 1)."""
    router = build_router("cosine", d_model=2, num_experts=3)
    with torch.no_grad():
        router.project.copy_(torch.eye(8)[:, :2])
        router.centroids.copy_(torch.eye(8)[[0, 1, 2]])
    weight = router(RouterInput(torch.tensor([[[5.0, 0.0]]]))).plan.weight[0, 0].item()
    assert weight == pytest.approx(1 / (1 + torch.tensor(-1 / 0.07).exp().item()), abs=1e-6)
    assert weight > 0.99


def test_a_bias_router_whose_bias_is_never_used(make_router, data):
    """A bias of 1 draws every token to an expert, and one of -1 drives all away from it: scores are within 0 and 1."""
    router = make_router("deepseek")
    x, _ = data(3, 8)
    for value, chosen in ((1.0, True), (-1.0, False)):
        router.bias.zero_()[2] = value
        takes_T = (router(RouterInput(x)).plan.expert == 2).any(1)
        assert (takes_T == chosen).all()


def test_a_bias_that_only_a_checkpoint_moves(make_router, data):
    """Training itself must move it: tokens that all want two experts are shared out after some steps."""
    router = make_router("deepseek", bias_speed=0.1)
    x = torch.ones(2, 8, D)
    before = router(RouterInput(x)).plan.expert
    for _ in range(20):
        router.update()
        router(RouterInput(x))
    assert router.bias.abs().max() > 0
    seen = set()
    for _ in range(20):
        router.update()
        seen |= set(router(RouterInput(x)).plan.expert.unique().tolist())
    assert len(before.unique()) == 2
    assert len(seen) == E


def test_a_load_loss_that_divides_by_no_noise():
    """In evaluation, and with a deviation that has become 0 in float32: finite, with finite gradients."""
    router = build_router("noisy_topk", d_model=2, num_experts=3)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]))
        router.noise_weight.fill_(-200.0)
    x = torch.tensor([[[1.0, 2.0], [0.5, 0.5], [2.0, 0.1]]])
    assert (torch.nn.functional.softplus(x @ router.noise_weight.t()) == 0).all()
    for training in (False, True):
        losses = router.train(training)(RouterInput(x)).losses
        for name in ("load", "importance"):
            assert torch.isfinite(losses[name]), name
        for gradient in torch.autograd.grad(losses["load"] + losses["importance"], list(router.parameters())):
            assert torch.isfinite(gradient).all()


def test_column_0_that_is_not_the_best(case, make_router, data):
    """First choices are read from column 0, by capacity and by losses; `topk(sorted=False)` does not promise them there."""
    x, ids = data(4, 16)
    plan = make_router(case).eval()(RouterInput(x, ids)).plan
    if isinstance(plan, TopK):
        assert (plan.weight.detach().diff(dim=1) <= 0).all()


def test_no_choice_is_left_unsorted():
    """On a CPU `topk(sorted=False)` often sorts all the same, so that a test of values would pass."""
    for path in Path(routers.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert not any(keyword.arg == "sorted" for keyword in node.keywords), path.name


def code_lines(path):
    """A file's statements without docstrings, comments, imports and blank lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
    lines = [line.strip() for line in ast.unparse(tree).splitlines()]
    return [line for line in lines if line and not line.startswith(("import ", "from ", "pass"))]


def test_a_layer_copied_for_every_variant():
    """No two routers share a passage: what several need is written once, and the layer around them is one class."""
    files = {path.name: code_lines(path) for path in Path(routers.__path__[0]).glob("*.py")}
    for (one, first), (other, second) in itertools.combinations(files.items(), 2):
        match = SequenceMatcher(None, first, second, autojunk=False).find_longest_match()
        # Declarations and their `return False` are alike in routers that are alike; a forward pass is longer.
        assert match.size <= 12, f"{one} and {other}: {first[match.a : match.a + match.size]}"
