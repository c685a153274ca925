"""The versioned map of keys from commit f3c8993 to the present tree.

A refactoring that renames a key adds a line here, in the same commit, and raises `version`. Then the values of f3c8993 stay
comparable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class KeyMapError(ValueError):
    """An entry of the map that gives two old keys one new name."""


@dataclass(frozen=True)
class Names:
    """The names of one kind of key.

    Attributes:
        exact: New name by old name. None as the new name drops the key from the comparison.
        patterns: Pairs of a regular expression and its replacement. They apply in order to a name that `exact` lacks. The
            expression may match anywhere in the name. A name that becomes empty is dropped from the comparison.
        added: Regular expressions for keys of the present tree that f3c8993 lacks. The whole key must match.
    """

    exact: Mapping[str, str | None] = field(default_factory=dict)
    patterns: tuple[tuple[str, str], ...] = ()
    added: tuple[str, ...] = ()

    def translate(self, name: str) -> str | None:
        """Return the present name of a key, or None if the key is dropped.

        Args:
            name: The key at f3c8993.

        Returns:
            The key in the present tree.
        """
        if name in self.exact:
            return self.exact[name]
        for pattern, replacement in self.patterns:
            name = re.sub(pattern, replacement, name)
        return name or None

    def translate_all(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values under their present names.

        Args:
            values: Values by their keys at f3c8993.

        Returns:
            The values that are kept, by their present keys.

        Raises:
            KeyMapError: Two keys have one present name.
        """
        translated: dict[str, Any] = {}
        for old, value in values.items():
            new = self.translate(old)
            if new is None:
                continue
            if new in translated:
                raise KeyMapError(f"the key map gives two keys the name {new!r}; the second is {old!r}")
            translated[new] = value
        return translated

    def is_added(self, name: str) -> bool:
        """Return True if f3c8993 may lack the key.

        Args:
            name: A key of the present tree.

        Returns:
            True if an expression of `added` matches the whole key.
        """
        return any(re.fullmatch(pattern, name) for pattern in self.added)


