"""Python imports a module of this name at its start: a process that has this folder in
``PYTHONPATH`` (a notebook's kernel, a command of a test) reaches no network from its first line on.
"""

import no_network

no_network.block()
