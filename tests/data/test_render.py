from __future__ import annotations

import pytest

from danlu.data.augment import mask, matcher
from danlu.data.render import IGNORE, labels, prompt_ids, prompt_text, render, report
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


@pytest.mark.parametrize("name", ENDS)
def test_prompt_reasoning_answer_and_the_real_end_are_always_there(model_format, name):
    tokenizer, think = model_format(name)
    rendered = render(tokenizer, think, SAMPLES, 4096)
    for sample, row in zip(SAMPLES, rendered, strict=True):
        prompt = tokenizer.decode(row.tokens[: row.prompt_length])
        completion = tokenizer.decode(row.tokens[row.prompt_length :])
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
    for sample, row in zip(SAMPLES, render(tokenizer, think, SAMPLES, 4096), strict=True):
        own = tokenizer.apply_chat_template(list(sample.messages), add_generation_prompt=True)["input_ids"]
        assert row.tokens[: row.prompt_length] == own == prompt_ids(tokenizer, think, sample.messages)
        assert labels(row)[: row.prompt_length] == [IGNORE] * row.prompt_length
        assert labels(row)[row.prompt_length :] == row.tokens[row.prompt_length :]


def test_r1_writes_one_bos_and_its_template_would_delete_the_reasoning(model_format):
    tokenizer, think = model_format("r1")
    sample = SAMPLES[0]
    row = render(tokenizer, think, [sample], 4096)[0]
    assert row.tokens.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(row.tokens).count("<think>") == 1
    whole = f"<think>\n{sample.reasoning}\n</think>\n\n{sample.answer}"
    naive = tokenizer.apply_chat_template([*sample.messages, {"role": "assistant", "content": whole}], tokenize=False)
    assert sample.reasoning not in naive
    assert sample.reasoning in tokenizer.decode(row.tokens)


@pytest.mark.parametrize("name", ["qwen3", "qwen2.5"])
def test_qwen_is_not_trained_to_end_with_the_padding_token(model_format, name):
    tokenizer, think = model_format(name)
    row = render(tokenizer, think, SAMPLES, 4096)[0]
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
    rendered = render(tokenizer, think, samples, 200)
    assert [row.id for row in rendered] == ["0", "1", "2"]
    told = report(samples, rendered)
    assert (told.rows, told.dropped_overlong) == (4, 1)
    assert told.tokens == sum(len(row.tokens) for row in rendered)
    assert told.supervised_tokens == sum(len(row.tokens) - row.prompt_length for row in rendered)
    size = len(rendered[0].tokens)
    assert len(render(tokenizer, think, samples[:1], size)) == 1
    assert len(render(tokenizer, think, samples[:1], size - 1)) == 0
    with pytest.raises(DanluError, match=r"1 of 4 rows are longer than 200 tokens \(the longest, long, has"):
        render(tokenizer, think, samples, 200, overlong="error")


@pytest.mark.parametrize("name", ENDS)
def test_masks_carry_no_loss(model_format, name):
    tokenizer, think = model_format(name)
    lexicon = matcher([Term(("青瓷",), "glaze"), Term(("answer",), "word")])
    always = Masking(probability=1, terms=(2, 2), forms=["category"])
    sample, spans = mask(SAMPLES[0], always, lexicon, seed=0, epoch=0)
    row = render(tokenizer, think, [sample], 4096, masked={sample.id: spans})[0]
    places = [tokenizer.decode(row.tokens[a:b]) for a, b in row.masked_spans]
    assert ["GLAZE" in places[0], "WORD" in places[1]] == [True, True]
    assert all(b - a < 9 for a, b in row.masked_spans)
    supervised = [token for token in labels(row) if token != IGNORE]
    assert "GLAZE" not in tokenizer.decode(supervised)
    assert supervised[-1] == row.tokens[-1]
    assert report([sample], [row]).supervised_tokens == len(supervised)


def test_what_does_not_fit_is_an_error(model_format):
    tokenizer, think = model_format("qwen2.5")
    with pytest.raises(DanluError, match="has no token '<end>'"):
        render(tokenizer, ThinkFormat("none", end_tokens=("<end>",)), SAMPLES, 99)
    with pytest.raises(DanluError, match="the model has no end token"):
        render(tokenizer, ThinkFormat("none"), SAMPLES, 99)
    with pytest.raises(DanluError, match="chat template refuses"):
        prompt_text(tokenizer, think, [{"role": "user", "content": None}])  # type: ignore[typeddict-item]
