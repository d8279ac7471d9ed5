"""Let another virtual environment find this one's packages after its own.

    .venv/bin/python tools/share_packages.py OTHER

A ``.pth`` file in OTHER names this environment's package folder. Packages installed in OTHER itself
come first. So a test with other versions need not download torch a second time.
"""

import sys
import sysconfig
from pathlib import Path


def share(other: Path) -> Path:
    """Write the file into the environment ``other``, and return it."""
    bases = {"base": str(other), "platbase": str(other)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=bases))
    if not packages.is_dir():
        sys.exit(f"{other}: not a virtual environment of this Python; make it with -m venv.")
    file = packages / "shared.pth"
    file.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    share(Path(sys.argv[1]))
