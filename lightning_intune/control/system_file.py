"""The small files of /proc and of control groups, read at every turn: without a text layer, which doubles the cost."""

from __future__ import annotations

import os

_MOST_BYTES = 1 << 16


def read_text(path: str) -> str:
    """All that the file holds; nothing where there is no such file, or it may not be read.

    >>> read_text("/no/such/file")
    ''
    """
    parts: list[bytes] = []
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while part := os.read(file, _MOST_BYTES):
                parts.append(part)
        finally:
            os.close(file)
    except OSError:  # a process that has ended, a group that is gone
        return ""
    return b"".join(parts).decode("utf-8", "replace")


def line_after(text: str, key: str) -> str:
    r"""What stands behind `key` in the line of `text` that begins with it; nothing where none does.

    >>> line_after("Name:\tpython\nThreads:\t4\n", "Threads:")
    '4'
    """
    if text.startswith(key):
        return text[len(key) :].partition("\n")[0].strip()
    return text.partition(f"\n{key}")[2].partition("\n")[0].strip()
