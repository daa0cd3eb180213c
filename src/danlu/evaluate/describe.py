"""Two numbers about an answer that no verifier gives: does it repeat itself, and is it in the question's language?"""

from __future__ import annotations

from danlu.data.language import language

GRAM = 20  # characters


def repetition(text: str) -> float:
    """Share of the text's 20-character pieces that occurred before in it: 0 for fresh text, near 1 for a loop."""
    plain = "".join(text.split())
    count = len(plain) - GRAM + 1
    if count <= 1:
        return 0.0
    return round(1 - len({plain[i : i + GRAM] for i in range(count)}) / count, 4)


def language_match(question: str, answer: str) -> bool | None:
    """Whether both are Chinese or both English; None where one is neither, or too short to tell."""
    if len(answer.strip()) < 8:
        return None
    asked, said = language(question), language(answer)
    return asked == said if {asked, said} <= {"zh", "en"} else None
