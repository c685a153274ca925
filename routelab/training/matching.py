"""Matching: size each arm so that what is compared costs the same (accounting.md §2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from baselines.contract import Arm, arm_class, make_arm
from baselines.task import Task
from routelab.training.arms import ArmChoice
from routelab.training.config import Match
from routers.errors import PluginError, UsageError

_STEPS = (8, 4, 1)
"""Widths are tried as multiples of 8, then 4, then 1: the grouped kernel wants strides of 16 bytes."""


@dataclass(frozen=True)
class Matched:
    """An arm with its widths settled, and what it costs."""

    choice: ArmChoice
    flops_per_example: float | None
    ratio: float | None
    active_params: int
    total_params: int
    causal: bool
    error: str | None = None
    """Why the arm could not even be asked what it costs (a plugin's mistake); it is reported as failed, the others run."""


def match_arms(choices: Sequence[ArmChoice], task: Task, match: Match) -> list[Matched]:
    """Settle every arm's widths.

    The reference is the arm labelled (or named) `match.reference`; if there is none, arms keep their sizes and ratios are
    to the first arm.

    An arm whose size or options are wrong is a UsageError, and nothing runs. But one that is not built in may be wrong by
    itself: then it is reported as failed (`Matched.error`) and the others run, unless they are to be matched to it.
    """
    built: dict[str, Arm] = {}
    broken: dict[str, str] = {}
    for choice in choices:
        try:
            built[choice.label] = make_arm(choice.spec, task, 0, sizing=True)
        except PluginError as error:
            broken[choice.label] = str(error)
    reference = next((c for c in choices if match.reference in (c.label, c.spec.name)), None)
    base = _base(reference, choices, built, broken, match)
    results = []
    for choice in choices:
        if choice.label in broken:
            results.append(Matched(choice, None, None, 0, 0, True, broken[choice.label]))
            continue
        settled, arm = choice, built[choice.label]
        try:
            if match.on != "none" and reference is not None and choice is not reference and base is not None:
                settled, arm = _fit(choice, arm, task, base, match.tolerance)
            flops = arm.flops_per_example()
            ratio = None if flops is None or base is None else flops / base
            results.append(Matched(settled, flops, ratio, arm.active_params, arm.total_params, arm.causal))
        except PluginError as error:
            results.append(Matched(choice, None, None, 0, 0, True, str(error)))
        except UsageError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            results.append(Matched(choice, None, None, 0, 0, True, f"{type(error).__name__} before the first step: {error}"))
    return results


def _base(
    reference: ArmChoice | None, choices: Sequence[ArmChoice], built: dict[str, Arm], broken: dict[str, str], match: Match
) -> float | None:
    """FLOPs per example of the reference, or of the first arm that there is. UsageError if the arms need one that fails."""
    label = reference.label if reference else next(iter(built), None)
    try:
        if label in broken:
            raise PluginError(broken[label])
        return built[label].flops_per_example() if label else None
    except Exception as error:
        others = [choice.label for choice in choices if choice is not reference]
        if reference is not None and match.on != "none" and others:
            raise UsageError(f"the other arms are matched to arm {label!r}, which fails: {error}; or match.on=none") from error
        return None


def _fit(choice: ArmChoice, arm: Arm, task: Task, base: float, tolerance: float) -> tuple[ArmChoice, Arm]:
    knobs = arm_class(choice.spec.name).knobs
    free = [knob for knob in knobs if choice.spec.get(knob) is None]
    now = arm.flops_per_example()
    if now is None:
        return choice, arm

    def sized(width: int) -> Arm:
        return make_arm(choice.spec.with_value(knobs[0], width), task, 0, sizing=True)

    def off(flops: float | None) -> float:
        return abs((flops or 0.0) / base - 1)

    if not knobs or (not free and off(now) <= tolerance):
        return choice, arm
    exact = _width(sized, base)
    if not free:
        raise UsageError(
            f"arm {choice.label!r}: {knobs[0]}={choice.spec.get(knobs[0])} gives {now / base:.3f} of the reference's FLOPs per "
            f"example, more than match.tolerance={tolerance} away; the nearest size is {max(1, round(exact))}, or match.on=none"
        )
    best: tuple[float, int, Arm] | None = None
    for step in _STEPS:
        for width in {max(1, int(exact // step) * step), max(1, (int(exact // step) + 1) * step)}:
            candidate = sized(width)
            distance = off(candidate.flops_per_example())
            if best is None or distance < best[0]:
                best = (distance, width, candidate)
        assert best is not None
        # A rounder width is worth a little distance, not all of the tolerance.
        if best[0] <= 0.8 * tolerance:
            break
    assert best is not None
    if best[0] > tolerance:
        raise UsageError(
            f"arm {choice.label!r} cannot be matched within match.tolerance={tolerance}: its nearest size, "
            f"{knobs[0]}={best[1]}, costs {(best[2].flops_per_example() or 0) / base:.3f} of the reference"
        )
    return replace(choice, spec=choice.spec.with_value(knobs[0], best[1])), best[2]


def _width(sized: Callable[[int], Arm], base: float) -> float:
    """The real-valued width whose cost equals `base`: FLOPs are affine in a width."""
    low, high = (sized(width).flops_per_example() or 0.0 for width in (8, 16))
    return float(max(1.0, 8 + (base - low) * 8 / (high - low)))
