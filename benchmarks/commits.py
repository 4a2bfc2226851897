"""The name of the code that made a result."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = "frskd_timm", "frskd_train", "benchmarks", "tests", "tools"
DIRTY = "-dirty"  # end of the name if there are changes that are not committed


def commit() -> str:
    """Return the name of the commit; outside a clone, or with changes, also a hash of the code."""
    files = sorted(path for name in CODE for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".yaml"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    command = ["git", "describe", "--always", f"--dirty={DIRTY}"]
    try:
        name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"files-{code}"
    return name.replace(DIRTY, f"-{code}{DIRTY}")
