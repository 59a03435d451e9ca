"""``python -m clipfast.plan``: see ``clipfast.plan``."""

import sys

from clipfast.plan.command import run

if __name__ == "__main__":
    sys.exit(run())
