"""Side-by-side measurements; each is `python -m bench.NAME`."""

import os

from danlu.cli import WAITING

if "OMP_WAIT_POLICY" not in os.environ:  # as the command line does it, for both sides
    os.environ.update(WAITING)
