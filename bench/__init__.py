"""Side-by-side measurements; each is `python -m bench.NAME`."""

import os

# as the command line does it: threads that spin while they wait make small models several times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
