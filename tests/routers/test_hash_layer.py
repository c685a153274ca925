"""Hash routing: what is hashed, the tables, and what each method needs."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from routelab.core.initialisation import initialise
from routelab.routers.base import RouterInput
from routelab.routers.build import build_router
from routelab.routers.hash_layer import METHODS, balanced_table, cluster_table, dispersed_table, mix

D, E, V = 8, 4, 50  # the sizes of the conformance suite


def hash_router(method, num_experts=E, seed=0, **options):
    router = build_router("hash", d_model=D, num_experts=num_experts, method=method, **options)
    initialise(router, seed)
    return router


def choice(router, x, ids=None):
    return router(RouterInput(x, ids)).plan.expert.view(x.shape[:2])


def test_hash_uses_the_token_not_its_place(data):
    """A published comparison hashed the position and called it hash routing."""
    router = hash_router("random", vocab_size=V)
    x, ids = data(4, 30)
    expert = choice(router, x, ids)
    moved = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(choice(router, x, ids[:, moved]), expert[:, moved])
    assert torch.equal(choice(router, torch.randn_like(x), ids), expert)
    assert torch.equal(expert, router.table[ids])
    assert (choice(router, x, torch.full_like(ids, 3)) == router.table[3]).all()
    assert len(set(expert.flatten().tolist())) == E


def test_hash_position_ignores_the_token(data):
    router = hash_router("position")
    x, ids = data(3, 40)
    expert = choice(router, x, ids)
    assert torch.equal(expert, choice(router, torch.randn_like(x), ids.flip(1)))
    assert (expert == expert[0]).all()
    assert len(set(expert[0].tolist())) == E


def test_hash_previous(data):
    router = hash_router("previous", vocab_size=V)
    x, ids = data(2, 6)
    expert = choice(router, x, ids)
    assert torch.equal(expert[:, 1:], router.table[ids[:, :-1]])
    assert (expert[:, 0] == router.table[0]).all()


def test_hash_bigram(data):
    """A function of (previous, current) and of both; spread evenly over the experts."""
    router = hash_router("bigram", vocab_size=V)
    x, ids = data(2, 3)
    ids[0], ids[1] = torch.tensor([7, 1, 2]), torch.tensor([9, 1, 2])
    expert = choice(router, x, ids)
    assert expert[0, 2] == expert[1, 2]
    previous, current = torch.arange(V).repeat_interleave(V), torch.arange(V).repeat(V)
    pairs = choice(router, torch.zeros(V * V, 2, D), torch.stack([previous, current], 1))[:, 1].view(V, V)
    assert (pairs != pairs[:1]).any(1)[1:].all(), "the previous token must matter"
    assert (pairs != pairs[:, :1]).any(0)[1:].all(), "the current token must matter"
    share = torch.bincount(pairs.flatten(), minlength=E) / V**2
    assert (share - 1 / E).abs().max() < 0.05


def test_hash_projection_is_a_balanced_function_of_x(data):
    router = hash_router("projection")
    assert torch.bincount(router.table, minlength=E).tolist() == [1024] * E
    x, _ = data(4, 500)
    expert = choice(router, x)
    assert torch.equal(choice(router, 3 * x), expert), "signs do not see the length of x"
    assert (choice(router, -x) != expert).any()
    share = torch.bincount(expert.flatten(), minlength=E) / expert.numel()
    assert (share - 1 / E).abs().max() < 0.1


def test_hash_tables_come_from_the_seed():
    for method in ("random", "projection", "position"):
        options = {"vocab_size": V} if method == "random" else {}
        same, again, other = (hash_router(method, seed=seed, **options).table for seed in (0, 0, 1))
        assert torch.equal(same, again)
        assert not torch.equal(same, other)


def test_hash_is_weight_one_and_has_nothing_to_learn(data):
    router = hash_router("random", vocab_size=V)
    x, ids = data(2, 5)
    routing = router(RouterInput(x, ids))
    assert (routing.plan.weight == 1).all()
    assert not list(router.parameters())
    assert not routing.losses


def test_balanced_table_packs_by_frequency():
    """Most frequent first, each to the emptiest: 8->0, 7->1, 6->2, 5->2 is wrong, 5 goes to the least load."""
    assert balanced_table(torch.tensor([5, 8, 6, 7, 1]), 3).tolist() == [2, 0, 2, 1, 1]
    counts = (1000 / torch.arange(1, 201)).long()  # Zipf
    router = hash_router("balanced", vocab_size=200)
    router.calibrate(token_counts=counts)
    load = torch.zeros(E).index_add_(0, router.table, counts.float())
    assert load.max() / load.mean() < 1.02
    assert torch.bincount(balanced_table(torch.zeros(12), 4)).tolist() == [3, 3, 3, 3], "unseen ids spread too"


def test_cluster_and_dispersed_tables():
    centre = torch.eye(3, D).repeat_interleave(6, 0) * 10
    embeddings = centre + 0.1 * torch.randn(18, D, generator=torch.Generator().manual_seed(0))
    cluster = cluster_table(embeddings, 3).view(3, 6)
    assert (cluster == cluster[:, :1]).all()
    assert len(set(cluster[:, 0].tolist())) == 3
    spread = dispersed_table(cluster.flatten(), 3).view(3, 6)
    for row in spread:
        assert torch.bincount(row, minlength=3).tolist() == [2, 2, 2]


def test_mix_is_fixed_and_not_negative():
    """Large vocabularies square to more than 31 bits; a negative hash would index from the end of the table."""
    value = torch.arange(0, 128_000**2, 12_345_678)
    assert (mix(value) >= 0).all()
    assert torch.equal(mix(value), mix(value.clone()))
    assert mix(torch.arange(1000)).unique().numel() > 990


def test_hash_errors(data):
    with pytest.raises(ValueError, match="method is 'md5'"):
        hash_router("md5", vocab_size=V)
    for method in set(METHODS) - {"projection", "position"}:
        with pytest.raises(ValueError, match=f"method '{method}' needs token ids"):
            hash_router(method)
    x, _ = data(1, 3)
    with pytest.raises(ValueError, match="hash method 'random' needs token_ids"):
        hash_router("random", vocab_size=V)(RouterInput(x))
    with pytest.raises(ValueError, match="needs the training frequencies"):
        hash_router("balanced", vocab_size=V).calibrate()
    for method in ("clusters", "dispersed"):
        with pytest.raises(ValueError, match="needs token embeddings"):
            hash_router(method, vocab_size=V).calibrate()


def test_hash_projection_costs_its_forward_only(make_router):
    cost = make_router("hash_projection").cost(2, 6)
    assert (cost.forward, cost.backward) == (2 * 12 * D * 12, 0)
    assert make_router("hash").cost(2, 6).training == 0


# --- clusters of embeddings ---


def blobs(seed=0):
    """18 tokens in three clear clusters of six, in a shuffled order: (18, D) and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    cluster = torch.arange(3).repeat_interleave(6)[torch.randperm(18, generator=generator)]
    return torch.eye(3, D)[cluster] * 10 + 0.1 * torch.randn(18, D, generator=generator), cluster


