"""Config mechanics: YAML, overrides, decoding, shipped files. The records lie beside their owners."""

from vlm_distill.config.assets import asset_folder, find_yaml, shipped
from vlm_distill.config.decode import Record, check_yaml, decode
from vlm_distill.config.kinds import Kinds, as_json
from vlm_distill.config.paths import PathText, user_path
from vlm_distill.config.yaml import apply_overrides, dump_yaml, parse_yaml, read_yaml

__all__ = [
    "Kinds",
    "PathText",
    "Record",
    "apply_overrides",
    "as_json",
    "asset_folder",
    "check_yaml",
    "decode",
    "dump_yaml",
    "find_yaml",
    "parse_yaml",
    "read_yaml",
    "shipped",
    "user_path",
]
