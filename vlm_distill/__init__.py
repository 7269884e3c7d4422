"""Distil large text and vision-language models into small ones.

Importing the package loads no torch; import what you need from its sub-packages, for example
`from vlm_distill.losses import SkewKL`.
"""

__version__ = "0.1.0"
