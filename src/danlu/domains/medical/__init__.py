"""Medicine as a domain: its terms, sources and miniature world. Nothing outside this package knows medicine."""

from danlu.domains import Domain, Term
from danlu.domains.medical.clinic import WORLD
from danlu.domains.medical.clinic.knowledge import LANGUAGES, knowledge

NOTICE = "Research and education only: not a medical device, no substitute for a clinician."


def terms() -> list[Term]:
    """The lexicon: every name of every entry of the clinic, per language."""
    entries = knowledge().entries.values()
    return [Term(entry.names[language], entry.category) for entry in entries for language in LANGUAGES]


DOMAIN = Domain(
    name="medical",
    terms=terms,
    world=WORLD,
    sources={
        "delicate-medical-r1": "modelscope:krisfu/delicate_medical_r1_data",
        "medical-o1-sft": "FreedomIntelligence/medical-o1-reasoning-SFT",
        "medical-o1-verifiable": "FreedomIntelligence/medical-o1-verifiable-problem",
    },
    notice=NOTICE,
)
