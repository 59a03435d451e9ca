"""Checkpoints on disk: what is in them, whether it is intact, and how it is read without trust.

``manifest`` says what a checkpoint is made of. ``catalogue`` finds those of a run. ``trusted``
reads their files and runs nothing that they bring. The engine saves and resumes with these;
``python -m clipfast.checkpoint`` looks at a run from outside.
"""

from clipfast.checkpoint.catalogue import Found, find, look, newest_first
from clipfast.checkpoint.manifest import Damaged, Entry, Manifest, Problem, problems
from clipfast.checkpoint.trusted import Refused, load_trusted, refused_globals, why_refused

__all__ = [
    "Damaged",
    "Entry",
    "Found",
    "Manifest",
    "Problem",
    "Refused",
    "find",
    "load_trusted",
    "look",
    "newest_first",
    "problems",
    "refused_globals",
    "why_refused",
]
