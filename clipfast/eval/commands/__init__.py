"""Subcommands of ``python -m clipfast.eval``, one module each.

A module has ``add(subparsers)``, which adds its parser, and ``run(options)``, which returns what it
found as JSON has it. ``run`` raises ``ValueError`` for what a person can mend. ``SHARES_WORK`` is
there and true where all ranks of a launcher call ``run`` together.
"""

# In the order of the help.
COMMANDS = (
    "zeroshot",
    "probe",
    "fewshot",
    "retrieval",
    "robustness",
    "groups",
    "geolocate",
    "all",
    "embed",
    "predict",
    "pairs",
    "report",
)
