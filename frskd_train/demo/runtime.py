"""The files of onnxruntime-web, which the demo ships beside its page; they come from npm's registry."""

import base64
import hashlib
import io
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from huggingface_hub import constants

from frskd_timm.errors import UserError, first_line
from frskd_train.system.disk import disk_errors

VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def cached_runtime() -> Path:
    """Return the folder of the cache, which need not exist."""
    return Path(constants.HF_HOME) / "frskd" / f"onnxruntime-web-{VERSION}"


def find_runtime(local: Path | None = None) -> Path:
    """Return a folder with `FILES`: from a local copy, from the cache, or downloaded and put into the cache.

    Args:
        local: The archive of `npm pack`, or a folder with the files such as `node_modules/onnxruntime-web`.

    Raises:
        UserError: The download failed, or is not the known one, or the local copy lacks a file.
    """
    if local is not None and local.is_dir():
        for folder in (local, local / "dist"):
            if all((folder / name).is_file() for name in FILES):
                return folder
        raise UserError(f"--runtime {local} lacks {FILES[0]}: give the folder of the npm package onnxruntime-web.")
    folder = cached_runtime()
    if local is None and all((folder / name).is_file() for name in FILES):
        return folder
    with disk_errors(folder):  # before the download
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if local is not None:
            archive = local.read_bytes()
        else:
            print(f"Downloading onnxruntime-web {VERSION} from npm (33 MB, once) ...")
            with urllib.request.urlopen(URL, timeout=60) as answer:
                archive = answer.read()
    except OSError as error:
        raise UserError(
            f"{local or URL} could not be read ({first_line(error)}): run `npm pack onnxruntime-web@{VERSION}` on a "
            "machine with network access and pass the file with --runtime."
        ) from None
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != INTEGRITY:
        raise UserError(f"{local or URL} is not onnxruntime-web {VERSION}: its checksum differs.")
    with (
        disk_errors(folder),
        tempfile.TemporaryDirectory(dir=folder) as aside,
        tarfile.open(fileobj=io.BytesIO(archive)) as package,
    ):
        for name in FILES:
            member = package.extractfile(f"package/dist/{name}")
            assert member is not None
            (Path(aside) / name).write_bytes(member.read())
            (Path(aside) / name).replace(folder / name)
    return folder
