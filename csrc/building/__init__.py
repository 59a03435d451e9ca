"""What setup.py decides and how it compiles; no part of the installed package."""
