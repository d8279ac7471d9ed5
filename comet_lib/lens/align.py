"""One shared token axis for two tokenizers, and labels that are safe to draw.

Two tokenizers cut one text at different places. The places where both begin a token cut it into
segments, the finest that both share; a map between tokens becomes a map between segments:

    A'_st = mean over the queries q in s of  sum over the keys k in t of  A_qk                (1)

Columns are summed and rows averaged, so rows that summed to one still do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from comet_lib.errors import CometError

LABEL = 24  # characters in a label, at most
_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji need them
_SELECTORS = "\ufe0e\ufe0f"  # after an emoji: as text, as a picture


def token_starts(spans: Sequence[tuple[int, int]], special: Sequence[int], text: str) -> np.ndarray:
    """The position of each token's first visible character: (n,) integers that never fall.

    ``spans`` are the tokenizer's character offsets, ``special`` its special-tokens mask. Leading
    white space does not belong to the token. Special tokens before the text are at -1, those after
    it at ``len(text) + 1``.
    """
    found: list[int] = []
    inside = False
    for (start, _), is_special in zip(spans, special, strict=True):
        if is_special:
            start = len(text) + 1 if inside else -1
        else:
            inside = True
            while start < len(text) and text[start].isspace():
                start += 1
        found.append(start)
    return np.maximum.accumulate(np.array(found, dtype=np.int64))


def segments(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts (n,) and (m,) of two tokenizers -> the segment of each token, (n,) and (m,), and the
    segments' starts. Tokens before the first common start belong to the first segment."""
    common = np.intersect1d(one, other)
    if not len(common):
        common = np.array([min(one.min(), other.min())])
    number = [np.clip(np.searchsorted(common, s, side="right") - 1, 0, None) for s in (one, other)]
    return number[0], number[1], common


def aggregate(maps: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Maps (..., n, n) and each token's segment (n,), from 0 without gaps -> (..., N, N), eq. (1).

    Raises:
        CometError: ``segment`` does not fit the maps, or a segment has no token.
    """
    counts = np.bincount(segment)
    if maps.shape[-2:] != (len(segment), len(segment)) or not counts.all():
        raise CometError(
            f"segment has {len(segment)} numbers and maps the shape {maps.shape}: give one number "
            "for each token, counted from 0 without gaps."
        )
    member = (np.arange(len(counts))[:, None] == segment).astype(maps.dtype)  # (N, n)
    return (member / counts[:, None].astype(maps.dtype)) @ maps @ member.T


def labels(
    starts: np.ndarray, ends: np.ndarray, pieces: Sequence[str], text: str
) -> tuple[str, ...]:
    """What to write at each place: the text itself, with its tone marks; "▁" where a word begins.

    Special tokens, and tokens without text of their own, show their piece: some tokenizers give
    the "▁" that opens a text the same offsets as the first letter.
    """
    found: list[str] = []
    places = [*starts.tolist(), -2]
    for i, (end, piece) in enumerate(zip(ends.tolist(), pieces, strict=True)):
        start = places[i]
        body = text[start:end] if start >= 0 and start != places[i + 1] else ""
        if body.strip():
            marked = i > 0 and found[-1] == "▁" and places[i - 1] == start
            begins = not marked and (start == 0 or text[start - 1].isspace())
            found.append(("▁" if begins else "") + body.rstrip())
        else:
            found.append(piece)
    return tuple(found)


def shown(token: str, limit: int = LABEL) -> str:
    """A label that cannot disturb its surroundings, at most ``limit`` characters and "…".

    Control, format and bidirectional marks are spelled out (‹202E›), and so is a joiner with
    nothing to join; letters keep their marks (Unicode NFC). HTML is not escaped here; code that
    writes HTML does that.
    """
    safe = ""
    joins = "" if set(token) <= set(_JOINERS + _SELECTORS) else _JOINERS
    for c in unicodedata.normalize("NFC", token):
        hidden = unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in joins
        hidden |= not joins and c in _SELECTORS
        safe += f"‹{ord(c):04X}›" if hidden else c
    if len(safe) > limit:
        end = limit
        while end < min(len(safe), limit + 8) and unicodedata.combining(safe[end]):
            end += 1
        safe = safe[:end] + "…"
    return safe or "·"


def quoted(label: str) -> str:
    """A label inside a sentence: in quotes, without the mark of a word's beginning."""
    return f"“{label.removeprefix('▁') or label}”"
