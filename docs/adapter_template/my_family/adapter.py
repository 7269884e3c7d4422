"""my_family: in one sentence, what its class does that others do not."""

from vlm_distill.adapters.adapter import Adapter

ADAPTER = Adapter(name="my_family", model_types=("my-type",))
