"""A stage whose workers are Ray actors."""
