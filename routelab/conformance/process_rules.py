"""The rule of training in several processes: one run of two processes for any number of routers.

Axes: G groups, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from routelab.conformance.router_under_test import Subject
from routelab.conformance.rules import Check, DoesNotApplyError, Rule, require, require_close
from routelab.conformance.training_rules import gradients_of, quiet
from routelab.core.collectives import processes
from routelab.core.plugins import load_plugin
from routelab.core.process_group import launch
from routelab.routers.base import Router
from routelab.routers.probes.random_tokens import tokens
from routelab.training.engines.data_parallel import average_gradients

Case = tuple[str | type[Router], Mapping[str, Any]]

SENTENCE = "Two processes with half of each batch end a step with the gradients, losses and state of one that has it whole."
COUNT = 2


def check_in_processes(cases: Mapping[str, Case], plugins: Sequence[str] = ()) -> dict[str, Check]:
    """Name -> what came of the rule, for each name -> (router, options). It takes as long as two starts of Python.

    plugins: what new processes must load to know the routers' names.
    """
    found: dict[str, Any] = launch(_member, (dict(cases), tuple(plugins)), COUNT, lambda said: None)
    return {
        name: Rule("processes", SENTENCE, _against(found[name])).check(Subject(router, options))
        for name, (router, options) in cases.items()
    }


def _against(theirs: dict[str, Any] | str) -> Callable[[Subject], None]:
    def test(subject: Subject) -> None:
        if quiet(subject).router.batch_coupled:
            raise DoesNotApplyError("its batch is coupled: each process routes its own half")
        require(not isinstance(theirs, str), f"in a process of its own it raised {theirs}")
        assert not isinstance(theirs, str)
        for name, value in _step(subject).items():
            require_close(f"two processes and one, {name}", torch.tensor(theirs[name]).reshape(value.shape), value, 1e-5)

    return test


def _member(tell: Callable[[Any], None], cases: dict[str, Case], plugins: tuple[str, ...]) -> dict[str, Any]:
    """What one process finds for each router: tensors as lists, or its error in words."""
    # A router that fails in one process alone leaves the other waiting.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    for plugin in plugins:
        load_plugin(plugin)
    found: dict[str, Any] = {}
    for name, (router, options) in cases.items():
        try:
            found[name] = {key: value.tolist() for key, value in _step(Subject(router, options)).items()}
        except DoesNotApplyError:
            found[name] = {}
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _step(subject: Subject) -> dict[str, Tensor]:
    """One optimizer step on this process's groups: gradients, losses and state, as training sums and averages them."""
    layer = quiet(subject)
    x, ids = tokens(4, 8)
    mask = torch.arange(8).expand(4, 8) < torch.tensor([[8], [6], [3], [5]])
    rank = distributed.get_rank() if processes() > 1 else 0
    mine = slice(4 * rank // processes(), 4 * (rank + 1) // processes())
    out, routing = layer(x[mine], ids[mine], mask[mine])
    (out.square().mean() + sum(routing.losses.values())).backward()
    losses = {f"loss {name!r}": loss.detach().clone() / processes() for name, loss in routing.losses.items()}
    router = layer.router
    if processes() > 1:
        average_gradients(layer.parameters())
        for value in (*losses.values(), *(router.get_buffer(name) for name in router.counts)):
            distributed.all_reduce(value)
    router.update()
    return gradients_of(layer) | losses | {name: buffer.clone() for name, buffer in router.named_buffers()}
