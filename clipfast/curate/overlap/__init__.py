"""Which evaluation images a training set holds, and what that is worth to a model's accuracy."""
