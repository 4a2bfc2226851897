"""`frskd list`: list the registered students with their pretrained weights, and the included recipes."""

import argparse
from collections.abc import Sequence

from frskd_train.settings.recipe import included_recipes


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the lists, one name per line."""
    argparse.ArgumentParser(
        "frskd list", description="List students with the tags of their pretrained weights, and the included recipes."
    ).parse_args(arguments)
    import timm

    import frskd_timm  # noqa: F401  registers the students

    weights = timm.list_pretrained("*_frskd")
    print("Students, with the tags of their pretrained weights:")
    for name in timm.list_models("*_frskd"):
        print(" ", name, *(tag for model, tag in (weight.split(".", 1) for weight in weights) if model == name))
    print("Recipes:", *included_recipes(), sep="\n  ")
