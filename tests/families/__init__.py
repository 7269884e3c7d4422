"""Tiny random models of model families, by name: what conformance is shown on, and what a new version is tried on.

Each file has a group of families; a family is a function that returns a model and its processor, both of
transformers alone.
"""
