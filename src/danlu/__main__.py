"""`python -m danlu`, which is what launchers of several processes start: accelerate launch -m danlu sft RECIPE."""

import sys

from danlu.cli import main

sys.exit(main())
