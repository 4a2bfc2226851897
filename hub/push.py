"""Publish a trained student on the Hugging Face Hub: `python hub/push.py RUN --repo-id OWNER/NAME`."""

from frskd_train.cli import run

if __name__ == "__main__":
    run("push")
