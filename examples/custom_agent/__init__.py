"""An agent from another library drives a live pipeline."""
