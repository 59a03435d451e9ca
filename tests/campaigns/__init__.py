"""Programs that attack whole runs from outside; each prints a table and exits non-zero on a loss.

    python -m tests.campaigns                       all of them
    python -m tests.campaigns kill --count 20       one
    python -m tests.campaigns --repository PATH --python PATH/.venv/bin/python

The last form attacks another checkout, such as an earlier version, with the same programs.
"""
