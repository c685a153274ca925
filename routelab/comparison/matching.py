"""Matching: size each arm so that what is compared costs the same (accounting.md §2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from routelab.baselines.base import Arm, ArmSpec
from routelab.baselines.build import blame, make_arm
from routelab.config.arm_grid import ArmChoice
from routelab.config.schema import Match
from routelab.core.errors import PluginError, UsageError, unknown
from routelab.data.task import Task

_STEPS = (8, 4, 1)
"""Widths are tried as multiples of 8, then 4, then 1: the grouped kernel wants strides of 16 bytes."""

_WIDEST_STEP = 256


def train_flops(arm: Arm) -> float | None:
    """FLOPs of training for each example that the budget's steps or epochs draw, however many rounds an arm makes of them."""
    each = arm.train_flops_per_example()
    return None if each is None else each * arm.rounds


MEASURES: dict[str, tuple[str, Callable[[Arm], float | None]]] = {
    "flops_per_example": ("FLOPs per example", lambda arm: arm.flops_per_example()),
    "total_params": ("parameters", lambda arm: arm.total_params),
    "active_params": ("active parameters", lambda arm: arm.active_params),
    "train_flops": ("training FLOPs", train_flops),
}
"""What `match.on` may make equal: its name in sentences, and how it is asked of an arm."""


@dataclass(frozen=True)
class Matched:
    """An arm with its widths settled, and what it costs. ratio: of what was made equal, to the reference (FLOPs per example
    where nothing was). train_flops_per_example: see `train_flops`."""

    choice: ArmChoice
    flops_per_example: float | None
    ratio: float | None
    active_params: int
    total_params: int
    causal: bool
    train_flops_per_example: float | None = None
    error: str | None = None
    """Why the arm could not even be asked what it costs (a plugin's mistake); it is reported as failed, the others run."""


def reference_of(choices: Sequence[ArmChoice], match: Match) -> ArmChoice | None:
    """The arm that others are matched to and compared with: the one labelled `match.reference`, else the first of that name."""
    by_label = [choice for choice in choices if choice.label == match.reference]
    return next(iter([*by_label, *(choice for choice in choices if choice.spec.name == match.reference)]), None)


def match_arms(choices: Sequence[ArmChoice], task: Task, match: Match) -> list[Matched]:
    """Settle every arm's widths.

    Without a reference (see `reference_of`) arms keep their sizes, and ratios are to the first arm.

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
    reference = reference_of(choices, match)
    name, asked = MEASURES.get(match.on, MEASURES["flops_per_example"])

    def measure(arm: Arm) -> float | None:
        return None if arm.fit_outside_loop else asked(arm)

    base = _base(reference, choices, built, broken, match, measure)
    results = []
    for choice in choices:
        if choice.label in broken:
            results.append(Matched(choice, None, None, 0, 0, True, error=broken[choice.label]))
            continue
        settled, arm = choice, built[choice.label]
        try:
            if match.on != "none" and reference is not None and choice is not reference and base is not None:
                settled, arm = _fit(choice, arm, task, base, match.tolerance, name, measure)
            size = measure(arm)
            ratio = None if size is None or base is None else size / base
            results.append(
                Matched(
                    settled,
                    arm.flops_per_example(),
                    ratio,
                    arm.active_params,
                    arm.total_params,
                    arm.causal,
                    train_flops(arm),
                )
            )
        except PluginError as error:
            results.append(Matched(choice, None, None, 0, 0, True, error=str(error)))
        except UsageError:
            raise
        except Exception as error:
            results.append(Matched(choice, None, None, 0, 0, True, error=blame(choice.spec, error, "before the first step")))
    return results


def _base(
    reference: ArmChoice | None,
    choices: Sequence[ArmChoice],
    built: dict[str, Arm],
    broken: dict[str, str],
    match: Match,
    measure: Callable[[Arm], float | None],
) -> float | None:
    """The measure of the reference, or of the first arm that there is. UsageError if the arms need one that fails."""
    label = reference.label if reference else next(iter(built), None)
    try:
        if label in broken:
            raise PluginError(broken[label])
        return measure(built[label]) if label else None
    except Exception as error:
        others = [choice.label for choice in choices if choice is not reference]
        if reference is not None and match.on != "none" and others:
            raise UsageError(f"the other arms are matched to arm {label!r}, which fails: {error}; or match.on=none") from error
        return None


def _fit(
    choice: ArmChoice,
    arm: Arm,
    task: Task,
    base: float,
    tolerance: float,
    name: str,
    measure: Callable[[Arm], float | None],
) -> tuple[ArmChoice, Arm]:
    knobs = arm.knobs
    free = [knob for knob in knobs if choice.spec.get(knob) is None]
    now = measure(arm)
    if now is None or not knobs or (not free and abs(now / base - 1) <= tolerance):
        return choice, arm

    def sized(spec: ArmSpec) -> tuple[float, Arm]:
        candidate = make_arm(spec, task, 0, sizing=True)
        return measure(candidate) or 0.0, candidate

    if arm.unsizable is not None:
        if abs(now / base - 1) <= tolerance:
            return choice, arm
        raise UsageError(
            f"arm {choice.label!r} {arm.unsizable}, and has {now / base:.3f} of the reference's {name}, more than "
            f"match.tolerance={tolerance} away; set match.reference={choice.label} to size the others to it, or match.on=none"
        )
    # Coarse knobs come near, the last one settles it.
    coarse, fine = free[:-1], (free or list(knobs))[-1]
    if not free:
        exact = _width(lambda width: sized(choice.spec.with_value(fine, width))[0], base)
        raise UsageError(
            f"arm {choice.label!r}: {_word(fine)}={choice.spec.get(fine)} gives {now / base:.3f} of the reference's {name}, "
            f"more than match.tolerance={tolerance} away; the nearest size is {max(1, round(exact))}, or match.on=none"
        )
    specs = [choice.spec]
    for knob in coarse:
        specs = [spec.with_value(knob, width) for spec in specs for width in _near(spec, knob, base, lambda s: sized(s)[0])]
    found = [_settle(spec, fine, base, tolerance, sized) for spec in specs]
    near = [each for each in found if abs(each[0] / base - 1) <= tolerance]
    size, settled, fitted = (near or sorted(found, key=lambda each: abs(each[0] / base - 1)))[0]
    if abs(size / base - 1) > tolerance:
        at = ", ".join(f"{_word(knob)}={settled.get(knob)}" for knob in free)
        raise UsageError(
            f"arm {choice.label!r} cannot be matched within match.tolerance={tolerance}: its nearest size, "
            f"{at}, has {size / base:.3f} of the reference's {name}"
        )
    return replace(choice, spec=settled), fitted


def _word(knob: str) -> str:
    """A knob as it is written in the configuration: an arm's own options stand beside its name."""
    return knob.removeprefix("options.")


