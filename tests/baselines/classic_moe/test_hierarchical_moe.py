"""A tree of gates: proportions and posteriors against brute force, and EM, under which the likelihood never falls."""

import itertools

import numpy as np
import pytest
import torch

from routelab.baselines.classic_moe.classic_moe_losses import posterior
from routelab.baselines.classic_moe.hierarchical_moe import (
    Tree,
    em_step,
    expectation_maximisation,
    gate_outputs,
    least_squares,
    log_proportions,
    node_posteriors,
    softmax_fit,
    with_constant,
)

B, F, K = 60, 3, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def targets(family, seed=1):
    if family == "regression":
        return drawn(B, K, seed=seed)
    wanted = torch.randint(0, K, (B,), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(wanted, K).double()


@pytest.mark.parametrize(("branching", "depth"), [(2, 1), (2, 3), (3, 2)])
def test_proportions_are_products_along_the_paths(branching, depth):
    assert gate_outputs(branching, depth) == sum(branching**level for level in range(1, depth + 1))
    logits = drawn(5, gate_outputs(branching, depth))
    found = log_proportions(logits, branching, depth).exp()
    assert found.shape == (5, branching**depth)
    for example in range(5):
        for leaf, path in enumerate(itertools.product(range(branching), repeat=depth)):
            share, node, first = 1.0, 0, 0
            for level, child in enumerate(path):
                gate = logits[example, first + node * branching : first + (node + 1) * branching].softmax(0)
                share *= gate[child].item()
                node, first = node * branching + child, first + branching ** (level + 1)
            assert found[example, leaf].item() == pytest.approx(share)


def test_posteriors_against_brute_force():
    """h_i = g_i sum_j g_j|i P_ij / P and h_j|i = g_j|i P_ij / sum_j g_j|i P_ij, as the paper writes them."""
    logits, fit = drawn(5, gate_outputs(3, 2)), drawn(5, 9, seed=1)
    g = logits[:, :3].softmax(1)
    below = logits[:, 3:].view(5, 3, 3).softmax(2)
    joint = below * fit.view(5, 3, 3).exp()
    total = (g * joint.sum(2)).sum(1, keepdim=True)
    h_i, h_ji = g * joint.sum(2) / total, joint / joint.sum(2, keepdim=True)
    leaf = posterior(log_proportions(logits, 3, 2), fit)
    first, second = node_posteriors(leaf, 3, 2)
    torch.testing.assert_close(first, h_i)
    torch.testing.assert_close(second.view(5, 3, 3), h_i.unsqueeze(2) * h_ji)


@pytest.mark.parametrize("family", ["regression", "classification"])
@pytest.mark.parametrize(("branching", "depth"), [(2, 2), (3, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_likelihood_never_falls_under_em(family, branching, depth, seed):
    x, target, seen = with_constant(drawn(B, F, seed=seed)), targets(family, seed + 5), []
    tree = Tree.drawn(family, F, K, branching, depth, torch.Generator().manual_seed(seed))
    expectation_maximisation(tree, x, target, 15, seen.append)
    rises = np.diff(seen)
    assert (rises >= -1e-9 * abs(seen[0])).all(), rises.min()
    assert seen[-1] > seen[0] + 10


def test_em_ends_where_the_gradient_of_the_likelihood_is_zero():
    x, target = with_constant(drawn(B, F)), targets("regression")
    tree = expectation_maximisation(Tree.drawn("regression", F, K, 2, 1, torch.Generator().manual_seed(0)), x, target, 400)
    experts, gate = tree.experts.clone().requires_grad_(), tree.gates[0].clone().requires_grad_()
    moved = Tree((gate,), experts, "regression")
    torch.logsumexp(moved.log_gate(x) + moved.log_fit(x, target), 1).sum().backward()
    assert experts.grad.abs().max() < 1e-2
    assert gate.grad.abs().max() < 1e-2


def test_two_lines_are_found():
    """y = |x| with little noise: EM ends with one expert for each side, slopes -1 and 1."""
    x = torch.linspace(-1, 1, 80, dtype=torch.float64).unsqueeze(1)
    target = 20 * x.abs()
    tree = Tree.drawn("regression", 1, 1, 2, 1, torch.Generator().manual_seed(0))
    tree = expectation_maximisation(tree, with_constant(x), target, 100)
    assert sorted(tree.experts[:, 0, 0].tolist()) == pytest.approx([-20, 20], rel=0.02)


def test_separable_classes_do_not_break_em():
    """The best weights lie at infinity; every step still rises and stays finite."""
    x = torch.linspace(-1, 1, B, dtype=torch.float64).unsqueeze(1)
    target = torch.nn.functional.one_hot((x[:, 0] > 0).long(), 2).double()
    tree, seen = Tree.drawn("classification", 1, 2, 2, 2, torch.Generator().manual_seed(0)), []
    for _ in range(10):
        tree = em_step(tree, with_constant(x), target)
        seen.append(tree.log_likelihood(with_constant(x), target))
    assert (np.diff(seen) >= -1e-9).all()
    assert torch.isfinite(tree.experts).all()


def test_softmax_fit_is_weighted_logistic_regression():
    """Against scikit-learn, which has no soft targets: every example once for each class, weighted by its share."""
    from sklearn.linear_model import LogisticRegression

    x, mass = with_constant(drawn(B, F)), drawn(B, seed=3).abs().unsqueeze(1)
    wanted = mass * drawn(B, K, seed=2).softmax(1)
    found = softmax_fit(x, wanted, torch.zeros(F + 1, K, dtype=torch.float64))
    reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000)
    labels = np.tile(np.arange(K), B)
    reference.fit(x[:, :F].repeat_interleave(K, 0).numpy(), labels, sample_weight=wanted.flatten().numpy())
    probabilities = torch.from_numpy(reference.predict_proba(x[:, :F].numpy()))
    torch.testing.assert_close((x @ found).softmax(1), probabilities, atol=1e-5, rtol=1e-4)


def test_least_squares_weighs_examples_as_copies_of_them():
    x, target, copies = with_constant(drawn(B, F)), targets("regression"), torch.arange(B) % 3
    found = least_squares(x, target, copies.double())
    plain = torch.linalg.lstsq(x.repeat_interleave(copies, 0), target.repeat_interleave(copies, 0)).solution
    torch.testing.assert_close(found, plain)
