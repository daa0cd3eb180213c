"""Medicine as a domain: terms, sources, benchmarks, a miniature world. Nothing outside this package knows medicine."""

from danlu.domains import Domain, Term
from danlu.domains.medical.benchmarks import BENCHMARKS, SUITES
from danlu.domains.medical.clinic import WORLD
from danlu.domains.medical.clinic.knowledge import LANGUAGES, Entry, knowledge
from danlu.domains.medical.lexicon import lexicon
from danlu.domains.medical.safety import probes

NOTICE = "Research and education only: not a medical device, no substitute for a clinician."

# Categories of the clinic as the lexicon has them. A flag is a complication (呼吸衰竭), so it counts as a disease.
_CATEGORY = {
    "condition": "disease",
    "finding": "symptom",
    "department": "department",
    "test": "test",
    "flag": "disease",
}
# A treatment is something done where its Chinese name ends like one of these, else something given: a drug.
_DONE = (
    *("切除", "剔除", "电切", "置换", "支架", "引流", "穿刺", "减压", "复位", "牵引", "固定", "碎石", "透析", "灌肠"),
    *("宫产", "治疗", "化疗", "护理", "锻炼", "卧床", "补液", "退热", "高压氧"),
)


def terms() -> list[Term]:
    """The lexicon, then the clinic's entries that it does not know by their preferred Chinese name.

    The clinic's aliases are looser than the lexicon's, so of such an entry only the names that are still free count.
    """
    found = list(lexicon())
    known = {name.casefold() for term in found for name in term.names}
    for entry in knowledge().entries.values():
        if entry.name("zh").casefold() in known:
            continue
        names = tuple(n for language in LANGUAGES for n in entry.names[language] if n.casefold() not in known)
        found.append(Term(names, _category(entry)))
        known.update(name.casefold() for name in names)
    return found


def _category(entry: Entry) -> str:
    if entry.category == "treatment":
        return "procedure" if entry.name("zh").endswith(_DONE) else "drug"
    return _CATEGORY[entry.category]


DOMAIN = Domain(
    name="medical",
    terms=terms,
    world=WORLD,
    sources={
        "delicate-medical-r1": "modelscope:krisfu/delicate_medical_r1_data",
        "medical-o1-sft": "FreedomIntelligence/medical-o1-reasoning-SFT",
        "medical-o1-verifiable": "FreedomIntelligence/medical-o1-verifiable-problem",
    },
    benchmarks=BENCHMARKS,
    suites=SUITES,
    probes={"safety": probes},
    notice=NOTICE,
)
