"""Build the folder ``transfer/`` of unlabeled posts from your copies of two public repositories.

    git clone https://github.com/emotion-analysis-project/SemEval2025-Task11 brighter
    git clone https://github.com/afrisenti-semeval/afrisent-semeval-2023 afrisenti
    python tools/build_transfer.py brighter afrisenti --data DIR

``DIR`` holds ``afrisenti/{language}/{split}.tsv`` and gets ``transfer/{language}.txt``, one post a
line, handles as ``@user`` and links as ``http``. The posts are BRIGHTER's (track A, all splits),
and for Hausa and Kinyarwanda those of AfriSenti's annotators. Left out: posts of one word, copies,
and everything that stands in any split of AfriSenti, compared without case, signs, and spaces.
Both sources are CC BY 4.0: cite Muhammad et al., BRIGHTER (ACL 2025) and AfriSenti (EMNLP 2023).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from comet_lib.data import cleaned, load_sentiment, normalize
from comet_lib.errors import CometError
from comet_lib.files import write_text
from comet_lib.profiles import PAPER_LANGUAGES, get_profile

BRIGHTER = "task-dataset/semeval-2025-task11-dataset/track_a/{split}/{language}.csv"
ANNOTATORS = {
    "hau": "data_with_annotators_labels/hausa-combined_annotations.csv",
    "kin": "data_with_annotators_labels/kinyarwanda_individual_labels.csv",
}


def texts(path: Path) -> Iterator[str]:
    """The column ``text`` of a CSV file; raises CometError if there is no such file or column."""
    try:
        column = pd.read_csv(path, dtype=str)["text"]
    except (OSError, KeyError, ValueError) as error:
        raise CometError(f"{path}: no CSV file with a column text; check both folders") from error
    yield from column.dropna()


def masked(text: str) -> str:
    """``text`` as a line, with handles as @user and links as http."""
    text = re.sub(r"@<username>|@\w+", "@user", text)
    return normalize(re.sub(r"https?://\S*|www\.\S+|##URL##", "http", text))


def key(text: str) -> str:
    """What copies of a text share."""
    return cleaned(masked(text)).replace(" ", "")


def main(
    brighter: Annotated[Path, typer.Argument(help="SemEval2025-Task11", file_okay=False)],
    afrisenti: Annotated[Path, typer.Argument(help="afrisent-semeval-2023", file_okay=False)],
    data: Annotated[Path, typer.Option(help="folder with afrisenti/, gets transfer/")],
) -> None:
    splits = load_sentiment(get_profile("laptop", data))
    seen = {key(text) for split in splits.values() for text in split["text"]}
    for language in PAPER_LANGUAGES:
        names = [BRIGHTER.format(split=s, language=language) for s in ("train", "dev", "test")]
        files = [brighter / name for name in names]
        files += [afrisenti / name for code, name in ANNOTATORS.items() if code == language]
        new = []
        for text in (masked(text) for path in files for text in texts(path)):
            if " " in text and (mark := key(text)) not in seen:
                seen.add(mark)
                new.append(text)
        path = data / "transfer" / f"{language}.txt"
        path.parent.mkdir(exist_ok=True)
        write_text(path, "".join(f"{text}\n" for text in new))
        typer.echo(f"{path}: {len(new):,} posts")


if __name__ == "__main__":
    typer.run(main)
