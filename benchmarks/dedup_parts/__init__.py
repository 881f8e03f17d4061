"""The parts of `benchmarks.dedup`, one file for each thing that is measured."""
