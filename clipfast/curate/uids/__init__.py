"""Samples of DataComp by their uids."""
