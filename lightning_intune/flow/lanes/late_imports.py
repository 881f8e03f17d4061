"""Modules that a function imports only when it is called: the fork server has them ready for the processes to come."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from typing import final

_MAX_CHARS = 1 << 16
"""Of all names together: they travel to the fork server in one packet."""


@final
class LateImports:
    """In a worker process: what came into `sys.modules` since this object was made.

    Only what is installed (the standard library, site-packages) counts: a script's own module may well be imported
    in the function because each process is to run it for itself.
    """

    def __init__(self) -> None:
        self._before = set(sys.modules)

    def found(self) -> list[str]:
        """Their names, in the order of their import."""
        places = _installed()
        names: list[str] = []
        room = _MAX_CHARS
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name in self._before or getattr(module, "__spec__", None) is None or not isinstance(file, str):
                continue
            if file.startswith(places):
                room -= len(name)
                if room < 0:
                    break
                names.append(name)
        return names


def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(place, "") for place in sorted(places))
