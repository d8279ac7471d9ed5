"""Print the pip options that say where torch comes from; an empty line means pip's default.

    python tools/torch_index.py [options that pip will get]

On Linux pip's default torch is a CUDA build: gigabytes that a machine without an NVIDIA GPU cannot
use. There PyTorch's index of CPU wheels comes first, unless ``TORCH_INDEX`` names an index, pip is
configured with an index, links or constraints of its own, or the CPU index does not answer.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SECONDS = 5  # to wait for its answer
# pip's options that say where packages come from, in `pip config list` and on a command line
OWN = re.compile(
    r"^(?:\S*\.|--)(?:(?:extra-)?index-url|no-index|find-links|constraint)\b|^-[a-z]*[icf]",
    re.MULTILINE,
)


def options(arguments: list[str], torch_index: str) -> tuple[str, str]:
    """pip's options for torch, and the reason in one sentence (empty if there is none to give)."""
    if torch_index:
        return f"--index-url {torch_index}", ""
    if platform.system() != "Linux" or shutil.which("nvidia-smi"):
        return "", ""
    if OWN.search("\n".join([pip_config(), *arguments])):
        return "", "pip has an index, links or constraints of its own: torch comes from there."
    if not answers(f"{CPU_WHEELS}/torch/"):
        return "", f"{CPU_WHEELS} does not answer: pip may download a CUDA torch of several GB."
    return f"--extra-index-url {CPU_WHEELS}", f"No NVIDIA GPU found: torch comes from {CPU_WHEELS}."


def pip_config() -> str:
    """pip's settings from its files and from ``PIP_*`` variables, one a line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def answers(address: str) -> bool:
    """Whether ``address`` can be read within ``SECONDS``."""
    try:
        asked = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(asked, timeout=SECONDS):
            return True
    except (OSError, ValueError):  # URLError, HTTPError and time-outs are OSErrors
        return False


if __name__ == "__main__":
    chosen, reason = options(sys.argv[1:], os.environ.get("TORCH_INDEX", "").strip())
    if reason:
        print(f"{reason} TORCH_INDEX=address names another index.", file=sys.stderr)
    print(chosen)
