"""How a training step's memory grows with the batch: cases, the process of one, what it counts."""
