"""Started by a rank, which writes its ``Setup`` as JSON to the guard's input: a command line is for
all users of a machine to read."""

import json
import os
import sys

from clipfast.watchman.guard import Guard, Setup

if __name__ == "__main__":
    Guard(Setup(**json.load(sys.stdin))).run()
    # Threads that wait for a disk are not waited for.
    os._exit(0)
