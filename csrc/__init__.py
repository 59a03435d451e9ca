"""The compiled operators' sources, and `building`, which setup.py and tests import.

A folder without this file is found after every package of the same name on Python's path.
"""
