"""What an unfinished `cluster` has done so far, on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from lightning_intune.errors import ConfigError

_NAME = "manifest.json"


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """One finished file: a time partition."""

    file: str
    number: int
    """The partition's number since 1970."""
    num_rows: int
    num_sessions: int
    checksum: str
    """Sum of its rows' hashes, in decimal: JSON's numbers do not hold 128 bits."""
    num_bytes: int


@final
class Manifest:
    """The record in the folder `folder`, which holds the parts too. One thread and process may use it (`locked`)."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self._path, self.folder = folder / _NAME, folder
        self.facts: dict[str, Any] = {}
        """What was found out of the whole input, so that a resumed run need not read it for that again."""
        self.parts: dict[int, Part] = {}
        self._job = json.loads(json.dumps(job))
        if self._path.exists():
            self._load()

    def _load(self) -> None:
        try:
            record = json.loads(self._path.read_text())
            stored, self.facts = record["job"], record["facts"]
            self.parts = {part["number"]: Part(**part) for part in record["parts"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"'{self._path}' is damaged ({error}). Remove '{self.folder}' and start anew.") from error
        if stored != self._job:
            differing = sorted(key for key in {*stored, *self._job} if stored.get(key) != self._job.get(key))
            raise ConfigError(
                f"'{self.folder}' holds the unfinished output of another run: {', '.join(differing)} differ. Finish "
                "that one by its own command, or remove the folder to start anew."
            )

    def save(self) -> None:
        """Write it, whole or not at all."""
        record = {"job": self._job, "facts": self.facts, "parts": [asdict(part) for part in self.parts.values()]}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(record, indent=1))
        os.replace(new, self._path)

    def remove(self) -> None:
        """Forget it: the folder is the output now."""
        self._path.unlink()


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """ConfigError while another process holds `folder`; a killed one holds nothing."""
    path = folder.with_name(folder.name + ".lock")
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run is writing '{folder}'. Wait for it, or name another output.") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
