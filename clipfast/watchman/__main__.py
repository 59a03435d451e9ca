"""Started by a rank with one word, its ``Setup`` as JSON."""

import json
import os
import sys
from contextlib import suppress

from clipfast.watchman.guard import Guard, Setup

if __name__ == "__main__":
    # The rank may be gone before its guard is there.
    with suppress(ProcessLookupError):
        Guard(Setup(**json.loads(sys.argv[1]))).run()
    # Threads that wait for a disk are not waited for.
    os._exit(0)
