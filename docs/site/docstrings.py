"""Docstrings of this library as reStructuredText."""

from __future__ import annotations

import re

# Openings of a block whose next lines are indented but are not a formula.
OPENS = re.compile(r"(?:[-*+]|\(?\w{1,3}[.)]|:\w.*:|\.\.|>>>)\s?")


def keep_formulas(lines: list[str]) -> None:
    """Mark each indented block of ``lines`` as literal, in place, to keep its line breaks.

    The library writes formulas and tables as indented blocks below their sentence;
    reStructuredText would read them as quotations and join their lines.
    """
    kept: list[str] = []
    level, before, literal = 0, "", False  # the last text line's indent, and itself
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            kept.append(line)
            continue
        if literal and indent > level:
            kept.append(line)
            continue
        literal = False
        opens = before.endswith("::") or OPENS.match(before.lstrip())
        if before and indent > level and not lines[i - 1].strip() and not opens:
            kept += [" " * level + "::", "", line]
            literal = True
            continue
        kept.append(line)
        level, before = indent, line
    lines[:] = kept
