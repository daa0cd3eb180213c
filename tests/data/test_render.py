from __future__ import annotations

import pytest

from danlu.data.augment import mask, matcher
from danlu.data.render import IGNORE, Rendered, Shape, prompt_ids, prompt_text, render, render_masked
from danlu.domains import Term
from danlu.errors import DanluError
from danlu.recipe import Masking
from danlu.records import Sample
from danlu.think import ThinkFormat

CHATS = [
    ({"role": "user", "content": "釉色发青的瓷器叫什么？"},),
    ({"role": "system", "content": "Think first."}, {"role": "user", "content": "What is celadon?\n"}),
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And 2+2?"},
    ),
]
SAMPLES = [
    Sample(str(n), chat, reasoning=f"Let me see.\nStep {n}: 青瓷。", answer=f"**Answer** {n}: 4")
    for n, chat in enumerate(CHATS)
]
ENDS = {"qwen3": "<|im_end|>", "qwen2.5": "<|im_end|>", "r1": "<｜end▁of▁sentence｜>"}


def prompt_of(row: Rendered) -> list[int]:
    """The tokens before the first one with loss."""
    return row.tokens[: (row.labels != IGNORE).argmax()].tolist()


def rows_of(model: tuple, samples: list[Sample], **shape) -> list[Rendered]:
    return render(*model, samples, Shape(**{"max_length": 4096, **shape}))[0]


@pytest.mark.parametrize("name", ENDS)
def test_prompt_reasoning_answer_and_the_real_end_are_always_there(model_format, name):
    tokenizer, think = model_format(name)
    rendered = rows_of((tokenizer, think), SAMPLES)
    for sample, row in zip(SAMPLES, rendered, strict=True):
        prompt = tokenizer.decode(prompt_of(row))
        completion = tokenizer.decode(row.tokens[len(prompt_of(row)) :])
        assert all(turn["content"] in prompt for turn in sample.messages)
        assert prompt == prompt_text(tokenizer, think, sample.messages)
        assert completion.endswith(sample.answer + ENDS[name])
        assert completion.index(sample.reasoning) < completion.index(sample.answer)
        assert think.split(completion.removesuffix(ENDS[name]))[1].endswith(sample.answer)
        assert sample.answer not in prompt
        assert completion.count(ENDS[name]) == 1


@pytest.mark.parametrize("name", ENDS)
def test_only_the_completion_is_supervised_and_the_prompt_is_the_generation_prompt(model_format, name):
    tokenizer, think = model_format(name)
    for sample, row in zip(SAMPLES, rows_of((tokenizer, think), SAMPLES), strict=True):
        own = tokenizer.apply_chat_template(list(sample.messages), add_generation_prompt=True)["input_ids"]
        assert prompt_of(row) == own == prompt_ids(tokenizer, think, sample.messages)
        assert row.labels[len(own) :].tolist() == row.tokens[len(own) :].tolist()


def test_r1_writes_one_bos_and_its_template_would_delete_the_reasoning(model_format):
    tokenizer, think = model_format("r1")
    sample = SAMPLES[0]
    row = rows_of((tokenizer, think), [sample])[0]
    assert row.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(row.tokens).count("<think>") == 1
    whole = f"<think>\n{sample.reasoning}\n</think>\n\n{sample.answer}"
    naive = tokenizer.apply_chat_template([*sample.messages, {"role": "assistant", "content": whole}], tokenize=False)
    assert sample.reasoning not in naive
    assert sample.reasoning in tokenizer.decode(row.tokens)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5"])
