"""One backbone trained end to end: what dense and routed arms share.

Axes: B examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from routelab.backbones.backbone_registry import DEFAULT_FOR
from routelab.backbones.base import BACKBONES, Backbone, Slot
from routelab.baselines.base import Arm, ArmSpec, Penalty, Prediction, StepLoss
from routelab.core.errors import PluginError
from routelab.core.flops import Cost, Flops
from routelab.core.initialisation import initialise
from routelab.core.options import check_options
from routelab.data.task import Batch, Task
from routelab.experts.feed_forward import FeedForward, kind_named
from routelab.experts.moe_layer import MixtureLayer
from routelab.routers.base import Routing

ARM_OPTIONS = ("name", "hidden", "moe_every")
"""Keys of the backbone section that the arm reads itself; the rest are the backbone's own options."""

_NOMINAL_EXAMPLES = 16


def whole(name: str, value: object) -> int:
    """A size; ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return value


class SingleBackbone(Arm):
    """A backbone whose feed-forward slots `fill(slot)` fills."""

    network: Backbone

    def __init__(self, spec: ArmSpec) -> None:
        super().__init__(spec)
        self._fills: list[FeedForward | MixtureLayer] = []

    def fill(self, slot: Slot) -> FeedForward | MixtureLayer:
        """A feed-forward or a mixture layer for this slot. Here: the dense feed-forward of width `backbone.hidden`."""
        width = self.dense_hidden(slot) if kind_named(self.kind).has_hidden else None
        return FeedForward(self.kind, slot.d_model, width, self.bias, init_scale=self.init_scale)

    @property
    def kind(self) -> str:
        """The kind of all feed-forwards: `experts.kind`."""
        return str(self.spec.experts.get("kind", "gelu"))

    @property
    def unsizable(self) -> str | None:
        return None if kind_named(self.kind).has_hidden else f"has feed-forwards of kind {self.kind!r} without a hidden width"

    @property
    def init_scale(self) -> float:
        """Scale of the initial weights of all feed-forwards, see `routelab.experts.feed_forward.draw`."""
        return 1.0

    def dense_hidden(self, slot: Slot) -> int:
        """`backbone.hidden`, by default four times the features."""
        hidden = self.spec.backbone.get("hidden")
        return 4 * slot.d_model if hidden is None else whole("backbone.hidden", hidden)

    @property
    def bias(self) -> bool:
        """Whether the feed-forwards have biases: `experts.bias`."""
        bias = self.spec.experts.get("bias", False)
        if not isinstance(bias, bool):
            raise ValueError(f"experts.bias is {bias!r}; it must be true or false")
        return bias

    def build(self, task: Task, seed: int, *, sizing: bool = False) -> None:
        self.task = task
        self._fills = []

        def factory(slot: Slot) -> nn.Module:
            module = self.fill(slot)
            self._fills.append(module)
            return module

        options = {name: value for name, value in self.spec.backbone.items() if name not in ARM_OPTIONS}
        name = self.backbone_name(task)
        backbone: Callable[..., Backbone] = BACKBONES.get(name)
        check_options(f"backbone {name!r}", backbone, options, first=3, section="backbone.")
        self.network = backbone(task.inputs, task.outputs, factory, **options)
        for attribute in ("d_model", "positions"):
            if not isinstance(getattr(self.network, attribute, None), int):
                raise self._broken_backbone(f"its constructor must set {attribute}, a whole number")
        if not sizing:
            initialise(self.network, seed)

    def backbone_name(self, task: Task) -> str:
        """The backbone that the spec names, or the default for the task's inputs."""
        return str(self.spec.backbone.get("name") or DEFAULT_FOR[task.inputs.kind])

    @property
    def mixtures(self) -> list[MixtureLayer]:
        """The mixture layers, in order."""
        return [module for module in self._fills if isinstance(module, MixtureLayer)]

    def calibrate(self, layers: Iterable[MixtureLayer]) -> None:
        """Show the routers of some layers the frequencies of tokens and the embeddings, as far as there are any."""
        offered = self.offered()
        for layer in layers:
            layer.router.calibrate(**offered)

    def offered(self) -> dict[str, Tensor | None]:
        """What routers may be calibrated with."""
        return {"token_counts": self.task.token_counts, "embeddings": self.network.token_embeddings()}

    def answers(self, batch: Batch) -> tuple[Tensor, list[Routing]]:
        """The network on a batch; PluginError if its backbone breaks the contract."""
        result = self.network(batch.inputs, batch.mask)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            raise self._broken_backbone(f"forward returned {type(result).__name__}; it must return (outputs, routings)")
        outputs, routings = result
        if outputs.shape[:1] != (len(batch),) or outputs.shape[-1:] != (self.task.outputs,):
            raise self._broken_backbone(
                f"forward gave outputs of shape {tuple(outputs.shape)}; they must be ({len(batch)}, ..., {self.task.outputs})"
            )
        if len(routings) != len(self.mixtures):
            raise self._broken_backbone(
                f"forward returned {len(routings)} routings; it must return one for each of {len(self.mixtures)} mixture layers"
            )
        return outputs, routings

    def _broken_backbone(self, rule: str) -> PluginError:
        return PluginError(f"{BACKBONES.title_of(type(self.network))} broke the contract: {rule}")

    def loss(self, batch: Batch, index: Tensor) -> StepLoss:
        return self.step_loss(batch, *self.answers(batch))

    def step_loss(self, batch: Batch, outputs: Tensor, routings: list[Routing]) -> StepLoss:
        """The loss of what `answers` gave."""
        task_loss = self.task.loss(outputs, batch.targets).mean()
        return StepLoss(task_loss, self.flops(len(batch), routings, training=True), self.penalties(routings), routings)

    def predict(self, batch: Batch) -> Prediction:
        outputs, routings = self.answers(batch)
        groups, positions = self.network.layout(len(batch))
        return Prediction(outputs, self.flops(len(batch), routings, training=False), routings, positions, groups)

    def penalties(self, routings: list[Routing]) -> dict[str, Penalty]:
        """The auxiliary losses of the routings, summed over layers, with their weights."""
        found: dict[str, Penalty] = {}
        weights = self.loss_weights()
        for routing in routings:
            for name, raw in routing.losses.items():
                before = found[name].raw if name in found else 0.0
                found[name] = Penalty(before + raw, weights.get(name, 0.0))
        return found

    def loss_weights(self) -> dict[str, float]:
        """Weights of the auxiliary losses, by name."""
        return {}

    def update(self) -> None:
        routers = [layer.router for layer in self.mixtures]
        for kind in dict.fromkeys(type(router) for router in routers):
            kind.update_layers([router for router in routers if type(router) is kind])

    def counts(self) -> list[Tensor]:
        return [getattr(layer.router, name) for layer in self.mixtures for name in layer.router.counts]

    def flops(self, examples: int, routings: list[Routing], *, training: bool) -> Flops:
        """Model and executed FLOPs of one call: a part fixed by the shape, and the rows really dispatched."""
        groups, positions = self.network.layout(examples)
        cost = self.network.cost(examples)
        for module in self._fills:
            cost = cost + (
                module.fixed_cost(groups, positions) if isinstance(module, MixtureLayer) else module.cost(groups * positions)
            )
        fixed = cost.training if training else cost.forward
        spent = Flops(fixed, fixed + (self.network.recomputed(examples) if training else 0.0))
        for layer, routing in zip(self.mixtures, routings, strict=True):
            assert routing.work is not None
            work = routing.work
            row, pair = (cost.training if training else cost.forward for cost in (layer.row_cost, layer.pair_cost))
            again = layer.pair_recomputed if training else 0.0
            spent += Flops(work.kept * row, work.executed * row)
            spent += Flops(work.pairs_kept * pair, work.pairs_executed * (pair + again))
        return spent

    def flops_per_example(self) -> float:
        return self._nominal_cost().forward / _NOMINAL_EXAMPLES

    def train_flops_per_example(self) -> float:
        return self._nominal_cost().training / _NOMINAL_EXAMPLES

    def _nominal_cost(self) -> Cost:
        """Of a call on `_NOMINAL_EXAMPLES`, without drops and padding."""
        groups, positions = self.network.layout(_NOMINAL_EXAMPLES)
        cost = self.network.cost(_NOMINAL_EXAMPLES)
        for module in self._fills:
            if isinstance(module, MixtureLayer):
                cost = cost + module.nominal_cost(groups, positions)
            else:
                cost = cost + module.cost(groups * positions)
        return cost

    @property
    def active_params(self) -> int:
        """Everything but the experts, plus for each mixture as many experts as a token meets: its rows per token.

        A block that only some tokens go through counts as an expert that a token meets that often.
        """
        active = self.total_params
        groups, positions = self.network.layout(_NOMINAL_EXAMPLES)
        for layer in self.mixtures:
            rows = layer.nominal_rows(groups, positions)
            met = min(rows / (groups * positions), layer.experts.num_experts)
            bank = sum(parameter.numel() for parameter in layer.optional_parameters())
            active -= round(bank * (1 - met / layer.experts.num_experts))
        return active

    @property
    def causal(self) -> bool:
        return all(layer.causal for layer in self.mixtures)

    @property
    def batch_coupled(self) -> bool:
        if self.network.batch_is_group:
            return any(
                layer.batch_coupled or layer.capacity_factor is not None or not layer.per_token for layer in self.mixtures
            )
        return any(layer.batch_coupled for layer in self.mixtures)

    @property
    def leaks(self) -> str | None:
        if self.task.causal and not all(layer.causal_in_evaluation for layer in self.mixtures):
            return "later tokens"
        if self.network.batch_is_group and not all(layer.per_token for layer in self.mixtures):
            return "other examples"
        return None

    @property
    def leaks_in_training(self) -> str | None:
        return "later tokens" if self.task.causal and not self.causal and self.leaks is None else None

    @property
    def evaluation_coupled(self) -> bool:
        return any(layer.evaluation_coupled for layer in self.mixtures)
