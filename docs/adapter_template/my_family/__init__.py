"""A model family for vlm-distill."""
