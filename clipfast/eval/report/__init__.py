"""One page and one table of the results of many evaluations: ``python -m clipfast.eval report``."""

from clipfast.eval.report.reading import Odd, Result, read_results
from clipfast.eval.report.writing import Report, write_report

__all__ = ["Odd", "Report", "Result", "read_results", "write_report"]
