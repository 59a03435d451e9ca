"""Started by a rank with one word, its ``Setup`` as JSON."""

import json
import os
import sys

from clipfast.watchman.guard import Guard, Setup

if __name__ == "__main__":
    Guard(Setup(**json.loads(sys.argv[1]))).run()
    # Threads that wait for a disk are not waited for.
    os._exit(0)
