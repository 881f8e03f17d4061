"""Shopping sessions in OTTO's format, from JSON lines to a trained sequence model."""
