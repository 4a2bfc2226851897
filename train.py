"""Train a timm model with FRSKD and export it: `accelerate launch train.py [--config recipe.yaml] [--flag ...]`."""

from frskd_train.cli import run

if __name__ == "__main__":
    run("train")
