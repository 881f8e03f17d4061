"""The parts of `benchmarks.overlap`."""