def same_partition(a, b):
    return torch.equal(a.unsqueeze(0) == a.unsqueeze(1), b.unsqueeze(0) == b.unsqueeze(1))


def save(path, table):
    if path.suffix == ".npy":
        np.save(path, table.numpy())
    elif path.suffix == ".pt":
        torch.save({"embedding.weight": table, "step": torch.tensor(3)}, path)
    else:
        save_file({"wte": table}, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".safetensors"])
def test_clusters_of_a_table_that_the_user_brings(tmp_path, suffix):
    """The file decides, not what the backbone offers; its width need not be the model's."""
    table, cluster = blobs()
    path = save(tmp_path / f"table{suffix}", torch.cat([table, table], 1))
    router = hash_router("clusters", num_experts=3, vocab_size=18, embeddings=path)
    assert router.needs == ()
    router.calibrate(embeddings=torch.zeros(18, D))
    assert same_partition(router.table, cluster)
    spread = hash_router("dispersed", num_experts=3, vocab_size=18, embeddings=path)
    spread.calibrate()
    for part in range(3):
        assert torch.bincount(spread.table[cluster == part], minlength=3).tolist() == [2, 2, 2]


def test_clusters_follow_the_seed():
    """On embeddings without structure, k-means ends where its start leads it."""
    embeddings = torch.randn(200, D, generator=torch.Generator().manual_seed(5))
    tables = []
    for seed in (0, 0, 1):
        router = hash_router("clusters", vocab_size=200, seed=seed)
        assert router.needs == ("embeddings",)
        router.calibrate(embeddings=embeddings)
        tables.append(router.table)
    assert torch.equal(tables[0], tables[1])
    assert not same_partition(tables[0], tables[2])


def test_a_wrong_table_is_refused_in_one_sentence(tmp_path):
    def refused(match, embeddings, method="clusters", vocab_size=18):
        with pytest.raises(ValueError, match=match) as caught:
            hash_router(method, num_experts=3, vocab_size=vocab_size, embeddings=str(embeddings))
        assert "\n" not in str(caught.value)

    refused("no such file", tmp_path / "nothere.npy")
    refused("must be a file that ends in .npy, .pt, .safetensors", tmp_path / "table.csv")
    for suffix in (".npy", ".pt", ".safetensors"):
        (tmp_path / f"broken{suffix}").write_bytes(b"\x00\x01nothing")
        refused(f"cannot be read as {suffix}", tmp_path / f"broken{suffix}")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    refused("cannot be read as .npy", tmp_path / "objects.npy")
    np.save(tmp_path / "flat.npy", np.zeros(18, dtype=np.float32))
    refused("must hold a floating-point matrix", tmp_path / "flat.npy")
    torch.save([1, 2], tmp_path / "list.pt")
    refused("holds a list; it must hold", tmp_path / "list.pt")
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "two.safetensors")
    refused("holds 2 matrices .a, b.; it must hold one", tmp_path / "two.safetensors")
    good = save(tmp_path / "table.npy", blobs()[0])
    refused("has 18 rows; the data's vocabulary has 50", good, vocab_size=50)
    refused("only for method 'clusters' and 'dispersed'; the method is 'random'", good, method="random")
    save(tmp_path / "nan.npy", torch.full((18, 2), torch.nan))
    refused("not finite", tmp_path / "nan.npy")
    with pytest.raises(ValueError, match="at least the 3 experts; it has 2"):
        hash_router("clusters", num_experts=3, vocab_size=2)
    with pytest.raises(ValueError, match="they must have 18 rows"):
        hash_router("clusters", num_experts=3, vocab_size=18).calibrate(embeddings=torch.zeros(17, D))


def test_a_table_that_changes_is_read_again(tmp_path):
    table, cluster = blobs()
    path = save(tmp_path / "table.npy", table)
    hash_router("clusters", num_experts=3, vocab_size=18, embeddings=path)
    save(tmp_path / "table.npy", table.flip(0).repeat(1, 2))
    router = hash_router("clusters", num_experts=3, vocab_size=18, embeddings=path)
    router.calibrate()
    assert same_partition(router.table, cluster.flip(0))
