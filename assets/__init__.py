"""Data that comes with the studio: the embedded base model, sample concepts and presets."""
