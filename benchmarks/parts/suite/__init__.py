"""The suite: its parts, each in a process of its own, inside a budget of time."""
