"""Tiny random models of model families, by name: conformance is shown on them.

Each file has a group of families; a family is a function that returns a model and its processor, both of
transformers alone.
"""
