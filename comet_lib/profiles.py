"""Every size, path, and seed in one place: ``COMET_PROFILE=tiny|laptop|gpu``, and the paper's.

A notebook calls :func:`get_profile` and uses what it gets; it never asks which profile it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from comet_lib.errors import CometError, pick

ASSETS = Path(__file__).parent / "assets"
#: Our label order. Other sources number labels differently, so always map them by name.
LABELS = ("negative", "neutral", "positive")
#: AfriSenti's fourteen languages (Muhammad et al., EMNLP 2023), ISO 639-3 as its folders name them.
LANGUAGES = {
    "amh": "Amharic",
    "arq": "Algerian Arabic",
    "ary": "Moroccan Arabic",
    "hau": "Hausa",
    "ibo": "Igbo",
    "kin": "Kinyarwanda",
    "orm": "Oromo",
    "pcm": "Nigerian Pidgin",
    "por": "Mozambican Portuguese",
    "swa": "Swahili",
    "tir": "Tigrinya",
    "tso": "Xitsonga",
    "twi": "Twi",
    "yor": "Yoruba",
}


def shape(hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, int]:
    """An encoder's sizes under the names that its config uses."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, (hidden, layers, heads, intermediate), strict=True))


# --- The paper: AfroXLMR-Comet, arXiv 2502.18020 -------------------------------------------

PAPER_LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
PAPER_VOCABULARY = 250_002
PAPER_TEACHER = shape(1024, 24, 16, 4096)
PAPER_STUDENT = shape(256, 6, 8, 1024)  # from a public re-implementation
PAPER_PROVENANCE = (
    "arXiv 2502.18020, weighted F1 on AfriSenti test, transcribed by a public re-implementation; "
    "not verified by us"
)
#: Weighted F1 on AfriSenti's test split as the paper reports it, in percent.
PAPER_ROWS = [
    {
        "name": f"{name} (paper)",
        "parameters": parameters,
        "weighted_f1": dict(zip((*PAPER_LANGUAGES, "mean"), scores, strict=True)),
        "provenance": PAPER_PROVENANCE,
    }
    for name, parameters, *scores in (
        ("AfroXLMR-Large", 559_890_432, 68.91, 64.10, 79.30, 79.60, 74.20, 73.22),
        ("AfroXLMR-base", 278_000_000, 62.54, 60.81, 78.27, 78.63, 70.25, 70.10),
        ("XLM-R mini", 117_600_000, 60.23, 61.88, 74.29, 75.20, 63.10, 66.94),
        ("AfroXLMR-Comet", 68_937_216, 58.94, 55.30, 71.89, 73.82, 66.39, 65.28),
    )
]


def user_path(path: str | Path) -> Path:
    """``path`` with a leading ~ expanded; unchanged where there is no such user."""
    return Path(os.path.expanduser(path))


def home() -> Path:
    """The folder that COMET_HOME names (default ~/.comet), created if necessary. If it cannot be
    written (a classroom's home), a temporary folder takes over, and standard error says so.
    """
    wanted = user_path(os.environ.get("COMET_HOME") or "~/.comet")
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        user = getattr(os, "getuid", int)()
        other = Path(tempfile.gettempdir()) / f"comet-{user}"
        other.mkdir(mode=0o700, exist_ok=True)
        if other.is_symlink() or other.stat().st_uid != user:  # someone else's
            other = Path(tempfile.mkdtemp(prefix="comet-"))
        print(
            f"comet: {wanted} cannot be written ({error.strerror}): runs go to {other}, "
            "which may not last; set COMET_HOME to a folder of your own",
            file=sys.stderr,
        )
        return other


@dataclass(frozen=True)
class Stage:
    """One training stage. ``batch_size`` counts sentences, ``learning_rate`` is AdamW's peak."""

    epochs: float
    learning_rate: float
    batch_size: int
    temperature: float
    alpha: float  # weight of the soft targets; 1 - alpha goes to the other term of the stage
    warmup: float = 0.05  # share of all steps
    patience: int = 3  # epochs without a better dev score before stopping
    max_steps: int = -1
    gradient_accumulation: int = 1
    terms: dict[str, float] = field(default_factory=dict)  # of comet_lib.objectives, by name
    glance: int = 1  # in stage 2, terms of the teacher's inside count in one batch of so many


