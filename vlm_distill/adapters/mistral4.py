"""Mistral 4 alone: a text model that transformers lists among those of images and text only."""

from dataclasses import replace

from transformers import AutoModelForImageTextToText

from vlm_distill.adapters.causal_lm import CAUSAL_LM

MISTRAL4 = replace(
    CAUSAL_LM, name="mistral4", model_types=("mistral4",), model_class=AutoModelForImageTextToText
)
