from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.errors import DanluError
from danlu.think import ThinkFormat, detect

END = ("<end>",)
TAGS = ["<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>", "</answer>"]


def template(*, opens: bool = False, drops: bool = False, off: bool = False):
    """A render function like the chat templates in use: Qwen3 (off), R1-Distill (opens, drops), Qwen2.5 (neither)."""

    def render(messages, *, add_generation_prompt, enable_thinking=True):
        text = ""
        for turn in messages:
            content = turn["content"]
            if turn["role"] == "assistant":
                inside, closed, answer = content.partition("</think>")
                if closed and drops:
                    content = answer
                elif off:
                    thought = turn.get("reasoning_content") or inside.removeprefix("<think>").strip("\n")
                    answer = answer.lstrip("\n") if closed else content
                    content = (
                        f"<think>\n{thought if closed or 'reasoning_content' in turn else ''}\n</think>\n\n{answer}"
                    )
            text += f"[{turn['role']}]{content}<end>"
        if add_generation_prompt:
            text += "[assistant]" + ("<think>\n" if opens else "")
            text += "<think>\n\n</think>\n\n" if off and not enable_thinking else ""
        return text

    return render


FORMATS = {
    "qwen3": detect(template(off=True), END),
    "r1": detect(template(opens=True, drops=True), END),
    "plain": detect(template(), END),
    "plain taught to think": detect(template(), END, "think"),
    "reasoning_answer": detect(template(), END, "reasoning_answer"),
}
formats = pytest.mark.parametrize("think", FORMATS.values(), ids=FORMATS)
soup = st.lists(st.sampled_from([*TAGS, "\n", " ", "a", "答"]) | st.text(max_size=4), max_size=12).map("".join)
prose = st.text(min_size=1).map(str.strip).filter(lambda text: text and not any(tag in text for tag in TAGS))


def test_detection_tells_who_opens_the_block():
    found = {name: (think.style, think.opened_by) for name, think in FORMATS.items()}
    assert found == {
        "qwen3": ("think", "model"),
        "r1": ("think", "template"),
        "plain": ("none", "nobody"),
        "plain taught to think": ("think", "model"),
        "reasoning_answer": ("reasoning_answer", "model"),
    }
    assert FORMATS["r1"].drops_reasoning
    assert FORMATS["r1"].prefix == "<think>\n"
    assert not FORMATS["qwen3"].drops_reasoning
    assert FORMATS["qwen3"].thinking_off == "<think>\n\n</think>\n\n"
    assert FORMATS["r1"].thinking_off is None


def test_the_end_that_the_template_writes_comes_first():
    assert detect(template(), ("<pad>", "<end>", "")).end_tokens == ("<end>", "<pad>")


def test_a_template_that_cannot_render_is_an_error():
    def broken(messages, **_):
        return messages[0]["text"]

    with pytest.raises(DanluError, match="cannot render a user message"):
        detect(broken, END)


@formats
@given(text=soup)
def test_split_takes_every_text(think: ThinkFormat, text: str):
    reasoning, answer, well_formed = think.split(text)
    assert reasoning == reasoning.strip()
    assert answer == answer.strip()
    assert think.split(text) == (reasoning, answer, well_formed)
    if well_formed:
        assert answer
        assert think.style == "none" or reasoning
        assert think.open == "" or think.open not in reasoning + answer
        assert think.close == "" or think.close not in reasoning + answer


@formats
@given(reasoning=prose, answer=prose)
def test_split_undoes_join(think: ThinkFormat, reasoning: str, answer: str):
    text = think.join(reasoning, answer)
    if think.style == "none":
        assert think.split(text) == ("", f"{reasoning}\n\n{answer}", True)
    else:
        assert think.split(text) == (reasoning, answer, True)
        assert think.split(think.prefix + text)[:2] == (reasoning, answer)


@formats
@given(answer=prose)
def test_an_answer_without_reasoning_is_still_the_answer(think: ThinkFormat, answer: str):
    assert think.split(think.join("", answer)) == ("", answer, think.style == "none")


@formats
@given(reasoning=prose, answer=prose, cut=st.integers(0, 200))
def test_a_text_cut_before_the_close_has_no_answer(think: ThinkFormat, reasoning: str, answer: str, cut: int):
    if think.style == "none":
        return
    text = think.join(reasoning, answer)
    opened = text.index(think.close)
    short = text[len(think.head) : opened][:cut]
    assert think.split(think.head + short) == (short.strip(), "", False)


@formats
@given(reasoning=prose, answer=prose)
def test_a_second_block_is_not_well_formed(think: ThinkFormat, reasoning: str, answer: str):
    if think.style == "none":
        return
    again = f"{think.join(reasoning, answer)}{think.open}{think.close}"
    assert think.split(again)[2] is False
    assert think.split(again)[0] == reasoning


@formats
def test_a_format_survives_its_dict(think: ThinkFormat):
    assert ThinkFormat.from_dict(think.to_dict()) == think
