"""Specialists: one network for each part of the data, and the ways to make one predictor of them.

Axes: M specialists, N training examples, B examples of a batch, S positions, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from routelab.baselines.backbone_arm import SingleBackbone
from routelab.baselines.base import ArmSpec, ParameterGroup, Prediction, Stage, StepLoss
from routelab.baselines.build import make_single
from routelab.baselines.ensembles.batched_parameters import places_of, run_with
from routelab.baselines.ensembles.ensemble_base import mean_prediction
from routelab.baselines.ensembles.member_networks import OneByOne
from routelab.baselines.model_merging import mean_parameters, mix_into, posterior_prediction
from routelab.baselines.wrapper import Based
from routelab.core.errors import unknown
from routelab.core.flops import Flops
from routelab.core.seeds import key
from routelab.data.task import Batch, Task
from routelab.experts.feed_forward import kind_named

SPLITS = ("domain", "random", "none")
COMBINE = ("oracle", "posterior", "uniform", "weights", "router", "mix")
MIXED = ("router", "mix")
"""Ways that end in a phase of their own, in which a mixture made of the specialists is trained."""

SEED, BRANCHES, MIXTURE, DONE = "seed", "specialists", "mixture", "done"
PHASES = (SEED, BRANCHES, MIXTURE, DONE)


@dataclass(frozen=True)
class SpecialistOptions:
    """split: whose examples a specialist learns from: a domain's, a random part's (as many, of equal size), or none = all of
    them, one network in the phases of the others. combine: see `Specialists`. seed_share: of the budget, for one network on
    all data, of which the specialists are then copies.

    router_share: of the budget, for the mixture that `combine` router and mix end with.
    d_model, hidden: features and feed-forward width of a specialist; None = those of the backbone section. They are what
    matching sizes.
    """

    split: str = "domain"
    combine: str = "posterior"
    seed_share: float = 0.0
    router_share: float = 0.2
    d_model: int | None = None
    hidden: int | None = None


class Specialists(Based):
    """As many dense networks as the data have domains, each trained on its own (Li et al. 2022, Branch-Train-Merge).

    An example is seen by the specialist of its part alone, in the order in which the dense arm would see it, so that all
    specialists together take the steps, the examples and the FLOPs of one dense network. It weighs M times what it would weigh
    there, as a specialist's part of a batch is about an M-th. A specialist that a batch holds nothing for takes no step (where
    several processes share the batch, one by its momentum alone). They start as copies of one network: trained on all data for
    `seed_share` of the budget at a constant rate after the warm-up, or just initialised, as the dense arm of the seed is.

    `combine` says what predicts:

    - oracle: the specialist of the example's domain, which must be known then; marked as a leak.
    - posterior: the specialists' probabilities, weighted at every position by Bayes' posterior over them given the text so
      far (`running_posterior`). Texts only.
    - uniform: the mean of their probabilities (for regression, of their values).
    - weights: one network whose parameters are the mean of theirs.
    - router: for the last `router_share` of the budget, a mixture whose experts are the specialists' feed-forwards, frozen,
      and whose other parts start as the mean of theirs (Sukhbaatar et al. 2024, Branch-Train-MiX); router and other parts
      are trained on all data. The router is `topk`, whose options the arm then takes.
    - mix: the same, with experts trained too, as published.

    Until the specialists are trained, validation asks for the mean of their probabilities, whatever `combine` says.

    Options: see `SpecialistOptions`. The base is dense.
    """

    options_type = SpecialistOptions
    knobs = ("options.d_model", "options.hidden")

    phase: Tensor

    @classmethod
    def made_of(cls, spec: ArmSpec) -> tuple[str, ...]:
        return (*super().made_of(spec), *(("topk",) if spec.options.get("combine") in MIXED else ()))

    @classmethod
    def trained_as(cls, spec: ArmSpec) -> ArmSpec:
        """Ways to combine without a phase of their own are told apart by nothing but the last prediction."""
        mixes = spec.options.get("combine") in MIXED
        return spec if mixes else replace(spec, options={**spec.options, "combine": "uniform"})

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.task, self.seed, self.combine = task, seed, self.options.combine
        self._check(task)
        self.count = 1 if self.options.split == "none" else task.domains
        dense, mixed = self.base_spec(), self._mixture_spec()
        kinds = (dense, mixed) if self.mixes else (dense,)
        # Without memory, and no modules of this one's: they know what a network costs.
        self._templates = tuple(make_single(kind, task, seed, sizing=True) for kind in kinds)
        self.register_buffer("phase", torch.tensor(PHASES.index(self.stages()[0].name)))
        if not sizing:
            self.members = OneByOne([make_single(dense, task, seed) for _ in range(self.count)])
            self.mixture = make_single(mixed, task, seed) if self.mixes else None

    def _check(self, task: Task) -> None:
        given = self.options
        for name, allowed in (("split", SPLITS), ("combine", COMBINE)):
            if getattr(given, name) not in allowed:
                raise unknown(f"{name} of arm {self.spec.name!r}", getattr(given, name), allowed)
        for name in ("seed_share", "router_share"):
            value, none = getattr(given, name), name == "seed_share"
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < 1 or (value == 0 and not none):
                raise ValueError(f"{name} is {value!r}; it must be a number, {'at least' if none else 'above'} 0 and below 1")
        if self.mixes and given.seed_share + given.router_share >= 1:
            raise ValueError(
                f"seed_share is {given.seed_share} and router_share {given.router_share}; together they must be below 1, which "
                f"leaves the specialists a part of the budget"
            )
        kind, latent = str(self.spec.experts.get("kind", "gelu")), self.spec.router.get("latent_dim")
        if self.mixes and kind_named(kind).rank is not None:
            raise ValueError(f"experts.kind is {kind!r}, whose experts share their matrices; specialists do not")
        if self.mixes and latent is not None:
            raise ValueError(f"router.latent_dim is {latent!r}; specialists, which become the experts, work on all features")
        if task.domains < 2 and given.split != "none":
            raise ValueError(
                f"there is a specialist for every domain of the data, and {task.name!r} has no domains; data sets that have: "
                f"domains, and hub with data.domain"
            )
        if self.combine == "oracle" and given.split != "domain":
            raise ValueError(
                f"combine is 'oracle' and split {given.split!r}; a new example has a domain, but no part by itself"
            )
        if self.combine == "posterior" and task.kind != "language":
            raise ValueError(
                f"combine is 'posterior', which weighs specialists by how well they predicted a text so far; "
                f"{task.name!r} is {task.kind}: take {', '.join(way for way in COMBINE if way != 'posterior')}"
            )

    @property
    def mixes(self) -> bool:
        """Whether there is a mixture in the end."""
        return self.combine in MIXED

    def _mixture_spec(self) -> ArmSpec:
        """The mixture of all specialists, its experts as wide as they are."""
        dense = self.base_spec()
        experts = {name: value for name, value in dense.experts.items() if name in ("kind", "bias")}
        return ArmSpec("topk", {**dense.backbone, "moe_every": 1}, {**experts, "count": self.count}, self.spec.router)

    @property
    def template(self) -> SingleBackbone:
        """What predicts in the end: the mixture, or a specialist."""
        return self._templates[-1]

    # Training

    def stages(self) -> Sequence[Stage]:
        last = self.options.router_share if self.mixes else 0.0
        shares = {SEED: self.options.seed_share, BRANCHES: 1 - self.options.seed_share - last, MIXTURE: last}
        return [Stage(name, share, schedule="constant" if name == SEED else None) for name, share in shares.items() if share]

    def prepare(self, train: Batch) -> None:
        if self.options.split == "domain":
            assert train.domain is not None
            self._part = train.domain
        else:
            self._part = random_parts(len(train), self.count, self.seed).to(train.inputs.device)

    def begin(self, stage: int) -> None:
        name = self.stages()[stage].name
        self.phase.fill_(PHASES.index(name))
        self._name = name
        for number in range(self.count):
            self.members.member(number).requires_grad_(name == BRANCHES or (name == SEED and number == 0))
        if self.mixture is not None:
            self.mixture.requires_grad_(name == MIXTURE)
            if self.combine == "router":
                for layer in self.mixture.mixtures:
                    layer.experts.requires_grad_(False)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        arms = [*(self.members.member(number) for number in range(self.count)), *([self.mixture] if self.mixture else [])]
        found = [[parameter for parameter in arm.parameters() if parameter.requires_grad] for arm in arms]
        return [ParameterGroup(group) for group in found if group]

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        if self._name == SEED:
            return self.members.member(0).loss(batch, index)
        if self._name == MIXTURE:
            return self._mixture_loss(batch, index)
        summed, flops = self._each_its_own(batch, self._part[index])
        losses = [self.task.loss(values, batch.targets[mine]).sum() for mine, values in summed]
        return StepLoss(torch.stack(losses).sum() / len(batch), flops, summed=self.count)

    def _each_its_own(self, batch: Batch, part_B: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Flops]:
        """For every specialist that has examples among these: their places, and its outputs for them."""
        found = []
        spent = Flops()
        # One wait for a GPU, however many specialists there are.
        sizes = (part_B == torch.arange(self.count, device=part_B.device).unsqueeze(1)).sum(1).tolist()
        for number, mine in enumerate(part_B.argsort(stable=True).split(sizes)):
            if len(mine):
                out = self.members.one(number, batch.select(mine))
                found.append((mine, out.values[0]))
                spent += out.flops
        return found, spent

    def _mixture_loss(self, batch: Batch, index: Tensor) -> StepLoss:
        assert self.mixture is not None
        loss = self.mixture.loss(batch, index)
        if self.combine == "mix":
            return loss
        spent = loss.flops
        for layer, routing in zip(self.mixture.mixtures, loss.routings, strict=True):
            assert routing.work is not None
            # Half of an expert's backward pass is the gradient of its matrices, which are frozen.
            saved = layer.row_cost.backward / 2
            spent += Flops(-routing.work.kept * saved, -routing.work.executed * saved)
        return replace(loss, flops=spent)

    def finish(self, stage: int, train: Batch) -> Flops | None:
        name = self.stages()[stage].name
        networks = [self.members.member(number).network for number in range(self.count)]
        if name == SEED:
            for network in networks[1:]:
                network.load_state_dict(networks[0].state_dict())
        elif name == BRANCHES and self.mixture is not None:
            mix_into(self.mixture.network, networks)
        elif name == BRANCHES:
            self.phase.fill_(PHASES.index(DONE))
        return None

    def update(self) -> None:
        if self.mixture is not None and self._name == MIXTURE:
            self.mixture.update()

    def counts(self) -> Sequence[Tensor]:
        return self.mixture.counts() if self.mixture is not None and self._name == MIXTURE else []

    # Prediction

    def predict(self, batch: Batch) -> Prediction:
        phase = PHASES[int(self.phase)]
        if phase == SEED:
            return self.members.member(0).predict(batch)
        if phase == MIXTURE:
            assert self.mixture is not None
            return self.mixture.predict(batch)
        combine = self.combine if phase == DONE else "uniform"
        if combine == "oracle":
            return self._oracle(batch)
        if combine == "weights":
            return self._averaged(batch)
        out = self.members(batch, False)
        if combine == "posterior":
            return Prediction(posterior_prediction(out.values, batch.inputs), out.flops, members=out.values)
        return Prediction(mean_prediction(self.task, out.values), out.flops, members=out.values)

    def _oracle(self, batch: Batch) -> Prediction:
        assert batch.domain is not None
        found, flops = self._each_its_own(batch, batch.domain)
        place = torch.cat([mine for mine, _ in found])
        return Prediction(torch.cat([values for _, values in found])[place.argsort()], flops)

    def _averaged(self, batch: Batch) -> Prediction:
        first = self.members.member(0)
        mean = mean_parameters([self.members.member(number).network for number in range(self.count)])
        outputs = run_with(first.network, places_of(first.network), mean, batch.inputs, batch.mask)
        return Prediction(outputs, first.flops(len(batch), [], training=False))

    @property
    def leaks(self) -> str | None:
        return "the example's domain" if self.combine == "oracle" else super().leaks

    # What it costs

    @property
    def _asked(self) -> int:
        """How many networks a prediction runs."""
        return self.count if self.combine in ("posterior", "uniform") else 1

    def flops_per_example(self) -> float | None:
        return self._asked * self.template.flops_per_example()

    def train_flops_per_example(self) -> float | None:
        """Of a specialist, whose example no other sees; of the mixture, for its part of the steps."""
        one = self._templates[0].train_flops_per_example()
        if not self.mixes:
            return one
        mixed, share = self.template, self.options.router_share
        groups, positions = mixed.network.layout(1)
        frozen = sum(layer.row_cost.backward / 2 * layer.nominal_rows(groups, positions) for layer in mixed.mixtures)
        return (1 - share) * one + share * (mixed.train_flops_per_example() - (frozen if self.combine == "router" else 0.0))

    @property
    def total_params(self) -> int:
        """Of what predicts; for oracle all specialists, of which it runs one."""
        return (self.count if self.combine == "oracle" else self._asked) * self.template.total_params

    @property
    def active_params(self) -> int:
        return self._asked * self.template.active_params


def random_parts(examples: int, parts: int, seed: int) -> Tensor:
    """Which part each example belongs to, (N,): a permutation drawn from the seed, dealt out in turn."""
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(key(seed, "parts")))
    return torch.empty(examples, dtype=torch.int64).scatter_(0, order, torch.arange(examples) % parts)
