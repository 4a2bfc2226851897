"""Score a model on a dataset: `python validate.py --model RUN_OR_NAME [--dataset DATASET]`."""

from frskd_train.cli import run

if __name__ == "__main__":
    run("validate")
