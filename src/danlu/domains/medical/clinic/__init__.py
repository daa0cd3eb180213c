"""A miniature clinic: a closed bilingual world in which every answer can be checked. DEMO-ONLY, not medical advice."""

from danlu.domains import World
from danlu.domains.medical.clinic.partial import SPLITS, samples

NOTICE = "DEMO-ONLY: a toy world with shortened facts, not medical advice."
WORLD = World(splits=SPLITS, samples=samples, notice=NOTICE)
