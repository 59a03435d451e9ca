"""Tests of what setup.py decides and how it compiles."""
