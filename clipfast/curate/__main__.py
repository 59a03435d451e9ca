"""``python -m clipfast.curate``."""

import sys

from clipfast.curate.command import main

if __name__ == "__main__":
    sys.exit(main())