def test_qwen_is_not_trained_to_end_with_the_padding_token(model_format, name):
    tokenizer, think = model_format(name)
    row = rows_of((tokenizer, think), SAMPLES)[0]
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id not in row.tokens
    assert row.tokens[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_thinking_off_is_what_the_template_makes_of_it(model_format):
    tokenizer, think = model_format("qwen3")
    off = tokenizer.apply_chat_template(
        list(CHATS[0]), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt_text(tokenizer, think, CHATS[0], thinking=False) == off
    tokenizer, think = model_format("r1")
    assert prompt_text(tokenizer, think, CHATS[0], thinking=False) == prompt_text(tokenizer, think, CHATS[0])


def test_overlong_rows_are_dropped_or_an_error(model_format):
    tokenizer, think = model_format("qwen2.5")
    samples = [*SAMPLES, Sample("long", CHATS[0], answer="long " * 300)]
    rendered, told = render(tokenizer, think, samples, Shape(200))
    assert [row.id for row in rendered] == ["0", "1", "2"]
    assert (told.rows, told.kept, told.rendered, told.dropped) == (4, 3, 3, (("long", "overlong"),))
    assert told.tokens == sum(len(row.tokens) for row in rendered)
    assert told.supervised_tokens == sum(len(row.tokens) - len(prompt_of(row)) for row in rendered)
    size = len(rendered[0].tokens)
    assert len(rows_of((tokenizer, think), samples[:1], max_length=size)) == 1
    assert len(rows_of((tokenizer, think), samples[:1], max_length=size - 1)) == 0
    with pytest.raises(DanluError, match=r"1 of 4 rows are longer than 200 tokens \(the longest, long, has"):
        render(tokenizer, think, samples, Shape(200, overlong="error"))


@pytest.mark.parametrize("name", ENDS)
def test_truncate_reasoning_keeps_the_closing_tag_the_answer_and_the_end(model_format, name):
    tokenizer, think = model_format(name)
    thought = "".join(f"第{n}步：先看釉色，再看胎质😀。" for n in range(80))
    long = Sample("long", CHATS[0], reasoning=thought, answer="是青瓷。")
    whole = rows_of((tokenizer, think), [long])[0]
    rows, told = render(tokenizer, think, [long, *SAMPLES], Shape(300, overlong="truncate-reasoning"))
    assert told.truncated == ("long",)
    assert told.dropped == ()
    assert 200 < len(rows[0].tokens) <= 300 < len(whole.tokens)
    completion = tokenizer.decode(rows[0].tokens[len(prompt_of(rows[0])) :])
    reasoning, answer, well_formed = think.split(completion.removesuffix(ENDS[name]))
    if think.style == "none":
        assert answer.endswith("。\n\n是青瓷。")
    else:
        assert well_formed
        assert answer == "是青瓷。"
        assert thought.startswith(reasoning)
        assert reasoning.endswith("。")
    assert completion.endswith(ENDS[name])
    assert "\ufffd" not in completion
    # where not even the answer fits, nothing is trained
    assert render(tokenizer, think, [long], Shape(12, overlong="truncate-reasoning"))[1].dropped == (
        ("long", "overlong"),
    )


def test_truncate_cuts_the_end_and_says_so(model_format):
    tokenizer, think = model_format("qwen3")
    rows, told = render(tokenizer, think, SAMPLES, Shape(20, overlong="truncate"))
    assert all(len(row.tokens) <= 20 for row in rows)
    assert len(told.truncated) == 3
    rows, told = render(tokenizer, think, SAMPLES, Shape(8, overlong="truncate"))
    assert dict(told.dropped) == {"0": "nothing supervised", "1": "nothing supervised", "2": "nothing supervised"}
    assert rows == []


CHAT = Sample(
    "chat",
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
        {"role": "user", "content": "And 2+2?"},
    ),
    reasoning="Two and two.",
    answer="4.",
)


def learned(tokenizer, row: Rendered) -> str:
    return tokenizer.decode(row.labels[row.labels != IGNORE])


def test_assistant_turns_of_a_chat_each_carry_loss(model_format):
    tokenizer, think = model_format("qwen2.5")  # its template leaves earlier turns as they were written
    plain = Sample("chat", (*CHATS[2][:1], CHATS[2][1], *CHATS[2][2:]), answer="4.")
    rows = rows_of((tokenizer, think), [plain], loss_on="assistant")
    assert [learned(tokenizer, row) for row in rows] == ["Hello.<|im_end|>4.<|im_end|>"]
    assert rows[0].tokens.tolist() == rows_of((tokenizer, think), [plain])[0].tokens.tolist()


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_where_the_template_drops_reasoning_each_turn_is_a_row_with_its_own(model_format, name):
    tokenizer, think = model_format(name)
    first, last = rows_of((tokenizer, think), [CHAT], loss_on="assistant")
    assert (first.turn, last.turn) == (0, 1)
    assert learned(tokenizer, first) == think.join("A greeting.", "Hello.") + ENDS[name]
    assert learned(tokenizer, last) == think.join("Two and two.", "4.") + ENDS[name]
    for row, messages in ((first, CHAT.messages[:2]), (last, CHAT.messages)):
        assert prompt_of(row) == prompt_ids(tokenizer, think, messages)
    assert "A greeting." not in tokenizer.decode(last.tokens)  # the model's own convention for earlier turns
    assert rows_of((tokenizer, think), [CHAT])[0].tokens.tolist() == last.tokens.tolist()


def test_loss_on_everything_but_the_first_token(model_format):
    tokenizer, think = model_format("qwen3")
    row = rows_of((tokenizer, think), SAMPLES, loss_on="all")[1]
    assert row.labels[0] == IGNORE
    assert row.labels[1:].tolist() == row.tokens[1:].tolist()
    assert row.tokens.tolist() == rows_of((tokenizer, think), SAMPLES)[1].tokens.tolist()


LEXICON = matcher([Term(("青瓷",), "glaze"), Term(("answer",), "word")])
ALWAYS = {"probability": 1, "terms": (2, 2), "forms": ["category"]}


@pytest.mark.parametrize("name", ENDS)
def test_what_the_loss_does_at_a_mask(model_format, name):
    tokenizer, think = model_format(name)
    found = {}
    for loss in ("published", "ignore", "denoise"):
        masking = Masking(**ALWAYS, loss=loss)
        sample, spans = mask(SAMPLES[0], masking, LEXICON, seed=0, epoch=0)
        row = found[loss] = render_masked(tokenizer, think, sample, spans, Shape(4096), loss)
        places = [tokenizer.decode(row.tokens[a:b]) for a, b in row.masked]
        assert len(places) == 2
        if loss != "denoise":
            assert ["GLAZE" in places[0], "WORD" in places[1]] == [True, True]
        assert all(b - a < 9 for a, b in row.masked)
        assert row.labels[-1] == row.tokens[-1]
    assert "GLAZE" in learned(tokenizer, found["published"])
    assert "GLAZE" not in learned(tokenizer, found["ignore"])
    plain = rows_of((tokenizer, think), SAMPLES[:1])[0]
    assert found["denoise"].labels.tolist() == plain.labels.tolist()  # the terms themselves are what is learned
    assert len(found["denoise"].tokens) == len(plain.tokens)
    changed = {i for i, (a, b) in enumerate(zip(found["denoise"].tokens, plain.tokens, strict=True)) if a != b}
    inside = {i for a, b in found["denoise"].masked for i in range(a, b)}
    assert changed
    assert changed <= inside


def test_a_term_in_the_question_is_masked_in_the_prompt(model_format):
    tokenizer, think = model_format("qwen3")
    sample = Sample("q", ({"role": "user", "content": "青瓷是什么？"},), reasoning="想一想。", answer="一种瓷。")
    for loss in ("published", "denoise"):
        masking = Masking(**{**ALWAYS, "terms": (1, 1)}, where=["question"], loss=loss)
        masked, spans = mask(sample, masking, LEXICON, seed=0, epoch=0)
        row = render_masked(tokenizer, think, masked, spans, Shape(4096), loss)
        prompt = tokenizer.decode(prompt_of(row))
        assert "青瓷" not in prompt
        assert learned(tokenizer, row) == think.join("想一想。", "一种瓷。") + "<|im_end|>"
        assert len(row.masked) == 1


def test_what_does_not_fit_is_an_error(model_format):
    tokenizer, think = model_format("qwen2.5")
    with pytest.raises(DanluError, match="has no token '<end>'"):
        render(tokenizer, ThinkFormat("none", end_tokens=("<end>",)), SAMPLES, Shape(99))
    with pytest.raises(DanluError, match="the model has no end token"):
        render(tokenizer, ThinkFormat("none"), SAMPLES, Shape(99))
    with pytest.raises(DanluError, match="chat template refuses"):
        prompt_text(tokenizer, think, [{"role": "user", "content": None}])  # type: ignore[typeddict-item]