@dataclass(frozen=True)
class KeyMap:
    """All names that the golden test depends on.

    Attributes:
        version: The number of changes of the map. 0 is the layout of f3c8993.
        config: Dotted keys of a configuration. An option of an arm has the key `arm.NAME.OPTION` first, then `OPTION`.
        config_added: Dotted keys that the present tree needs in order to behave as f3c8993.
        config_values: New value by old value, by the old dotted key. The name of an arm has the key `arm.name`.
        attributes: Attributes of what `train` and `compare` return, such as `Run.record` and `Comparison.output`.
        record: Flattened keys of a run's record, such as `curve.0.train/loss`.
        summary: Flattened keys of summary.json.
        columns: Headers of CSV files.
        files: Names of the files of a comparison.
        weights: Names in the state of a trained arm.
    """

    version: int = 0
    config: Names = field(default_factory=Names)
    config_added: Mapping[str, Any] = field(default_factory=dict)
    config_values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    attributes: Names = field(default_factory=Names)
    record: Names = field(default_factory=Names)
    summary: Names = field(default_factory=Names)
    columns: Names = field(default_factory=Names)
    files: Names = field(default_factory=Names)
    weights: Names = field(default_factory=Names)

    def translate_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with dotted keys under its present keys.

        Args:
            config: The configuration at f3c8993, with dotted keys.

        Returns:
            The same configuration for the present tree.

        Raises:
            KeyMapError: Two keys have one present name.
        """
        named = {}
        for key, value in config.items():
            if key == "arm":
                named[key] = self._translate_arm(value)
            elif key == "arms":
                named[key] = [self._translate_arm(arm) for arm in value]
            else:
                named[key] = self._translate_value(key, value)
        return {**self.config.translate_all(named), **self.config_added}

    def translate_recording(self, recording: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `record.py` wrote at f3c8993 under the present names.

        Args:
            recording: The parsed JSON of `record.py`.

        Returns:
            The same values under the present names.

        Raises:
            KeyMapError: Two keys have one present name.
        """
        kinds = self.kinds()
        cases = {
            case: {kind: kinds[kind.partition(":")[0]].translate_all(values) for kind, values in sections.items()}
            for case, sections in recording["cases"].items()
        }
        return {**recording, "cases": cases}

    def kinds(self) -> dict[str, Names]:
        """Return the names that apply to each section of a recorded case.

        Returns:
            The names, by the word before the colon in the section's title.
        """
        return {
            "record": self.record,
            "weights": self.weights,
            "start": Names(),
            "summary": self.summary,
            "columns": self.columns,
        }

    def _translate_arm(self, arm: Any) -> Any:
        if not isinstance(arm, Mapping):
            return self._translate_value("arm.name", arm)
        name = str(arm["name"])
        return dict(self._translate_options(name, arm.items()))

    def _translate_options(self, name: str, options: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
        for key, value in options:
            if key == "name":
                yield key, self._translate_value("arm.name", value)
                continue
            arm_key = f"arm.{name}.{key}"
            old_key = arm_key if arm_key in self.config.exact else key
            new = self.config.translate(old_key)
            if new is not None:
                yield new, self._translate_value(old_key, value)

    def _translate_value(self, key: str, value: Any) -> Any:
        values = self.config_values.get(key, {})
        if isinstance(value, list):
            return [values.get(part, part) if not isinstance(part, list) else part for part in value]
        return values.get(value, value) if not isinstance(value, Mapping) else value


ORIGINAL = KeyMap()
"""The map that changes nothing: the names of f3c8993."""

# Labels of arms may contain dots.
_ENTRY = r"(arms\..+?|pairs\.\d+)"
_ESTIMATE = r"\.(standard_error|degrees_of_freedom|units|seed_error|unit_error|seed_floor|unit_floor)"

KEY_MAP = KeyMap(
    version=2,
    config=Names(
        exact={
            "verdict.level": "statistics.alpha",
            "verdict.margin": "statistics.margin",
            "verdict.first": "statistics.min_seeds",
            "verdict.most": "statistics.max_seeds",
            "verdict.pairs": "statistics.pairs",
        }
    ),
    # Intervals of f3c8993 cover seeds alone.
    config_added={"statistics.uncertainty": ["seeds"]},
    record=Names(added=(r"units(\.\w+)?",)),
    summary=Names(
        # Advice on a number of seeds is gone, and so are means over the seeds that reached a loss. With seeds=auto, bounds of the
        # differences by domain hold at all interim analyses.
        patterns=(
            (r"^arms\..+\.by_domain\..+\.difference\.(low|high)$", ""),
            (rf"^{_ENTRY}\.seeds_needed$", ""),
            (r"^arms\..+\.to_target\.(flops|seconds|censored).*", ""),
        ),
        added=(
            rf"{_ENTRY}\.(loss|metric|difference|by_domain\..+?\.(loss|difference)){_ESTIMATE}",
            r"arms\..+\.by_domain\..+\.difference\.(low|high)",
            rf"{_ENTRY}\.metric_difference(\..+)?",
            rf"{_ENTRY}\.(covered|withheld|limited|over_seeds|supported_margin|diverged|pair_diverged|sequential)(\..+)?",
            rf"{_ENTRY}\.(warnings|notes)(\..+)?",
            rf"{_ENTRY}\.(bca|p_sign_flip|detectable|state|difference|p_t|p_holm|p_equivalent)(\..+)?",
            r"arms\..+\.to_target\.(seeds|reached|flops|seconds)(\..+)?",
            r"(unit|uncertainty|split_note|looks|withdrawn|withdrawal|first_look|family|judged_seeds)(\..+)?",
            r"(arms\..+\.leverage|frontier\.arms\..+)\.(own\.)?covered(\..+)?",
        ),
    ),
)
"""The map to the names of the present tree."""
