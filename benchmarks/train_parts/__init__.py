"""The parts of `benchmarks.train`: data whose labels can be learnt, the models, and one run of a Trainer."""
