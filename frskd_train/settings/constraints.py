"""Declarations of settings besides their type: bounds, allowed words, and facts. Needs no torch."""

import ast
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


class Fact(Enum):
    """A property of a setting; by default it is for both tasks, published, and may change at resume with a message."""

    FIXED = "may not change at resume: with another value the checkpoint's numbers mean something else"
    FREE = "may change at resume without a message"
    PRIVATE = "belongs to a machine or an account: never published, may change at resume without a message"
    LOCAL = "may be a path: not published if it is one"
    CLASSIFICATION = "belongs to classification only"
    SEGMENTATION = "belongs to segmentation only"
    SIDES = "one number is the side of a square, two are height and width"


FIXED, FREE, PRIVATE, LOCAL, CLASSIFICATION, SEGMENTATION, SIDES = Fact


TINY = 1e-30
"""Smaller numbers are a mistake, and some distributions return no number for them."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number or of each number in a tuple; `above` is exclusive, `low` and `high` are inclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def refusal(self, value: float) -> str | None:
        """Say what `value` would have to be, or return None."""
        if not math.isfinite(value):
            return "a finite number"
        if 0 < abs(value) < TINY:
            return f"0 or not below {TINY:g} in size"
        if self.above is not None and not value > self.above:
            return f"above {self.above:g}"
        if self.low is not None and not value >= self.low:
            return f"at least {self.low:g}"
        if self.high is not None and not value <= self.high:
            return f"at most {self.high:g}"
        return None


@dataclass(frozen=True)
class Pattern:
    """A regular expression that the whole text must match, and its meaning in words."""

    regex: str
    words: str

    def refusal(self, value: str) -> str | None:
        """Say what `value` would have to be, or return None."""
        return None if re.fullmatch(self.regex, value) else self.words


@dataclass(frozen=True)
class OneOf:
    """The allowed words."""

    names: tuple[str, ...]

    def refusal(self, value: str) -> str | None:
        """Say what `value` would have to be, or return None."""
        return None if value in self.names else f"one of {', '.join(self.names)}"


Positive = Range(above=0)
NotNegative = Range(low=0)
Fraction = Range(low=0, high=1)
Count = Range(low=1)


def _pairs(words: list[str]) -> dict[str, str]:
    wrong = next((word for word in words if not re.match(r"[^\W\d]\w*=.", word)), None)
    if wrong is not None:
        raise ValueError(f"takes words of the form NAME=VALUE, not {wrong}")
    return dict(word.split("=", 1) for word in words)


KeywordArguments = Annotated[
    dict[str, str],
    # Otherwise tyro turns the keys of a dictionary from a recipe into flags, and no flag could replace the dictionary.
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda pairs: [f"{name}={value}" for name, value in pairs.items()],
    ),
]


def keyword_arguments(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return keyword arguments: Python literals are evaluated, other values remain text, as in timm.

    `true` and `false` also become bools; timm passes them as text, which is truthy in both cases.
    """
    values: dict[str, Any] = dict(pairs)
    for name, text in pairs.items():
        with suppress(ValueError, TypeError, SyntaxError):
            values[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    return values
