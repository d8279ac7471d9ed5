"""The one place for sizes, paths and seeds: ``COMET_PROFILE=tiny|laptop|gpu``.

A notebook asks :func:`get_profile` and uses what it gets; it never asks which profile it is.
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

from comet_lib.errors import CometError

ASSETS = Path(__file__).parent / "assets"
#: The five languages of the AfroXLMR-Comet paper, ISO 639-3.
PAPER_LANGUAGES = ("kin", "swa", "hau", "ibo", "yor")
LARGEST_SEED = 2**32 - 1  # numpy's


def user_path(path: str | Path) -> Path:
    """``path`` with a leading ~ as the home folder; as it stands where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def home() -> Path:
    """The folder COMET_HOME (default ~/.comet), made if need be.

    One that cannot be written (a classroom's read-only home) is replaced by a folder for
    temporary files, and a line on standard error says so.
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
        if other.is_symlink() or other.stat().st_uid != user:  # somebody else was here before
            other = Path(tempfile.mkdtemp(prefix="comet-"))
        print(
            f"comet: {wanted} cannot be written ({error.strerror}): runs are kept in {other}, "
            "which may not last; set COMET_HOME to a folder of yours",
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


@dataclass(frozen=True)
class Profile:
    """Sizes of one run. Frozen: make a variant with :meth:`with_`.

    ``teacher`` and ``sentiment_teacher`` are directories or hub ids; ``data`` is a folder in the
    layout of ``afrisenti/{lang}/{split}.tsv`` and ``text/{lang}.txt``, or None for hub or sample.
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
    train_limit: int | None = None  # tweets a language, None: all
    text_limit: dict[str, int] = field(default_factory=dict)  # sentences a language
    default_text_limit: int | None = None
    splices: float = 0.5  # spliced tweets for each real one
    folds: int = 3
    teacher_weight: float = 0.3  # of the sentiment teacher beside TF-IDF in the soft targets
    bootstrap: int = 1000
    seed: int = 0
    first_look: float = 1.0  # share of the training that notebook 00 does
    cached: bool = False  # stage 1 asks the teacher once and reads its answers from disk
    text: str | None = None  # stage 1 reads this file, folder or fineweb-2 as it goes (corpora)

    def with_(self, **changes: Any) -> Profile:
        """A copy with some fields changed; nested stages take a whole :class:`Stage`."""
        return replace(self, **changes)

    def shorter(self) -> Profile:
        """The run of notebook 00: this one, or ``first_look`` of its text, and of its epochs."""
        share = self.first_look
        if share == 1:
            return self

        def cut(stage: Stage) -> Stage:
            return replace(stage, epochs=max(1, round(stage.epochs * share)))

        return replace(
            self,
            stage1=cut(self.stage1),
            stage2=cut(self.stage2),
            text_limit={code: round(n * share) for code, n in self.text_limit.items()},
            default_text_limit=self.default_text_limit and round(self.default_text_limit * share),
        )

    @property
    def budget(self) -> str:
        """One line for the reader: time, memory, download."""
        download = f"{self.download_gb:g} GB to download" if self.download_gb else "no download"
        return (
            f"profile {self.name}: about {self.minutes}, under {self.ram_gb:g} GB RAM, {download}"
        )

    def run_folder(self, name: str) -> Path:
        """Where a notebook keeps a run: COMET_HOME (default ~/.comet), one folder per settings."""
        settings = json.dumps(self.as_dict(), sort_keys=True)
        key = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return home() / "runs" / f"{name}-{self.name}-{key}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_BUNDLED = str(ASSETS / "teacher")
_SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "initializer_range": 0.1,  # 0.02 starts a narrow student slowly
    "attention_probs_dropout_prob": 0.0,  # with it, a CPU leaves its fused attention
}

TINY = Profile(
    name="tiny",
    minutes="1 minute for the whole game on 2 cores or one GPU",
    ram_gb=2,
    download_gb=0,
    teacher=_BUNDLED,
    sentiment_teacher=_BUNDLED,
    student=_SMALL,
    stage1=Stage(1, 3e-3, 16, temperature=2.0, alpha=0.5, max_steps=6),
    stage2=Stage(2, 3e-3, 16, temperature=1.0, alpha=0.5, max_steps=12),
    use_hub=False,
    train_limit=40,
    default_text_limit=40,
    bootstrap=200,
)

LAPTOP = Profile(
    name="laptop",
    minutes="6 to 10 minutes for the whole game on 2 cores or one GPU",
    ram_gb=2,
    download_gb=0.01,
    teacher=_BUNDLED,
    sentiment_teacher=_BUNDLED,
    student=_SMALL,
    stage1=Stage(1, 3e-3, 16, temperature=2.0, alpha=0.5, gradient_accumulation=4),
    stage2=Stage(2, 3e-3, 64, temperature=1.0, alpha=0.75),
    default_text_limit=1000,
)

GPU = Profile(
    name="gpu",
    minutes="a night for a whole run on one GPU (an estimate)",
    ram_gb=12,
    download_gb=5,
    teacher="Davlan/afro-xlmr-large",
    sentiment_teacher="Davlan/afrisenti-twitter-sentiment-afroxlmr-large",
    student={
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 1024,
    },
    stage1=Stage(15, 5e-5, 8, temperature=2.0, alpha=0.5, gradient_accumulation=2),
    stage2=Stage(5, 2e-5, 16, temperature=2.0, alpha=0.5),
    max_length=128,
    text_limit={"kin": 226_466, "swa": 250_000, "hau": 173_485, "ibo": 54_410, "yor": 52_067},
    default_text_limit=50_000,
    first_look=1 / 15,
)

PROFILES = {p.name: p for p in (TINY, LAPTOP, GPU)}


def get_profile(name: str | None = None, data: str | Path | None = None) -> Profile:
    """The profile by name, else ``COMET_PROFILE``, else gpu where CUDA is there, else laptop.

    ``data`` (else ``COMET_DATA``) names a local folder with AfriSenti; the tiny profile keeps to
    the bundled sample unless ``data`` is given. ``COMET_SEED`` sets the seed.

    Raises:
        CometError: unknown profile, a data folder that is not there, or a seed that is no number.
    """
    name = name or os.environ.get("COMET_PROFILE") or ("gpu" if torch.cuda.is_available() else None)
    name = (name or "laptop").strip().lower()
    if name not in PROFILES:
        raise CometError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if data is None and name != "tiny":
        data = os.environ.get("COMET_DATA") or None
    if data is not None:
        folder = user_path(data)
        if not folder.is_dir():
            raise CometError(
                f"data folder {str(data)!r} is not there: give a folder with afrisenti/"
            )
        profile = replace(profile, data=str(folder))
    seed = os.environ.get("COMET_SEED")
    if seed:
        if not seed.strip().isdecimal() or int(seed) > LARGEST_SEED:
            raise CometError(f"COMET_SEED={seed!r} is not a whole number: set it to 0, 1, 2 ...")
        profile = replace(profile, seed=int(seed))
    return profile
