"""Lets Griffe see docstrings as Markdown does: an example between paragraphs becomes a block of code."""

from __future__ import annotations

from typing import Any

import griffe


def fenced(text: str) -> str:
    r"""`text` with each paragraph that begins with `>>>` in a fence.

    >>> fenced("Doubles.\n\n>>> f(2)\n4\n\nMore.").splitlines()
    ['Doubles.', '', '```pycon', '>>> f(2)', '4', '```', '', 'More.']
    """
    lines: list[str] = []
    is_open = False
    for line in text.split("\n"):
        if not is_open and line.lstrip().startswith(">>>"):
            if lines and lines[-1].strip():
                lines.append("")
            lines.append("```pycon")
            is_open = True
        elif is_open and not line.strip():
            lines.append("```")
            is_open = False
        lines.append(line)
    return "\n".join([*lines, "```"] if is_open else lines)


class FencedExamples(griffe.Extension):
    """Applies `fenced` to every docstring."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Griffe's hook, called for each object once it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
