# /// script
# requires-python = ">=3.10"
# dependencies = ["frskd-timm[train]"]
# ///
"""Train on Hugging Face Jobs: all flags of `frskd train` are accepted.

    hf jobs uv run --flavor a10g-small --timeout 8h --secrets HF_TOKEN examples/hf_job.py \
        --config cifar100_resnet18 --push-to-hub OWNER/NAME

A job's disk is lost at its end, so give --push-to-hub. Until frskd-timm is on PyPI, replace the dependency above by the
URL of a wheel.
"""

from frskd_train.cli import run

if __name__ == "__main__":
    run("train")