@dataclass(frozen=True)
class Profile:
    """Sizes of one run. Frozen: create a variant with :meth:`with_`.

    ``teacher`` and ``sentiment_teacher`` are folders or hub ids; ``data`` is a folder that holds
    ``afrisenti/{lang}/{split}.tsv`` and ``transfer/{lang}.txt``, or None for the hub or the sample.
    """

    name: str
    minutes: str  # of what, and on which machine
    ram_gb: float
    download_gb: float
    teacher: str
    sentiment_teacher: str
    student: dict[str, Any]
    stage1: Stage
    stage2: Stage
    languages: tuple[str, ...] = PAPER_LANGUAGES
    data: str | None = None
    use_hub: bool = True
    max_length: int = 64
    eval_batch_size: int = 128
    train_limit: int | None = None  # tweets per language, None: all
    text_limit: dict[str, int] = field(default_factory=dict)  # sentences per language
    default_text_limit: int | None = None
    splices: float = 0.0  # spliced tweets per real one
    folds: int = 3
    teacher_weight: float = 0.3  # share of the sentiment teacher in the soft targets
    prior: float = 0.5  # power of a label's frequency that the soft targets are divided by
    bootstrap: int = 1000
    seed: int = 0
    first_look: float = 1.0  # share of the training in notebook 00
    cached: bool = False  # stage 1 queries the teacher once, then reads its answers from disk
    text: str | None = None  # stage 1 reads this file or folder, or fineweb-2
    labels: tuple[str, ...] | None = None  # the sentiment teacher's columns, if it has other names

    def with_(self, **changes: Any) -> Profile:
        """A copy with some fields changed; ``stage1`` or ``stage2`` is a whole :class:`Stage`."""
        return replace(self, **changes)

    def shorter(self) -> Profile:
        """The run of notebook 00: ``first_look`` of this one's text and of its epochs, which stay
        whole, except that a stage 2 of one epoch has a part of it."""
        share = self.first_look
        if share == 1:
            return self
        one, two = (
            replace(stage, epochs=max(1, round(stage.epochs * share)))
            for stage in (self.stage1, self.stage2)
        )
        if self.stage2.epochs == 1:
            two = replace(two, epochs=share)
        text = {code: round(n * share) for code, n in self.text_limit.items()}
        default = self.default_text_limit and round(self.default_text_limit * share)
        return self.with_(stage1=one, stage2=two, text_limit=text, default_text_limit=default)

    @property
    def budget(self) -> str:
        """One line for the reader: time, memory, download."""
        download = f"{self.download_gb:g} GB to" if self.download_gb else "no"
        memory = f"under {self.ram_gb:g} GB RAM"
        return f"profile {self.name}: about {self.minutes}, {memory}, {download} download"

    def run_folder(self, name: str) -> Path:
        """Where a notebook keeps a run: in :func:`home`, one folder per set of settings."""
        settings = json.dumps(self.as_dict(), sort_keys=True)
        key = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return home() / "runs" / f"{name}-{self.name}-{key}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_BUNDLED = str(ASSETS / "teacher")

LAPTOP = Profile(
    name="laptop",
    minutes="10 minutes for the whole game on 2 cores or one GPU",
    ram_gb=2,
    download_gb=0.01,
    teacher=_BUNDLED,
    sentiment_teacher=_BUNDLED,
    student={
        **shape(64, 2, 4, 256),
        "initializer_range": 0.1,  # with 0.02 a narrow student starts slowly
        "attention_probs_dropout_prob": 0.0,  # above 0, a CPU leaves its fused attention
        "hidden_dropout_prob": 0.0,  # it underfits: with 0.1 it is further from its soft targets
    },
    stage1=Stage(1, 3e-3, 16, temperature=2.0, alpha=0.5, gradient_accumulation=4),
    stage2=Stage(1, 3e-3, 64, temperature=1.0, alpha=0.75, terms={"attention_kl": 2.0}, glance=4),
    default_text_limit=2000,
    first_look=0.5,
)

TINY = LAPTOP.with_(
    name="tiny",
    minutes="1 minute for the whole game on 2 cores or one GPU",
    download_gb=0,
    stage1=Stage(1, 3e-3, 16, temperature=2.0, alpha=0.5, max_steps=6),
    stage2=replace(LAPTOP.stage2, batch_size=16, alpha=0.5, max_steps=12),
    use_hub=False,
    first_look=1.0,
    train_limit=40,
    default_text_limit=40,
    bootstrap=200,
)

GPU = Profile(
    name="gpu",
    minutes="a night for a whole run on one GPU (an estimate)",
    ram_gb=12,
    download_gb=5,
    teacher="Davlan/afro-xlmr-large",
    sentiment_teacher="Davlan/afrisenti-twitter-sentiment-afroxlmr-large",
    student=PAPER_STUDENT,
    stage1=Stage(15, 5e-5, 8, temperature=2.0, alpha=0.5, gradient_accumulation=2),
    stage2=Stage(5, 2e-5, 16, temperature=2.0, alpha=0.5),
    max_length=128,
    splices=0.5,
    text_limit={"kin": 226_466, "swa": 250_000, "hau": 173_485, "ibo": 54_410, "yor": 52_067},
    default_text_limit=50_000,
    first_look=1 / 15,
)

PROFILES = {p.name: p for p in (TINY, LAPTOP, GPU)}
#: Training steps of a model of notebook 10, which is as small on every profile. No field of a
#: profile: it would change what a run of the course is resumed by.
TOY_STEPS = {"tiny": 24, "laptop": 300, "gpu": 300}


def get_profile(name: str | None = None, data: str | Path | None = None) -> Profile:
    """The profile ``name``, else ``COMET_PROFILE``, else gpu where there is CUDA, else laptop.

    ``data`` (else ``COMET_DATA``) names a local folder with AfriSenti; the tiny profile uses the
    bundled sample unless ``data`` is given. ``COMET_SEED`` sets the seed. Raises
    :class:`CometError` for an unknown profile, a missing folder, or a seed that is not a number.
    """
    name = name or os.environ.get("COMET_PROFILE")
    name = (name or ("gpu" if torch.cuda.is_available() else "laptop")).strip().lower()
    profile = pick("profile", name, PROFILES)
    if data is None and name != "tiny":
        data = os.environ.get("COMET_DATA") or None
    if data is not None:
        if not user_path(data).is_dir():
            raise CometError(f"{str(data)!r} does not exist: give a folder with afrisenti/")
        profile = profile.with_(data=str(user_path(data)))
    if seed := os.environ.get("COMET_SEED"):
        if not seed.strip().isdecimal() or int(seed) >= 2**32:  # numpy's limit
            raise CometError(f"COMET_SEED={seed!r} is not a whole number: set it to 0, 1, 2 ...")
        profile = profile.with_(seed=int(seed))
    return profile
