"""Agreement against the plainest oracle: full logits of one unpadded sequence at a time, in float64."""

import copy

import pytest
import torch
from PIL import Image

from tests.tiny import example, picture, tiny_llava, tiny_text_model, with_places
from vlm_distill.adapters.adapter import LoadedModel
from vlm_distill.alignment.alignment import ALL_IDS, Alignment
from vlm_distill.alignment.pair import align
from vlm_distill.errors import AdapterError, DataError
from vlm_distill.evaluation import agreement as module
from vlm_distill.evaluation.agreement import FORWARD_KL, Agreement, Answers, agreement
from vlm_distill.losses import ComparedIds, IdList, IdRange
from vlm_distill.losses.divergences import ForwardKL, ReverseKL
from vlm_distill.records import Example, Response

EXAMPLES = [
    example("a", "What color is the shape?", num_images=1),
    example("b", "hi", num_images=1),
    example("c", "Is there a red circle?", num_images=1),
]
TOKENS = {"a": (10, 20, 1), "b": (30, 1), "c": (40, 50, 60, 70, 1)}


def response(example_id: str, token_ids: tuple[int, ...]) -> Response:
    return Response(
        id=example_id,
        example_id=example_id,
        author="teacher",
        round=0,
        sample_index=0,
        text="",
        token_ids=token_ids,
        finish="stop",
        model_fingerprint="teacher",
    )


RESPONSES = {example_id: response(example_id, token_ids) for example_id, token_ids in TOKENS.items()}


def pictures(one: Example) -> list[Image.Image]:
    return [picture({"a": "red", "b": "blue", "c": "green"}[one.id])]


def answers_to(examples: list[Example], responses: dict[str, Response] = RESPONSES) -> Answers:
    return Answers(examples=examples, responses=responses, load_images=pictures)


def measure(
    student: LoadedModel,
    teacher: LoadedModel,
    *,
    answers: Answers | None = None,
    batch_size: int = 2,
    alignment: Alignment = ALL_IDS,
    divergence: ForwardKL | ReverseKL = FORWARD_KL,
) -> Agreement:
    return agreement(
        student,
        teacher,
        answers or answers_to(EXAMPLES),
        batch_size=batch_size,
        alignment=alignment,
        divergence=divergence,
    )


def both(ids: ComparedIds) -> Alignment:
    return Alignment(route="the same of both", student=ids, teacher=ids)


def log_probs(model: LoadedModel, one: Example, columns: torch.Tensor) -> torch.Tensor:
    """Return float64 log-probabilities at the response tokens, from the model's own forward with logits."""
    prompt = model.encode([one], [pictures(one)])
    ids = torch.cat([prompt.input_ids, torch.tensor([TOKENS[one.id]])], dim=1)
    with torch.no_grad():
        logits = model.model(input_ids=ids, pixel_values=prompt.extras["pixel_values"]).logits[0]
    return logits[prompt.input_ids.shape[1] - 1 : -1][:, columns].double().log_softmax(dim=1)


@pytest.mark.parametrize("shared", [None, 200])
def test_agreement_equals_a_dense_computation(shared: int | None) -> None:
    student, teacher = tiny_llava(0), tiny_llava(1)
    width = len(teacher.head.weight)
    columns = torch.arange(width) if shared is None else torch.randperm(width)[:shared]
    columns = torch.unique(torch.cat([columns, torch.tensor([i for ids in TOKENS.values() for i in ids])]))
    alignment = ALL_IDS if shared is None else both(IdList(ids=columns))
    kl_sum, num_equal = 0.0, 0
    for one in EXAMPLES:
        p, q = log_probs(teacher, one, columns), log_probs(student, one, columns)
        kl = (p.exp() * (p - q)).sum()
        equal = int((p.argmax(dim=1) == q.argmax(dim=1)).sum())
        found = measure(student, teacher, answers=answers_to([one]), alignment=alignment)
        assert found.num_tokens == len(TOKENS[one.id])
        assert found.top1 == pytest.approx(equal / found.num_tokens)
        assert found.token_kl == pytest.approx(float(kl) / found.num_tokens, rel=1e-4)
        kl_sum, num_equal = kl_sum + float(kl), num_equal + equal
    result = measure(student, teacher, alignment=alignment)
    assert result.num_tokens == 10
    assert result.token_kl == pytest.approx(kl_sum / 10, rel=1e-4)
    assert result.top1 == pytest.approx(num_equal / 10)


