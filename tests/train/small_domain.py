"""A domain of three terms, to mask."""

from __future__ import annotations

from danlu.domains import Domain, Term

DOMAIN = Domain(
    "small",
    terms=lambda: [Term(("发热",), "symptom"), Term(("咳嗽",), "symptom"), Term(("apple", "fruit"), "food")],
    notice="shown with everything",
)
