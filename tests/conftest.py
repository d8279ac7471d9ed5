"""What every test relies on: the tiny profile, no network, its own home folder, no screen.

Libraries read these variables on import. So they are set here, before pytest imports any test
module, and not only in a fixture.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.update(
    COMET_PROFILE="tiny",
    COMET_HOME=tempfile.mkdtemp(prefix="comet-tests-"),
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
DATA = os.environ.get("COMET_DATA")
for name in ("COMET_DATA", "COMET_SEED", "COMET_STRICT"):
    os.environ.pop(name, None)

# Slow machines are no failure, and the same examples are drawn on each run.
settings.register_profile("comet", deadline=None, derandomize=True)
settings.load_profile("comet")


# The network is blocked here, and in every Python that a test starts (tests/offline).
OFFLINE = str(Path(__file__).parent / "offline")
sys.path.insert(0, OFFLINE)
from no_network import block  # noqa: E402

block()
paths = (OFFLINE, os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_collection_finish() -> None:
    """What the imports hold stays: no garbage collection looks through it (0.3 s each) again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def comet_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty COMET_HOME for each test: what one test writes, the next does not see."""
    home = tmp_path_factory.mktemp("comet-home")
    monkeypatch.setenv("COMET_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that COMET_DATA named when pytest was called; without it the test is skipped."""
    if not DATA or not Path(DATA).is_dir():
        pytest.skip("needs the folder COMET_DATA")
    return Path(DATA)
