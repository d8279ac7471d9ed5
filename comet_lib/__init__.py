"""Distil large multilingual encoders into small students, and look inside while you do it.

Import from the modules directly, for example ``from comet_lib.losses import soft_target_loss``.
"""

import os

__version__ = "0.1.0"

# Beside a busy process, torch's threads would spin at each other's barriers for whole time slices.
# OpenMP reads this once, when torch is loaded; it changes no digit, unlike fewer threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
