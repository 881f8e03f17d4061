"""The parts of `benchmarks.peers`: the data, the work, one file per engine, and the contest between them."""
