"""Recipes, data and training loops."""
