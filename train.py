"""Train a timm model with FRSKD and export it: `accelerate launch train.py [--config recipe.yaml] [--flag ...]`."""

from frskd_train.train import main

if __name__ == "__main__":
    main()
