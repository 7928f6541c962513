"""Concept Studio: from a handful of photos to pictures in which several concepts appear together."""
