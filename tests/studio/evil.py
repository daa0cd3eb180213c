"""A runs folder whose names, rows and completions would all like to be markup."""

from __future__ import annotations

from pathlib import Path

from danlu.evaluate.verdict import compare
from danlu.recipe import load
from danlu.run import Run, write_json

# no slash: it is a name of a directory too
MARKUP = "<img src=x onerror=window.hacked=1><svg onload=window.hacked=2>"
SCRIPT = f"<script>window.hacked=3</script>{MARKUP}{{{{constructor.constructor('window.hacked=4')()}}}}"
SFT, GRPO, BASE, EVAL, EXPORT = (f"{name}-{MARKUP}" for name in ("sft", "grpo", "base", "eval", "export"))


def fill(root: Path) -> None:
    """sft -> grpo -> eval (compared with a base) and export."""
    recipe = load("demo").resolved()
    recipe["description"] = SCRIPT
    sft = Run.create(root / SFT, "sft", recipe, recipe_text=f"name: demo # {SCRIPT}\n")
    with sft.recording():
        for step in range(1, 41):
            sft.log({"step": step, "loss": 2 / step, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 900.0})
        sft.record(rows=12, eval_loss=0.5, data_hash=SCRIPT)
    grpo = Run.create(root / GRPO, "grpo", recipe, parents=[SFT])
    with grpo.recording():
        for step in (1, 2, 3):
            grpo.log({"step": step, "reward": step / 4, "rewards/answer": step / 4, "completion_length": 9.0})
            grpo.write_samples([_rollout(step, reward) for reward in (0.0, 1.0)])
        grpo.record(signs={"flat": 2}, sign_texts={"flat": SCRIPT})
    sides = {}
    for name, right in ((BASE, 2), (EVAL, 9)):
        sides[name] = run = Run.create(root / name, "eval", recipe, parents=[GRPO] if name == EVAL else [])
        with run.recording(), run.delivering() as staged:
            run.write_samples([_answer(i, i < right) for i in range(12)])
            entry = {"name": SCRIPT, "n": 12, "accuracy": right / 12, "ci": [0.1, 0.9], "shares": {"truncated": 0.0}}
            write_json(staged / "report.json", {"benchmarks": [entry]})
            run.record(benchmarks={SCRIPT: {"n": 12, "accuracy": right / 12, "ci": [0.1, 0.9]}})
    write_json(sides[EVAL].path / "compare.json", compare(sides[BASE], sides[EVAL]))
    export = Run.create(root / EXPORT, "export", recipe, parents=[GRPO])
    with export.recording(), export.delivering() as staged:
        (staged / "model-q8_0.gguf").write_bytes(b"GGUF")
        (staged / "Modelfile").write_text(f"FROM ./model-q8_0.gguf\n# {SCRIPT}\n")
        write_json(staged / "danlu.json", {"kind": "gguf", "gguf": "model-q8_0.gguf", "quant": "q8_0"})
        write_json(staged / "verify.json", {"ok": True, "checks": [{"name": SCRIPT, "ok": True, "value": SCRIPT}]})


def _rollout(step: int, reward: float) -> dict[str, object]:
    return {
        **{"step": step, "id": SCRIPT, "question": f"发热？{SCRIPT}", "target": SCRIPT, "finish": "stop", "tokens": 9},
        **{"output": f"<think>\n{SCRIPT}\n</think>\n\n{SCRIPT}", "reward": reward, "rewards": {"answer": reward}},
        "advantage": reward - 0.5,
    }


def _answer(number: int, right: bool) -> dict[str, object]:
    return {
        **{
            "benchmark": SCRIPT,
            "id": f"{number} {SCRIPT}",
            "index": 0,
            "question": f"发热？{SCRIPT}",
            "target": SCRIPT,
        },
        **{"subject": SCRIPT, "output": f"<think>{SCRIPT}</think>{SCRIPT}", "answer": SCRIPT, "extracted": SCRIPT},
        **{"outcome": "right" if right else "wrong", "how": SCRIPT, "finish": "stop", "tokens": 9, "leaked": False},
    }
