"""Distil large multilingual encoders into small students, and look inside while you do it.

Import from the modules directly, for example ``from comet_lib.losses import soft_target_loss``.
"""

__version__ = "0.1.0"
