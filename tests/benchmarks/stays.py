"""A run that makes a process of its own, says so in a file, and does not end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    path = Path(json.loads(sys.argv[1])["path"])
    path.with_suffix(".new").write_text(str(child.pid))
    path.with_suffix(".new").rename(path)  # at once: the test reads it as soon as it is there
    time.sleep(3600)
