"""The parts of `benchmarks.balance`."""
