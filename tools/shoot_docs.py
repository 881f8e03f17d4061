"""Every page of the built site as a picture, by headless Chromium: to be looked at after `make docs`.

python tools/shoot_docs.py shots          # light; site/ has to be there
python tools/shoot_docs.py shots --dark   # as readers with a dark screen see it
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = "1280,1400"


def main() -> int:
    """Write a PNG for each page into the folder named first."""
    words = [word for word in sys.argv[1:] if word != "--dark"]
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    pages = sorted(page for page in SITE.rglob("*.html") if page.name != "404.html")
    if len(words) != 1 or browser is None or not pages:
        wants = "usage: python tools/shoot_docs.py FOLDER [--dark]"
        why = wants if len(words) != 1 else "there is no Chromium" if browser is None else "run `make docs` first"
        print(f"shoot_docs: {why}", file=sys.stderr)
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages:
        target = folder / f"{page.relative_to(SITE).with_suffix('').as_posix().replace('/', '-')}.png"
        shoot(browser, page, target, is_dark="--dark" in sys.argv)
    print(f"shoot_docs: {len(pages)} pages into {folder}")
    return 0


def shoot(browser: str, page: Path, target: Path, *, is_dark: bool) -> None:
    """`page` as `browser` shows it; CalledProcessError where it shows nothing."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", f"--window-size={SIZE}", f"--screenshot={target}"]
        command += ["--blink-settings=preferredColorScheme=0"] if is_dark else []
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
