"""The training command for launchers: `accelerate launch -m frskd_train.train`."""

from frskd_train.cli import run

if __name__ == "__main__":
    run("train")
