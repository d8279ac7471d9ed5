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
    alpha: float | None = None
    temperature: float | None = None
    stage1: str = ""  # "", "soft" (targets only), or with attention: "mse", "kl"
    labels: float = 1.0  # share of the training labels that are known
    embeddings: bool = True  # start from the teacher's embeddings; else from random ones
    splices: float = 0.0  # spliced tweets for each real one
    against: str = CONTROL  # the same without distillation; "": this one has none
    base: str = ""  # the variant that this one differs from in one thing
    first: bool = False  # runs before the others, for every seed


def _variants() -> tuple[Variant, ...]:
    none = Variant(CONTROL, "labels only", first=True)
    both = Variant("both", "soft targets: TF-IDF and teacher", soft="both", first=True)

    def and_(name: str, about: str, **changes: Any) -> Variant:
        """``both`` with one change."""
        changes = {"first": False, "base": "both", **changes}
        return replace(both, name=name, about=f"both {about}", **changes)

    few = {
        share: replace(none, name=f"labels-{share}", about=f"labels only, {share} % of them",
                       labels=share / 100, first=False, against="", base=CONTROL)
        for share in (10, 1)
    }  # fmt: skip
    return (
        none,
        both,
        replace(both, name="tfidf", about="soft targets: TF-IDF", soft="tfidf"),
        replace(both, name="teacher", about="soft targets: teacher", soft="teacher"),
        and_("attention-mse", "+ attention, MSE x 100", term="attention_mse", weight=100.0,
             first=True),
        and_("hidden-mse", "+ hidden states, MSE", term="hidden_mse", first=True),
        and_("relations", "+ Q-K-V relations", term="relations", first=True),
        and_("random", "from random embeddings", embeddings=False, first=True,
             against="none-random"),
        few[10],
        and_("labels-10-both", "with 10 % of the labels", labels=0.1, against="labels-10", base=""),
        few[1],
        and_("labels-1-both", "with 1 % of the labels", labels=0.01, against="labels-1", base=""),
        replace(none, name="none-random", about="labels only, from random embeddings",
                embeddings=False, first=True, against="", base=CONTROL),
        and_("attention-kl", "+ attention, row-wise KL", term="attention_kl"),
        and_("hidden-cosine", "+ hidden states, cosine", term="hidden_cosine"),
        and_("alpha-25", "with alpha 0.25", alpha=0.25),
        and_("alpha-50", "with alpha 0.5", alpha=0.5),
        and_("alpha-100", "with alpha 1: no label", alpha=1.0),
        and_("temperature-2", "at temperature 2", temperature=2.0),
        and_("temperature-4", "at temperature 4", temperature=4.0),
        and_("splices", "+ 0.5 spliced tweets for each", splices=0.5),
        and_("stage1-soft", "after stage 1, soft targets only", stage1="soft"),
        and_("stage1-mse", "after stage 1 with attention MSE", stage1="mse"),
        and_("stage1-kl", "after stage 1 with attention KL", stage1="kl"),
        and_("hidden-last", "+ hidden states of the top layers", term="hidden_mse", layers="last",
             base="hidden-mse"),
        and_("hidden-skip", "+ hidden states, first of each group", term="hidden_mse",
             layers="skip", base="hidden-mse"),
    )  # fmt: skip


VARIANTS = _variants()


def chosen_variants(only: str | None) -> list[Variant]:
    """The variants named in ``only`` (comma-separated) and those they are compared with; or all.

    Raises:
        CometError: an unknown name, or none.
    """
    by_name = {v.name: v for v in VARIANTS}
    if only is None:
        return list(VARIANTS)
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise CometError(
            f"--only names no variant {', '.join(unknown) or 'at all'}: choose from "
            f"{', '.join(by_name)}"
        )
    others = {x for name in names for x in (by_name[name].against, by_name[name].base) if x}
    wanted = {CONTROL, *names, *others}
    return [v for v in VARIANTS if v.name in wanted]
