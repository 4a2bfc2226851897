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

    print("Students, with the tags of their pretrained weights:")
    for name in timm.list_models("*_frskd"):
        print(" ", name, *(weights.split(".", 1)[1] for weights in timm.list_pretrained(f"{name}.*")))
    print("Recipes:", *included_recipes(), sep="\n  ")
