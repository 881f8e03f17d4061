"""Build the documentation into `site/`, strictly: `make docs` runs this.

MkDocs and its plugins live in an environment of their own, `.venv-docs`, from requirements-docs.lock: they read the
sources without importing them, need neither torch nor Lightning, and `make test` needs none of them.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-docs.lock"
VENV = ROOT / ".venv-docs"
STAMP = VENV / "ready"


def main() -> int:
    """Set `.venv-docs` up where it is missing or out of date, then build; further arguments go to `mkdocs build`."""
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not STAMP.exists() or STAMP.read_text() != wanted:
        print("docs: making .venv-docs", flush=True)
        python = VENV / "bin" / "python"
        # Where Python comes without ensurepip (Debian), the pip that runs this installs from outside.
        has_pip = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True, check=False)
        bare = [] if has_pip.returncode == 0 else ["--without-pip"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", *bare, str(VENV)], check=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        done = subprocess.run([*install, "--requirement", str(LOCK)], check=False)
        if done.returncode != 0:
            print("docs: pip could not install requirements-docs.lock (above). Is there a network?", file=sys.stderr)
            return 1
        STAMP.write_text(wanted)
    # The notice is of Material's end of life in 2027 and its successor, at every build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [str(VENV / "bin" / "mkdocs"), "build", "--strict", *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