def test_the_reverse_divergence_is_that_of_a_dense_computation() -> None:
    student, teacher = tiny_llava(0), tiny_llava(1)
    width = len(teacher.head.weight)
    kl_sum = 0.0
    for one in EXAMPLES:
        p, q = (log_probs(model, one, torch.arange(width)) for model in (teacher, student))
        kl_sum += float((q.exp() * (q - p)).sum())
    result = measure(student, teacher, divergence=ReverseKL())
    assert result.token_kl == pytest.approx(kl_sum / 10, rel=1e-4)
    assert result.token_kl != pytest.approx(measure(student, teacher).token_kl, rel=1e-3)


def test_a_model_agrees_with_itself() -> None:
    result = measure(tiny_llava(0), tiny_llava(0))
    assert result.token_kl == pytest.approx(0.0, abs=1e-6)
    assert result.top1 == 1.0


def test_batches_and_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny_llava(0), tiny_llava(1)
    together = measure(student, teacher, batch_size=3)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    alone = measure(student, teacher, batch_size=1)
    assert alone.token_kl == pytest.approx(together.token_kl, rel=1e-5)
    assert alone.top1 == together.top1


def test_a_student_in_training_is_measured_without_dropout_and_stays_in_training() -> None:
    student = copy.deepcopy(tiny_llava(0))
    dropout = torch.nn.Dropout(0.5)
    student.model.add_module("dropout", dropout)
    student.model.train()
    dropout.eval()
    measure(student, tiny_llava(1))
    assert student.model.training
    assert not dropout.training


def test_examples_without_a_response_are_counted() -> None:
    some = {key: RESPONSES[key] for key in "ac"} | {"b": response("b", ())}
    result = measure(tiny_llava(0), tiny_llava(1), answers=answers_to(EXAMPLES, some))
    assert (result.num_without_response, result.num_tokens) == (1, 8)
    with pytest.raises(DataError, match="expected responses to 3 examples"):
        measure(tiny_llava(0), tiny_llava(1), answers=answers_to(EXAMPLES, {}))


def test_a_teacher_may_have_the_same_tokens_at_other_ids_of_its_output_layer() -> None:
    student, teacher = tiny_text_model(0), tiny_text_model(1)
    texts = Answers(examples=[example("b", "hi")], responses=RESPONSES, load_images=lambda _: [])
    places = torch.randperm(len(teacher.head.weight), generator=torch.Generator().manual_seed(0))
    moved = Alignment(route="moved", student=IdRange(), teacher=IdList(ids=places))
    found = measure(student, with_places(teacher, places), answers=texts, alignment=moved)
    expected = measure(student, teacher, answers=texts)
    assert found.token_kl == pytest.approx(expected.token_kl, rel=1e-5)
    assert found.top1 == expected.top1


def test_other_output_layers_need_the_shared_ids() -> None:
    student, teacher = copy.deepcopy(tiny_text_model(0)), tiny_text_model(1)
    student.model.resize_token_embeddings(len(student.tokenizer) + 8)  # type: ignore[operator]
    texts = Answers(examples=[example("b", "hi")], responses=RESPONSES, load_images=lambda _: [])
    with pytest.raises(AdapterError, match="give the ids that both models share"):
        measure(student, teacher, answers=texts)
    aligned = measure(student, teacher, answers=texts, alignment=align(teacher, student))
    assert aligned.num_tokens == 2
    with pytest.raises(DataError, match="token id 30"):
        measure(student, teacher, answers=texts, alignment=both(IdRange(stop=20)))
