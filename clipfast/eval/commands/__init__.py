"""Subcommands of ``python -m clipfast.eval``, one module each.

A module has ``add(subparsers)``, which adds its parser, and ``run(options)``, which returns what it
found as JSON has it. ``run`` raises ``ValueError`` for what a person can mend.
"""

# In the order of the help.
COMMANDS = ("zeroshot", "probe", "fewshot", "retrieval", "embed", "predict", "pairs")