_Sized = Callable[[ArmSpec], tuple[float, Arm]]


def _settle(spec: ArmSpec, knob: str, base: float, tolerance: float, sized: _Sized) -> tuple[float, ArmSpec, Arm]:
    """The width of one knob whose measure is nearest to `base`, or a rounder one that is near enough."""
    exact = _width(lambda width: sized(spec.with_value(knob, width))[0], base)
    best: tuple[float, ArmSpec, Arm] | None = None
    for step in _STEPS:
        for width in {max(1, int(exact // step) * step), max(1, (int(exact // step) + 1) * step)}:
            changed = spec.with_value(knob, width)
            size, candidate = sized(changed)
            if best is None or abs(size / base - 1) < abs(best[0] / base - 1):
                best = (size, changed, candidate)
        assert best is not None
        # A rounder width is worth a little distance, not all of the tolerance.
        if abs(best[0] / base - 1) <= 0.8 * tolerance:
            break
    assert best is not None
    return best


def _width(size: Callable[[int], float], base: float) -> float:
    """The real-valued width whose measure equals `base`: FLOPs and parameters are affine in a feed-forward's width."""
    low, high = size(8), size(16)
    return float(max(1.0, 8 + (base - low) * 8 / (high - low)))


def _near(spec: ArmSpec, knob: str, base: float, size: Callable[[ArmSpec], float]) -> list[int]:
    """The widths of a coarse knob on either side of `base`. Not every width is one: the number of heads must divide it, so
    steps are of the smallest that is."""

    def at(width: int) -> float | None:
        try:
            return size(spec.with_value(knob, width))
        except UsageError:
            return None

    step = next((width for width in range(4, _WIDEST_STEP + 1) if at(width) is not None), None)
    if step is None:
        size(spec.with_value(knob, _WIDEST_STEP))  # raises what is wrong
        return [_WIDEST_STEP]
    low, high = 1, 2
    while (at(high * step) or 0.0) < base and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (at(middle * step) or 0.0) < base else (low, middle)
    return [low * step, high * step]


def check_reference(choices: Sequence[ArmChoice], match: Match) -> None:
    """UsageError if `match.reference` is none of the arms, but for the default: arms without a dense one keep their sizes."""
    if match.reference != Match().reference and reference_of(choices, match) is None:
        raise unknown("match.reference", match.reference, {name for each in choices for name in (each.label, each.spec.name)})
