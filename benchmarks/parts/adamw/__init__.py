"""Parts of ``adamw.py`` and ``adamw_proof.py``."""
