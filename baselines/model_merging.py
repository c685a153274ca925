"""Several trained networks made into one prediction, or into one network.

Axes: M networks, B examples, S positions, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def running_posterior(log_MBSK: Tensor, ids_BS: Tensor) -> Tensor:
    """Log probability (M, B, S) of each network as the source of a text, at position s from ids 0 to s alone.

    log_MBSK: each network's log probabilities of the id that follows. The prior is uniform, also over the first id, which no
    network predicts (Li et al. 2022, Branch-Train-Merge, whose prior may also be estimated on held-out text).
    """
    following = ids_BS[:, 1:].long().expand(len(log_MBSK), -1, -1).unsqueeze(-1)
    likelihood_MBS = log_MBSK[:, :, :-1].gather(-1, following).squeeze(-1).cumsum(-1)
    return nn.functional.pad(likelihood_MBS, (1, 0)).log_softmax(0)


def posterior_prediction(values_MBSK: Tensor, ids_BS: Tensor) -> Tensor:
    """Log probabilities (B, S, K) of the networks' predictions weighted by `running_posterior`: Bayes' mixture, so that the
    probability of a whole text is the mean of those that the networks give it. values: logits."""
    log_MBSK = values_MBSK.float().log_softmax(-1)
    return (running_posterior(log_MBSK, ids_BS).unsqueeze(-1) + log_MBSK).logsumexp(0)


def mean_parameters(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The mean of every parameter of networks of one shape, by name."""
    return {name: torch.stack(values).mean(0) for name, values in _by_name(networks).items()}


@torch.no_grad()
def mix_into(mixture: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Fill a network whose feed-forwards are mixture layers of M experts: the networks' feed-forwards become the experts,
    and everything else the mean of theirs (Sukhbaatar et al. 2024, Branch-Train-MiX). Routers keep their values."""
    own: Mapping[str, list[Tensor]] = _by_name(networks)
    for name, parameter in mixture.named_parameters():
        dense = name.replace(".experts.", ".")
        if dense in own:
            values = torch.stack(own[dense])
            parameter.copy_(values if dense != name else values.mean(0))


def _by_name(networks: Sequence[nn.Module]) -> dict[str, list[Tensor]]:
    each = [dict(network.named_parameters()) for network in networks]
    return {name: [values[name].detach() for values in each] for name in each[0]}
