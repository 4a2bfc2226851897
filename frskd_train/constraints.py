"""Kinds of values that settings take: numbers within bounds, one of some names, keyword arguments. Needs no torch."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec


@dataclass(frozen=True)
class Range:
    """Bounds of a number, checked by `parse.check_ranges`; `above` is exclusive, `low` and `high` are inclusive."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def refusal(self, value: float) -> str | None:
        """Says which bound `value` breaks, or returns None."""
        if value != value:
            return "a number"
        if self.above is not None and not value > self.above:
            return f"above {self.above:g}"
        if self.low is not None and not value >= self.low:
            return f"at least {self.low:g}"
        if self.high is not None and not value <= self.high:
            return f"at most {self.high:g}"
        return None


@dataclass(frozen=True)
class OneOf:
    """Allowed names, checked by `parse.check_group`."""

    names: tuple[str, ...]

    def refusal(self, value: str) -> str | None:
        """Says which names there are, or returns None."""
        return None if value in self.names else f"one of {', '.join(self.names)}"


Positive = Range(above=0)
NotNegative = Range(low=0)
Fraction = Range(low=0, high=1)
Count = Range(low=1)


def _pairs(words: list[str]) -> dict[str, str]:
    wrong = next((word for word in words if not re.match(r"[^\W\d]\w*=", word)), None)
    if wrong is not None:
        raise ValueError(f"takes NAME=VALUE, one a word, so not {wrong}")
    return dict(word.split("=", 1) for word in words)


KeywordArguments = Annotated[
    dict[str, str],
    # By itself tyro makes flags of the keys of a dictionary that a recipe has filled, so that no flag replaces it.
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE ...]",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda pairs: [f"{name}={value}" for name, value in pairs.items()],
    ),
]


def keyword_arguments(pairs: Mapping[str, str]) -> dict[str, Any]:
    """What to call with: values that are Python literals become these, others stay text, as with timm's flags.

    `true` and `false` are bools as well; timm passes them on as text, which is true both times.
    """
    return {name: _literal(value) for name, value in pairs.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, TypeError, SyntaxError):
        return text
