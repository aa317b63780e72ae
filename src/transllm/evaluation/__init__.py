"""Measure: scores over plain values, scoring of text with a model, the before/after table."""
