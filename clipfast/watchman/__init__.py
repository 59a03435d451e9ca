"""Who watches over the ranks of a run: a small process beside each of them.

A rank that dies, hangs or leaves is noticed outside of the collectives of the others, which on GPUs
would wait for it for minutes. Each rank has a guard (``guard.py``), and the guards talk to the hub
(``hub.py``) beside rank 0. What the hub decides (``judge.py``) reaches all ranks within a second or
two.

A guard imports nothing but the standard library, runs while its rank is stuck in native code, and
outlives it by a moment to tell how it ended.
"""
