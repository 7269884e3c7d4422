"""All tiny families by name, and those that must be refused, with the check that finds it."""

from tests.families import (
    llava_like,
    llava_own_parts,
    other_image_text,
    packed_like,
    qwen_like,
    recent_image_text,
    seen_both_ways,
    text,
)
from tests.families.build import Build

IMAGE_TEXT: dict[str, Build] = {
    **llava_like.FAMILIES,
    **llava_own_parts.FAMILIES,
    **other_image_text.FAMILIES,
    **packed_like.FAMILIES,
    **qwen_like.FAMILIES,
    **recent_image_text.FAMILIES,
    **seen_both_ways.FAMILIES,
}
TEXT: dict[str, Build] = {**text.FAMILIES, **text.DEVIANT}
