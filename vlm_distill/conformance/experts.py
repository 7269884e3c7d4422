"""What a distillation step does not train of a mixture of experts: the losses that balance its routers."""

from typing import Any

from vlm_distill.adapters.adapter import LoadedModel

COEFFICIENTS = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha")


def about_experts(loaded: LoadedModel) -> dict[str, str]:
    """Return a note on the router losses that a config asks for, none where it asks for none."""
    model: Any = loaded.model
    config = model.config.get_text_config()
    asked = [f"{name} {value}" for name in COEFFICIENTS if (value := getattr(config, name, None))]
    if not asked:
        return {}
    return {
        "router losses": f"none is added ({', '.join(asked)} of the config): routers learn through what "
        "their experts say, and nothing keeps them balanced"
    }
