"""A training script with a DataLoader, and the same script with three lines changed."""
