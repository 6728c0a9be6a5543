"""What a person can move on the page: one slider an attribute with one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normscape.config import AttributeConfig, Config
from normscape.errors import DataError

STEPS = 48
"""Of a slider, from one end to the other, unless whole units are about as many."""


@dataclass(frozen=True)
class Control:
    """One slider.

    Attributes:
        attribute: which value it moves.
        step: from one place of the slider to the next, in the attribute's unit.
    """

    attribute: AttributeConfig
    step: float

    @staticmethod
    def of(attribute: AttributeConfig) -> Control:
        """A slider over an attribute's range; in whole units where that gives a good number of places."""
        span = attribute.value_max - attribute.value_min
        whole = span == round(span) and attribute.value_min == round(attribute.value_min) and STEPS / 2 <= span <= 2 * STEPS
        return Control(attribute, 1.0 if whole else span / STEPS)

    def described(self) -> dict[str, Any]:
        """For the page."""
        a = self.attribute
        return {
            "name": a.name,
            "unit": a.unit,
            "low": a.value_min,
            "high": a.value_max,
            "step": self.step,
            "start": self.at(0.5),
        }

    def at(self, share: float) -> float:
        """The slider's place nearest to a share of its range."""
        a = self.attribute
        return a.value_min + round(share * (a.value_max - a.value_min) / self.step) * self.step

    def checked(self, value: float) -> float:
        """A value that the networks know.

        Raises:
            DataError: it lies outside.
        """
        a = self.attribute
        if not a.value_min - 1e-6 <= value <= a.value_max + 1e-6:  # NaN fails too
            raise DataError(f"{a.name}: the model knows {a.value_min:g} to {a.value_max:g} {a.unit}; asked for {value:g}")
        return min(max(value, a.value_min), a.value_max)


def controls_of(config: Config) -> dict[str, Control]:
    """The sliders of an experiment, by attribute: every value attribute with one component."""
    return {a.name: Control.of(a) for a in config.value_attributes if a.output_dim == 1}


def values_at(config: Config, controls: Mapping[str, Control], asked: Mapping[str, float]) -> dict[str, Tensor]:
    """One value `(1, D)` for every value attribute: what is asked for, else the slider's start, else nothing out of the ordinary.

    Args:
        config: the experiment.
        controls: its sliders.
        asked: attribute to value; what has no slider cannot be asked for.

    Raises:
        DataError: an attribute without a slider, or a value outside its range.
    """
    unknown = sorted(set(asked) - set(controls))
    if unknown:
        raise DataError(f"{', '.join(unknown)}: no slider of this model; it has {', '.join(controls) or 'none'}")
    values = {}
    for a in config.value_attributes:
        if a.name in controls:
            value = controls[a.name].checked(asked[a.name]) if a.name in asked else controls[a.name].at(0.5)
        else:  # a shift of contrast, say: 0 is none
            value = 0.0 if a.value_min <= 0 <= a.value_max else (a.value_min + a.value_max) / 2
        values[a.name] = torch.full((1, a.output_dim), float(value))
    return values
