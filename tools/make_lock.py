"""Remake requirements.lock: resolve pyproject.toml's needs in a fresh environment and write down what came.

`make lock` runs it. It needs the package registry and some minutes; it touches nothing but the lock, and that
only after the new set imports. torch's version is kept as the lock has it (edit that line to move it).
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = "ray,fast,etl,plots,metrics,dev"
# TorchRec 1.8.0 names `fbgemm-gpu`, the CUDA build, and a torchmetrics of 2023; the CPU build and the present
# torchmetrics serve it (DESIGN, section 9), so both come without their needs and the rest of them by name.
BARE = ("torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0")
NOT_OF_BARE = ("fbgemm-gpu", "torchmetrics")
# A CUDA build of torch pins its own libraries; naming them would force them onto a CPU machine.
NOT_LOCKED = re.compile(r"^(nvidia-|cuda-|triton)", re.IGNORECASE)
HEADER = """\
# What `make` installs, exact. Remade by `make lock`; the ranges that users get are in pyproject.toml.
# torch is installed first and with its needs, the rest with --no-deps: see tools/setup_env.py.
"""
NEEDS = """\
import importlib.metadata as m
print(*(r for r in m.requires("torchrec") or [] if "extra" not in r), sep="\\n")
"""
PROOF = (
    "import torch, fbgemm_gpu, torchrec, torchrec.metrics.metric_module, torchdata.nodes, lightning, pyarrow.parquet; "
    "import numba, duckdb, matplotlib, stable_baselines3, sklearn"
)


def main() -> None:
    """Resolve, prove by importing, write."""
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = f"{folder}/bin/python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*install, "--upgrade", "pip")  # examples fetch data with the pip in .venv, which not every Python brings
        run(*install, torch)  # first: a looser range would fetch the newest CUDA build
        run(*install, f"{ROOT}[{EXTRAS}]", torch)
        run(*install, "--no-deps", *BARE)
        needs = run(python, "-c", NEEDS).split("\n")
        names = [need for need in needs if need and re.split(r"[^\w.-]", need)[0].lower() not in NOT_OF_BARE]
        run(*install, *names, torch)
        run(python, "-c", PROOF)
        frozen = run(python, "-m", "pip", "freeze", "--all", "--exclude", "lightning-intune")
    pins = [re.sub(r"\+[\w.]+$", "", pin) for pin in frozen.split("\n") if pin and not NOT_LOCKED.match(pin)]
    odd = [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.!]+", pin)]
    if odd:
        sys.exit(f"lock: not an exact pin: {odd[0]}. Nothing was written.")
    LOCK.write_text(HEADER + "\n".join(sorted(pins, key=str.lower)) + "\n")
    print(f"lock: wrote {len(pins)} pins to {LOCK.name}")


def run(*command: str) -> str:
    """The command's output; when it fails, what it said, and the end."""
    print("lock:", *command[:6], flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}\nlock: the command above failed. Nothing was written.")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
