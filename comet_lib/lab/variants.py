"""The variants of an ablation: each differs from another in one thing.

Unless its name says otherwise, a student starts from its teacher's embeddings, projected to its own
width, and has all labels, no stage 1 and no spliced tweets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from comet_lib.errors import CometError

CONTROL = "none"


@dataclass(frozen=True)
class Variant:
    """One student's recipe; None means the profile's value."""

    name: str
    about: str
    soft: str = ""  # source of the soft targets: "", "tfidf", "teacher" or "both"
    term: str = ""  # one of comet_lib.objectives.TERMS
    weight: float = 1.0  # of the term
    layers: str = "uniform"  # layer_map's
    swapped: bool = False  # the term asks a teacher that reads each piece as another
    alpha: float | None = None
    temperature: float | None = None
    stage1: str = ""  # "", "soft" (targets only), or with attention: "mse", "kl"
    labels: float = 1.0  # share of the training labels that are known
    embeddings: bool = True  # start from the teacher's embeddings; else from random ones
    splices: float = 0.0  # spliced tweets for each real one
    against: str = CONTROL  # the same without distillation; "": this one has none
    base: str = ""  # the variant that this one differs from in one thing
    first: bool = False  # runs before the others, for every seed


_NONE = Variant(CONTROL, "labels only", first=True)
_BOTH = Variant("both", "soft targets: TF-IDF and teacher", soft="both", first=True)


def _none(name: str, about: str, **changes: Any) -> Variant:
    """``none`` with one change."""
    changes = {"first": False, "against": "", "base": CONTROL, **changes}
    return replace(_NONE, name=name, about=f"labels only, {about}", **changes)


def _both(name: str, about: str, **changes: Any) -> Variant:
    """``both`` with one change."""
    changes = {"first": False, "base": "both", **changes}
    return replace(_BOTH, name=name, about=f"both {about}", **changes)


VARIANTS = (
    _NONE,
    _BOTH,
    replace(_BOTH, name="tfidf", about="soft targets: TF-IDF", soft="tfidf"),
    replace(_BOTH, name="teacher", about="soft targets: teacher", soft="teacher"),
    _both("attention-kl", "+ attention, row-wise KL", term="attention_kl", first=True),
    _both("attention-swapped", "+ the maps of a teacher that reads other pieces",
          term="attention_kl", swapped=True, base="attention-kl", first=True),
    _both("attention-mix", "+ attention, KL, heads mixed by learned weights",
          term="attention_kl_mix", base="attention-kl", first=True),
    _both("attention-mse", "+ attention, MSE x 100", term="attention_mse", weight=100.0),
    _both("hidden-mse", "+ hidden states, MSE", term="hidden_mse"),
    _both("hidden-last", "+ hidden states of the top layers", term="hidden_mse", layers="last",
          base="hidden-mse"),
    _both("hidden-cosine", "+ hidden states, cosine", term="hidden_cosine"),
    _both("relations", "+ Q-K-V relations", term="relations"),
    _both("random", "from random embeddings", embeddings=False, first=True, against="none-random"),
    _none("none-random", "from random embeddings", embeddings=False, first=True),
    _none("random-attention", "from random embeddings, + attention", embeddings=False,
          term="attention_kl", base="none-random"),
    _none("labels-10", "10 % of them", labels=0.1),
    _both("labels-10-both", "with 10 % of the labels", labels=0.1, against="labels-10", base=""),
    _none("labels-1", "1 % of them", labels=0.01),
    _both("labels-1-both", "with 1 % of the labels", labels=0.01, against="labels-1", base=""),
    _none("labels-1-attention", "1 % of them, + attention", labels=0.01, term="attention_kl",
          base="labels-1"),
    _none("labels-1-random", "1 % of them, from random embeddings", labels=0.01, embeddings=False,
          base="labels-1"),
    _none("labels-1-random-attention", "1 % of them, from random embeddings, + attention",
          labels=0.01, embeddings=False, term="attention_kl", base="labels-1-random"),
    _both("alpha-50", "with alpha 0.5", alpha=0.5),
    _both("alpha-100", "with alpha 1: no label", alpha=1.0),
    _both("temperature-2", "at temperature 2", temperature=2.0),
    _both("splices", "+ 0.5 spliced tweets for each", splices=0.5),
    _both("stage1-soft", "after stage 1, soft targets only", stage1="soft"),
    _both("stage1-mse", "after stage 1 with attention MSE", stage1="mse"),
    _both("stage1-kl", "after stage 1 with attention KL", stage1="kl"),
    _both("stage1-attention", "after stage 1, + attention, KL, in both stages", stage1="kl",
          term="attention_kl", base="stage1-kl"),
)  # fmt: skip


def chosen_variants(only: str | None) -> list[Variant]:
    """The variants named in ``only`` (comma-separated) and those they are compared with; or all.

    Raises:
        CometError: an unknown name, or none.
    """
    by_name = {v.name: v for v in VARIANTS}
    names = list(by_name) if only is None else [n for n in map(str.strip, only.split(",")) if n]
    if not names or not by_name.keys() >= set(names):
        unknown = ", ".join(name for name in names if name not in by_name) or "at all"
        choice = ", ".join(by_name)
        raise CometError(f"--only names no variant {unknown}: choose from {choice}")
    others = {x for name in names for x in (by_name[name].against, by_name[name].base)}
    return [v for v in VARIANTS if v.name in {CONTROL, *names, *others}]
