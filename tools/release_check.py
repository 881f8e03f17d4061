"""Build the wheel and the sdist, install the wheel in an empty environment, and use it there as a stranger would.

`make release-check` runs it: some minutes and the package registry, most of it for torch. `--env FOLDER` keeps that
environment for the next time. It has none of the extras, so what needs one has to say which; then TorchRec comes in
and the demo of the sdist runs on the installed wheel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
SMOKE = ROOT / "tools" / "release_smoke.py"
PACKAGE = "lightning_intune"
SLICE = "tests/examples/open_bandit_slice.zip"
IN_WHEEL = ("__init__.py", "py.typed", "console.py", "control/weights/dqn.safetensors")
IN_SDIST = (
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "CHANGELOG.md",
    "docs/promises.md",
    "examples/open_bandit/demo.py",
    SLICE,
)


# TorchRec names a CUDA build as its need (DESIGN, section 9); the CPU build serves it, without needs of its own.
BARE = ("torchrec", "fbgemm_gpu-cpu")
BESIDE = ("pyre-extensions", "tensordict", "tqdm")
DEMO = """
from pathlib import Path
from examples.open_bandit import data, demo
data.write_dataset(Path("slice.zip"), Path("parquet"), row_group_rows=100)
demo.show(Path("parquet"), runs=Path("runs"), max_epochs=20, remote_seconds=5.0)
"""


def main() -> int:
    """Build, look inside, install, run; exits 1 with the first thing that is wrong."""
    parser = argparse.ArgumentParser(prog="release_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--env", type=Path, help="folder of the environment to install into; kept, and used again")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder for the wheel and the sdist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-") as scratch:
        wheel, sdist = build(Path(scratch) / "source", options.dist.resolve())
        look_inside(wheel, sdist)
        python = environment(options.env or Path(scratch) / "env", wheel)
        work = Path(scratch) / "work"
        work.mkdir()
        say("using it")
        use([str(python), "-I", str(SMOKE)], python.parent, work)
        demo(python, sdist, work)
    say(f"passed: {wheel.name} and {sdist.name} in {options.dist}")
    return 0


def build(source: Path, dist: Path) -> tuple[Path, Path]:
    """The wheel, built from the sdist, and the sdist; of the files git knows, so that no stray one gets in."""
    say("building")
    tracked = run(["git", "-C", str(ROOT), "ls-files", "-z"]).split("\0")
    for name in tracked:
        if name and (ROOT / name).exists():
            copy = source / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    for old in [*dist.glob("lightning_intune-*.whl"), *dist.glob("lightning_intune-*.tar.gz")]:
        old.unlink()
    tools = source.parent / "tools"
    run([sys.executable, "-m", "venv", str(tools)])
    run([str(tools / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "build"])
    run([str(tools / "bin" / "python"), "-m", "build", "--outdir", str(dist), str(source)])
    return next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))


def look_inside(wheel: Path, sdist: Path) -> None:
    """What has to be there is, and the wheel brings nothing but the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    strays = [name for name in names if not name.startswith((f"{PACKAGE}/", f"{PACKAGE}-"))]
    missing = [name for name in IN_WHEEL if f"{PACKAGE}/{name}" not in names]
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing += [name for name in IN_SDIST if name not in packed]
    if strays or missing:
        sys.exit(f"release: the wheel holds {strays}, which are not the package's; missing: {missing}.")


def environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of an environment with the wheel and what it needs, at the lock's versions, and no extra."""
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making {folder}")
        run([sys.executable, "-m", "venv", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(line for line in LOCK.read_text().splitlines() if line.startswith("torch=="))
    say(f"installing {torch}, then the wheel")
    run([*install, torch, "--constraint", str(LOCK)])
    run([*install, f"{wheel}", "--constraint", str(LOCK)])
    run([*install, "--force-reinstall", "--no-deps", f"{wheel}"])  # an environment kept may hold an older one ...
    run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *BARE])  # ... and what the demo brought
    return python


def demo(python: Path, sdist: Path, work: Path) -> None:
    """The demo of the sdist on the installed wheel and a slice of its data, once TorchRec is there."""
    say("running the demo")
    pins = dict(line.split("==") for line in LOCK.read_text().splitlines() if "==" in line)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, *BESIDE, "--constraint", str(LOCK)])
    run([*install, "--no-deps", *(f"{name}=={pins[name]}" for name in BARE)])
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            inside = member.name.partition("/")[2]
            if inside.startswith("examples/") and member.isfile():
                member.name = inside
                archive.extract(member, work, filter="data")
            elif inside == SLICE:
                member.name = "slice.zip"
                archive.extract(member, work, filter="data")
    use([str(python), "-c", DEMO], python.parent, work)


def use(command: list[str], bin_folder: Path, work: Path) -> None:
    """Run `command` in the folder `work`, where nothing of the checkout can be imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    environment = {**kept, "PATH": f"{bin_folder}{os.pathsep}{kept.get('PATH', '')}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=work, env=environment, check=False)
    if done.returncode != 0:
        sys.exit("release: the installed wheel does not do what it should (above).")


def run(command: list[str]) -> str:
    """The command's output; when it fails, what it said, and the end."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-4000:]}{done.stderr[-4000:]}\nrelease: failed: {' '.join(command)}")
    return done.stdout


def say(text: str) -> None:
    """One line to the person who waits."""
    print(f"release: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
