"""Routers see the backbone's token embeddings before training: through an arm, on a small backbone that has some."""

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from routelab.backbones.base import BACKBONES, Backbone, Slot
from routelab.baselines.base import ArmSpec
from routelab.baselines.build import make_arm
from routelab.core.errors import UsageError
from routelab.core.flops import Cost
from routelab.core.registry import only_for_now
from routelab.data.task import Batch, InputSpec, Task

V, D, S, E = 40, 8, 6, 4


class Bag(Backbone):
    """Embedding, one feed-forward slot, mean over positions."""

    def __init__(self, inputs, outputs, feed_forward, *, offers=True):
        super().__init__(inputs, outputs)
        self.d_model, self.positions, self.offers = D, S, offers
        self.embedding = nn.Embedding(inputs.vocab_size, D)
        self.feed_forward = feed_forward(Slot(0, D, S, inputs.vocab_size))
        self.head = nn.Linear(D, outputs)

    def forward(self, x, mask=None):
        out, routing = self.feed_forward(self.embedding(x), x, mask)
        return self.head(out.mean(1)), [routing]

    def token_embeddings(self):
        return self.embedding.weight if self.offers else None

    def cost(self, examples):
        return Cost()


@pytest.fixture(autouse=True)
def bag():
    with only_for_now(BACKBONES):
        BACKBONES.register("bag")(Bag)
        yield


def hash_arm(method, seed=0, offers=True, sizing=False, counts=None, **router):
    task = Task("words", "classification", InputSpec("text", (S,), V), 3, token_counts=counts)
    spec = ArmSpec("hash", {"name": "bag", "offers": offers}, {"count": E, "hidden": 8}, {"method": method, **router})
    return make_arm(spec, task, seed, sizing=sizing)


def test_clusters_are_those_of_the_embeddings_at_initialisation():
    arm = hash_arm("clusters")
    router = arm.mixtures[0].router
    start = arm.network.embedding.weight.detach().double().numpy()
    found = KMeans(E, n_init=4, random_state=router.cluster_seed).fit_predict(start)
    assert router.table.tolist() == found.tolist()
    ids = torch.randint(0, V, (5, S))
    result = arm.loss(Batch(ids, torch.zeros(5, dtype=torch.int64)), torch.arange(5))
    assert torch.equal(result.routings[0].plan.expert.view(5, S), router.table[ids])


@pytest.mark.parametrize("sizing", [True, False])
def test_the_decoder_offers_its_embeddings(sizing):
    task = Task("bytes", "language", InputSpec("text", (S,), V), V)
    spec = ArmSpec("hash", {"name": "decoder", "d_model": D, "depth": 1, "heads": 2}, {"count": E}, {"method": "clusters"})
    arm = make_arm(spec, task, 0, sizing=sizing)
    if not sizing:
        router = arm.mixtures[0].router
        start = arm.network.embedding.detach().double().numpy()
        assert router.table.tolist() == KMeans(E, n_init=4, random_state=router.cluster_seed).fit_predict(start).tolist()


@pytest.mark.parametrize("method", ["clusters", "dispersed"])
def test_tables_follow_the_seed(method):
    same, again, other = (hash_arm(method, seed).mixtures[0].router.table for seed in (0, 0, 1))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert set(same.tolist()) == set(range(E))


@pytest.mark.parametrize("sizing", [True, False])
def test_what_a_router_cannot_do_without_is_asked_for_before_any_work(sizing):
    with pytest.raises(UsageError, match="needs embeddings, which this backbone does not offer"):
        hash_arm("clusters", offers=False, sizing=sizing)
    with pytest.raises(UsageError, match="needs token counts, which data 'words' does not offer"):
        hash_arm("balanced", sizing=sizing)
    hash_arm("balanced", sizing=sizing, counts=torch.arange(V))
    hash_arm("clusters", sizing=sizing)


def test_a_table_of_the_users_own_needs_no_embeddings(tmp_path):
    torch.save(torch.randn(V, 3), tmp_path / "table.pt")
    arm = hash_arm("clusters", offers=False, embeddings=str(tmp_path / "table.pt"))
    assert set(arm.mixtures[0].router.table.tolist()) == set(range(E))
    with pytest.raises(UsageError, match="there is no such file"):
        hash_arm("clusters", embeddings="nothere.pt", sizing=True)
