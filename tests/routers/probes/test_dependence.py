"""What an output may depend on, against the table of the field, and under every setting of capacity.

That each router's declaration is true of the router alone is a rule of the conformance suite.
"""

import pytest

from routelab.routers.probes.dependence import reacts

PROBES = {  # those that are not simply a case of the suite
    **{f"{case}-sequence": (case, {"capacity_group": "sequence"}) for case in ("switch", "top2", "st_moe", "moe_plus_plus")},
    "topk-capacity": ("topk", {"capacity_factor": 0.75}),
    "topk-capacity-sequence": ("topk", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "hash-capacity-sequence": ("hash", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "hash-capacity": ("hash", {"capacity_factor": 0.75}),
    "top2-dropless": ("top2", {"capacity_factor": None}),
    "st_moe-dropless": ("st_moe", {"capacity_factor": None}),
    "moe_plus_plus-dropless": ("moe_plus_plus", {"capacity_factor": None}),
    "top2-position": ("top2", {"capacity_factor": 0.75, "capacity_group": "sequence", "priority": "position"}),
    "switch-probability": ("switch", {"priority": "probability", "capacity_factor": 0.75}),
    "topk-choice": ("topk", {"priority": "choice", "capacity_factor": 0.75, "capacity_group": "sequence"}),
    "relu-capacity-sequence": ("relu", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "top_p-capacity-sequence": ("top_p", {"capacity_factor": 0.75, "capacity_group": "sequence"}),
    "switch-random": ("switch", {"priority": "random", "capacity_factor": 0.75}),
}
DECLARED = {  # causal, batch_coupled: the table of the routing reference, §3
    "switch": (True, True), "top2": (False, True), "topk": (True, False), "topk_raw": (True, False),
    "expert_choice": (False, False), "expert_choice_batch": (True, True), "hash": (True, False),
    "hash_projection": (True, False), "soft": (False, False), "switch-sequence": (True, False),
    "top2-sequence": (False, False), "topk-capacity": (True, True), "topk-capacity-sequence": (True, False),
    "hash-capacity-sequence": (True, False), "hash-capacity": (True, True), "top2-dropless": (True, False),
    "top2-position": (True, False), "switch-probability": (False, True), "topk-choice": (False, False),
    "switch-random": (False, True), "st_moe": (False, True), "st_moe-sequence": (False, False),
    "st_moe-dropless": (True, False), "noisy_topk": (True, False), "deepseek": (True, False), "deepseek_moe": (True, False),
    "base": (False, True), "sinkhorn": (False, True), "sinkhorn_2": (False, True),
    "sequence": (False, False), "sequence_2": (False, False), "sequence_whole_model": (False, False),
    "hierarchical": (True, False), "hierarchical_1": (True, False), "hierarchical_groups": (True, False),
    "random": (True, False), "random_blend": (True, False), "random_frozen": (True, False),
    "llama4": (True, False), "gpt_oss": (True, False), "cosine": (True, False), "dense_gate": (True, False), "relu": (True, False),
    "relu-capacity-sequence": (False, False), "top_p": (True, False), "top_p-capacity-sequence": (False, False),
    "hash_bigram": (True, False), "hash_position": (True, False), "hierarchical_4": (True, False),
    "mixture_of_depths": (False, False), "mixture_of_depths_best": (False, False),
    "latent": (True, False), "moe_plus_plus": (True, True), "moe_plus_plus_free": (True, True), "moe_plus_plus-sequence": (True, False),
    "moe_plus_plus-dropless": (True, False), "top_p_renormalized": (True, False), "deepseek_groups": (True, False),
}  # fmt: skip


def test_every_case_is_declared(case):
    """So that a router added to the cases is probed too."""
    assert case in DECLARED


def changed(make_layer, probe, seed, part):
    case, options = PROBES.get(probe, (probe, {}))
    limited = 0.75 if case in ("switch", "top2", "st_moe", "moe_plus_plus", "moe_plus_plus_free") else None
    return reacts(make_layer(case, seed=seed, **{"capacity_factor": limited, **options}), seed, part) > 1e-5


@pytest.mark.parametrize("probe", DECLARED)
def test_declarations_are_those_of_the_reference(probe, make_layer):
    case, options = PROBES.get(probe, (probe, {}))
    layer = make_layer(case, **options)
    assert (layer.causal, layer.batch_coupled) == DECLARED[probe]


@pytest.mark.parametrize("probe", DECLARED)
def test_later_tokens(probe, make_layer):
    """In training: causal layers never react to later tokens; the others do, so the probe can see a leak."""
    leaks = [changed(make_layer, probe, seed, "later") for seed in range(8)]
    assert any(leaks) == (not DECLARED[probe][0])


@pytest.mark.parametrize("probe", DECLARED)
def test_other_sequences(probe, make_layer):
    coupled = [changed(make_layer, probe, seed, "others") for seed in range(8)]
    assert any(coupled) == DECLARED[probe][1]
