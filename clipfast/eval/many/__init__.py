"""Many sets, many tasks, several models in one call: ``python -m clipfast.eval all``."""

from clipfast.eval.many.jobs import Job, jobs_of_sets, jobs_of_table
from clipfast.eval.many.root import find_sets

__all__ = ["Job", "find_sets", "jobs_of_sets", "jobs_of_table"]
