"""`check-adapter`: all checks on a model, from its folder or hub id, whatever is kept of it already."""

from collections.abc import Mapping

from vlm_distill.adapters.adapter import LoadOptions
from vlm_distill.conformance.checks import CHECKS, find
from vlm_distill.conformance.findings import Finding
from vlm_distill.conformance.probes import probe_of
from vlm_distill.conformance.prove import ONE, WEIGHED, examined, settle, weigh
from vlm_distill.conformance.verdict import Verdict, Weighed, keep_verdict, keep_weighed
from vlm_distill.models.load import load_model
from vlm_distill.models.skeleton import load_skeleton
from vlm_distill.progress import Log, progress

Weights = Mapping[str, Finding]


def check_adapter(name: str, options: LoadOptions, log: Log) -> tuple[Verdict, Weights]:
    """Return the verdict on a model's structure, and what its weights show; both are kept for runs.

    Raises:
        AdapterError: the model cannot be found or loaded.
    """
    skeleton = load_skeleton(name, trust_remote_code=options.trust_remote_code)
    log(
        f"check-adapter {name}: {len(CHECKS)} checks of its structure on a small random copy, then "
        f"{len(WEIGHED) + 1} with its weights, which are loaded in {options.dtype} on {options.device}"
    )
    verdict = examined(skeleton, progress(list(CHECKS), label="checks"))
    keep_verdict(skeleton, verdict, log)
    loaded = settle(load_model(name, options), verdict)
    log(f"weights: {', '.join(WEIGHED)} and saved")
    found = weigh(loaded)
    keep_weighed(loaded, Weighed(model=name, findings=found), log)
    return verdict, {**found, "saved": find(CHECKS["saved"], probe_of(loaded, lengths=ONE))}
