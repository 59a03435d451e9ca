"""What a GPU is expected to take for each row of the suite, by count, before it is measured."""
