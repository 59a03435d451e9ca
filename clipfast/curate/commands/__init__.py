"""Subcommands of ``python -m clipfast.curate``, one module each.

A module has ``add(subparsers)``, which adds its parser, and ``run(options)``. ``run`` raises
``ValueError`` for what a person can mend.
"""

# In the order of the help.
COMMANDS = ("queries", "match", "balance", "exact", "near", "overlap", "uids", "select", "report")
