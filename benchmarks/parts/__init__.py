"""What the benchmarks are made of; nothing here is run by itself."""
