"""Sections of the page, one module each, in the order of the page.

A module has ``TITLE`` and ``section(context)``, which returns markup, or None where no result is of
its task.
"""

SECTIONS = (
    "summary",
    "matrix",
    "prompts",
    "classes",
    "fewshot",
    "robustness",
    "corruptions",
    "groups",
    "geolocation",
    "retrieval",
)
