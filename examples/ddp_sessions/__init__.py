"""A sequence model on deduplicated sessions, on several ranks."""
