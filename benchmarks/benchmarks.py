"""Stands in for the package ``benchmarks`` where a script of this folder is run by its path.

``python benchmarks/adamw.py`` makes Python look for modules in the script's folder and not in the
one above it, so that this file is what ``import benchmarks`` finds. It has the package's modules.
"""

import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
__path__ = [str(_FOLDER)]
# For the recipes, and for processes that are started from here.
sys.path.insert(0, str(_FOLDER.parent))
