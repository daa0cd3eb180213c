"""ThinkFormat: how one model writes reasoning and answer, found by rendering probes through its template.

Every stage uses the same object: training rows are joined, rollouts and evaluation outputs are split, and
exported templates are checked with it. Detection needs only a `render` function (messages -> text), so this
module knows neither tokenizers nor torch.

Departure from the usual regex on `<think>`: we ask the template who writes the opening tag, and we never let the
template render an assistant turn with reasoning (R1-Distill's deletes everything before `</think>`).
Not covered: formats that put the reasoning behind the answer, or in several blocks on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from danlu.errors import DanluError
from danlu.records import Message

Render = Callable[..., str]  # render(messages, add_generation_prompt=..., **template_kwargs) -> text
Style = Literal["auto", "think", "reasoning_answer", "none"]

_QUESTION = "q\u2460uestion"  # strings that no template contains
_REASONING = "r\u2461easoning"
_ANSWER = "a\u2462nswer"


@dataclass(frozen=True, slots=True)
class ThinkFormat:
    """The reasoning format of one model.

    A completion is `head + reasoning + bridge + answer + tail`, and the end token follows. `head` is empty
    where the template has already opened the block (`opened_by == "template"`); `prefix` is then what it wrote.
    """

    style: Literal["think", "reasoning_answer", "none"]
    open: str = ""
    close: str = ""
    opened_by: Literal["template", "model", "nobody"] = "nobody"
    prefix: str = ""  # reasoning text that the generation prompt already ends with ("<think>\n")
    head: str = ""
    bridge: str = ""
    tail: str = ""
    drops_reasoning: bool = False  # the template deletes reasoning from assistant turns
    end_tokens: tuple[str, ...] = ()  # every token that ends the turn; the first one is trained
    thinking_off: str | None = None  # what the template appends to the prompt to switch thinking off

    def join(self, reasoning: str, answer: str) -> str:
        """Completion text for a training row (without the end token).

        With empty reasoning the model learns to answer at once, in the model's own way of saying so.
        """
        reasoning, answer = reasoning.strip("\n"), answer.strip("\n")
        if self.style == "none":
            return f"{reasoning}\n\n{answer}" if reasoning else answer
        return f"{self.head}{reasoning}{self.bridge}{answer}{self.tail}"

    def split(self, text: str) -> tuple[str, str, bool]:
        """(reasoning, answer, well_formed) of a completion text; defined for every string.

        Without a closing tag all of it is reasoning and the answer is empty. The first closing tag ends the
        reasoning. Well formed means: one block, opened and closed where they belong, and an answer after it.
        """
        if self.style == "none":
            return "", text.strip(), bool(text.strip())
        body, opened = text, self.opened_by == "template"
        stripped = text.lstrip()
        if stripped.startswith(self.open):
            body, opened_twice, opened = stripped[len(self.open) :], opened, True
        else:
            opened_twice = False
        if self.close not in body:
            if not opened:  # never thought: everything is the answer
                return "", self._strip_answer(text), False
            return body.strip(), "", False
        reasoning, _, rest = body.partition(self.close)
        answer = self._strip_answer(rest)
        tidy = opened and not opened_twice and self.open not in reasoning
        if self.style == "reasoning_answer":
            tidy = tidy and rest.strip().startswith("<answer>") and rest.rstrip().endswith("</answer>")
            tidy = tidy and rest.count("<answer>") == rest.count("</answer>") == 1
        tidy = tidy and self.open not in rest and self.close not in rest
        return reasoning.replace(self.open, "").strip(), answer, bool(tidy and answer and reasoning.strip())

    def _strip_answer(self, text: str) -> str:
        if self.style == "reasoning_answer":
            _, tag, inner = text.partition("<answer>")
            if tag:
                text = inner.partition("</answer>")[0]
        return text.strip()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ThinkFormat:
        return cls(**{**value, "end_tokens": tuple(value.get("end_tokens", ()))})


def detect(render: Render, end_tokens: tuple[str, ...], style: Style = "auto") -> ThinkFormat:
    """Find the ThinkFormat of a chat template.

    `render(messages, add_generation_prompt=bool, **kwargs)` returns the prompt text. `end_tokens`: the model's
    end tokens (generation config and tokenizer); the one that the template writes after an assistant turn is put
    first. `style` "auto" takes `<think>` where the template knows it and "none" elsewhere. DanluError when the
    template cannot render a plain user turn.
    """
    ask: list[Message] = [{"role": "user", "content": _QUESTION}]
    try:
        prompt = render(ask, add_generation_prompt=True)
        header_end = prompt.rindex(_QUESTION) + len(_QUESTION)
    except Exception as error:  # jinja raises many kinds; the cause is the model's template
        raise DanluError(
            f"the chat template cannot render a user message: {error}",
            "this tokenizer needs a chat template (chat_template.jinja beside tokenizer.json)",
        ) from error
    generation_tail = prompt[header_end:]
    plain = render([*ask, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False)
    ends = _order_ends(plain.rpartition(_ANSWER)[2], end_tokens)
    if style == "auto":
        style = "think" if _knows_think(render, ask) or generation_tail.rstrip().endswith("<think>") else "none"
    if style == "none":
        return ThinkFormat("none", end_tokens=ends)
    if style == "reasoning_answer":
        return ThinkFormat(
            "reasoning_answer",
            open="<reasoning>",
            close="</reasoning>",
            opened_by="model",
            head="<reasoning>\n",
            bridge="\n</reasoning>\n<answer>\n",
            tail="\n</answer>",
            end_tokens=ends,
        )
    opened = generation_tail.rstrip().endswith("<think>")
    prefix = generation_tail[generation_tail.rindex("<think>") :] if opened else ""
    whole = [*ask, {"role": "assistant", "content": f"<think>\n{_REASONING}\n</think>\n\n{_ANSWER}"}]
    rendered = render(whole, add_generation_prompt=False)
    bridge = "\n</think>\n\n"
    if _REASONING in rendered and _ANSWER in rendered:
        between = rendered.partition(_REASONING)[2].partition(_ANSWER)[0]
        bridge = between if "</think>" in between else bridge
    return ThinkFormat(
        "think",
        open="<think>",
        close="</think>",
        opened_by="template" if opened else "model",
        prefix=prefix,
        head="" if opened else "<think>\n",
        bridge=bridge,
        drops_reasoning=_REASONING not in rendered,
        end_tokens=ends,
        thinking_off=_thinking_off(render, ask, prompt),
    )


def _knows_think(render: Render, ask: list[Message]) -> bool:
    """Whether the template treats `reasoning_content` or a `<think>` block in an assistant turn specially."""
    turn: Message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _REASONING}
    if _REASONING in render([*ask, turn], add_generation_prompt=False):
        return True
    inline: Message = {"role": "assistant", "content": f"<think>\n{_REASONING}\n</think>\n\n{_ANSWER}"}
    return _REASONING not in render([*ask, inline], add_generation_prompt=False)


def _thinking_off(render: Render, ask: list[Message], prompt: str) -> str | None:
    off = render(ask, add_generation_prompt=True, enable_thinking=False)
    return off[len(prompt) :] if off != prompt and off.startswith(prompt) else None


def _order_ends(after_answer: str, end_tokens: tuple[str, ...]) -> tuple[str, ...]:
    """End tokens with the one that the template writes after an assistant turn first."""
    written = [token for token in end_tokens if token and token in after_answer]
    written.sort(key=after_answer.index)
    return tuple(dict.fromkeys([*written, *(token for token in end_tokens if token)]))
