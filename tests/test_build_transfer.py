"""The tool that builds transfer/ from two public repositories, on small copies of their layout."""

import sys
from pathlib import Path

import pytest

from comet_lib.errors import CometError
from comet_lib.profiles import ASSETS, PAPER_LANGUAGES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import build_transfer as tool


@pytest.fixture
def repositories(tmp_path):
    """(BRIGHTER, AfriSenti, data): one post a split and language, and the bundled sample."""
    brighter, afrisenti, data = (tmp_path / name for name in ("brighter", "afrisenti", "data"))
    for language in PAPER_LANGUAGES:
        for split in ("train", "dev", "test"):
            path = brighter / tool.BRIGHTER.format(split=split, language=language)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'id,text,joy\n1,"@<username> Habari, {split} {language} ##URL##",1\n')
    for path in tool.ANNOTATORS.values():
        (afrisenti / path).parent.mkdir(parents=True, exist_ok=True)
        (afrisenti / path).write_text("text,label_1\n@ada_1 see https://t.co/x now,NEUTRAL\none,X")
    data.mkdir()
    (data / "afrisenti").symlink_to(ASSETS / "sample" / "afrisenti")
    return brighter, afrisenti, data


def test_posts_are_masked_and_copies_left_out(repositories):
    brighter, afrisenti, data = repositories
    known = (data / "afrisenti/swa/train.tsv").read_text(encoding="utf-8").splitlines()[1]
    path = brighter / tool.BRIGHTER.format(split="dev", language="swa")
    copy = known.split("\t")[0].upper().replace('"', '""')
    path.write_text(f'id,text\n1,"{copy}"\n2,"@<username> HABARI train swa"\n', encoding="utf-8")
    tool.main(brighter, afrisenti, data)
    lines = {p.stem: p.read_text().splitlines() for p in (data / "transfer").glob("*.txt")}
    assert lines["swa"] == ["@user Habari, train swa http", "@user Habari, test swa http"]
    assert lines["kin"][-1] == "@user see http now" and len(lines["kin"]) == 4
    assert len(lines["hau"]) == 3  # Kinyarwanda's, read before, has the same post


def test_a_missing_file_is_named(repositories):
    brighter, afrisenti, data = repositories
    path = brighter / tool.BRIGHTER.format(split="test", language="yor")
    path.unlink()
    with pytest.raises(CometError, match=r"test/yor\.csv: no CSV file with a column text"):
        tool.main(brighter, afrisenti, data)
