"""Recipe: what is intended. Strict pydantic models filled from YAML and `--set key=value` overrides.

Unknown keys fail and name the nearest valid one. A recipe is frozen; defaults live here and nowhere else.
Relative data paths are taken from the directory where the command runs.
"""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from danlu.errors import DanluError

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAIN_REWARDS = (
    *("xmlcount", "soft_format", "strict_format", "int", "correctness"),  # the published five
    *("answer", "choice", "think_format", "stop", "language"),
)
BUILT_IN_REWARDS = (*PLAIN_REWARDS, "repetition", "length", "judge")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The model to start from: a local directory, a hub id, `modelscope:ID`, or `tiny` (shipped)."""

    id: str = "tiny"
    revision: str | None = None
    config: str | None = Field(None, description="config.json to build a model with random weights from (no download)")
    tokenizer: str | None = Field(None, description="tokenizer directory or id, when it is not the model's")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    quantization: Literal["none", "nf4"] = "none"
    think: Literal["auto", "think", "reasoning_answer", "none"] = Field(
        "auto", description="reasoning format; auto asks the chat template"
    )
    trust_remote_code: bool = False


class Source(Section):
    """One place rows come from: a file, a hub id, `modelscope:ID` or `world:SPLIT` of the domain."""

    path: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = Field(None, description="commit, branch or tag of a hub's data set")
    limit: int | None = Field(None, ge=1)
    seed: int = 0
    columns: dict[str, str] = Field(default_factory=dict, description="our name -> the file's column")
    licence: str | None = Field(None, description="licence of the data, for the data card")


def _as_source(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Sources = Annotated[list[Annotated[Source, BeforeValidator(_as_source)]], BeforeValidator(_as_list)]


class Masking(Section):
    """Domain terms masked in training rows while batches are made; never in validation rows."""

    probability: float = Field(0.1, ge=0, le=1, description="share of rows that are masked")
    terms: tuple[int, int] = Field((1, 2), description="least and most terms masked in a row")
    forms: list[Literal["mask", "category", "ellipsis"]] = Field(
        ["mask", "category", "ellipsis"], min_length=1, description="[MASK], [CATEGORY] or ..."
    )
    where: list[Literal["question", "reasoning", "answer"]] = Field(["reasoning", "answer"], min_length=1)
    loss: Literal["published", "ignore", "denoise"] = Field(
        "ignore",
        description="at a masked place: train on the mask's text | no loss | mask the input, train on the term itself",
    )

    @model_validator(mode="after")
    def _coherent(self) -> Masking:
        if not 1 <= self.terms[0] <= self.terms[1]:
            raise ValueError("terms is [least, most], with 1 <= least <= most")
        return self


class Data(Section):
    train: Sources = []
    valid: Sources = Field([], description="validation rows; empty: valid_fraction of the training rows")
    valid_fraction: float = Field(0.0, ge=0, lt=1)
    shuffle_seed: int = 42
    system: str | None = Field(None, description="system prompt put before rows that have none")
    max_length: int = Field(2048, ge=8, description="tokens of prompt + completion")
    overlong: Literal["drop", "truncate-reasoning", "truncate", "error"] = Field(
        "drop", description="rows longer than max_length; truncate-reasoning keeps the answer and the end token"
    )
    loss_on: Literal["completion", "assistant", "all"] = Field(
        "completion", description="the last answer | every assistant turn of a chat | every token"
    )
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name -> the files' column, for sources that name none themselves"
    )
    redact: bool = Field(False, description="replace ID numbers, phone numbers, e-mail addresses and patients' names")
    decontaminate: bool = Field(False, description="drop training rows that hold a question of eval.benchmarks")
    masking: Masking | None = None


class Lora(Section):
    r: int = Field(16, ge=1)
    alpha: float = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = list(ALL_LINEAR)
    modules_to_save: list[str] = []
    rslora: bool = False
    dora: bool = Field(False, description="weight-decomposed LoRA (Liu et al. 2024): better at small ranks, slower")


class Optimizer(Section):
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    lr: float = Field(2e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: float = Field(0.03, ge=0, le=1, description="share of all steps")


class Training(Section):
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    optimizer: Optimizer = Optimizer()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="recompute activations in the backward pass; auto: when the plan does not fit without"
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="one pass over memory for elementwise functions; true: by torch.compile (half a minute at first); "
        "auto: in C on a CPU, compiled on a GPU where the run is long; false: neither",
    )
    eval_every: int = Field(0, ge=0, description="steps; 0: at the end only")
    patience: int = Field(0, ge=0, description="stop after so many evaluations without a new best; 0: never")
    save_every: int = Field(0, ge=0, description="steps; 0: when interrupted and at the end only")
    keep_last: int = Field(2, ge=1)
    track: list[Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow"]] = []

    @model_validator(mode="after")
    def _counting(self) -> Training:
        if self.patience and not self.eval_every:
            raise ValueError("patience counts evaluations: it needs eval_every")
        return self


class Sft(Training):
    engine: Literal["danlu", "mlx"] = Field(
        "danlu", description="what computes: torch | mlx-lm with LoRA (Apple silicon, danlu[mlx]), all else being equal"
    )
    batch_size: int = Field(4, ge=1, description="rows of a step: batch_size x accumulation, over all processes")
    accumulation: int = Field(4, ge=1)
    micro_batch: int | Literal["auto"] | None = Field(
        None, description="a forward holds at most so many times data.max_length tokens; auto: what fits; batch_size"
    )
    epochs: float = Field(1, gt=0)
    steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    watch: Sources = Field([], description="held-out questions, answered greedily (eval.max_tokens) at eval_every")
    best_on: Literal["eval_loss", "accuracy"] = Field(
        "eval_loss",
        description="what best is, for keep_best and patience: least loss on validation rows | accuracy of watch",
    )
    keep_best: bool = Field(True, description="deliver the adapter that was best in evaluations, not the last one")

    @model_validator(mode="after")
    def _watching(self) -> Sft:
        if self.best_on == "accuracy" and not self.watch:
            raise ValueError("best_on: accuracy needs questions in sft.watch")
        return self


class RewardSpec(Section):
    """A reward without settings of its own."""

    name: Literal[PLAIN_REWARDS]  # type: ignore[valid-type]
    weight: float = 1.0

    @property
    def label(self) -> str:
        return str(self.name)


class RepetitionSpec(Section):
    """-1..0: loops of words that were there before."""

    name: Literal["repetition"]
    weight: float = 1.0
    gram: int = Field(8, ge=1, description="words (of Chinese: characters) of a piece that counts when it comes again")
    free: float = Field(0.2, ge=0, lt=1, description="share of repeated pieces that costs nothing")

    @property
    def label(self) -> str:
        return self.name


class LengthSpec(Section):
    """How long a completion is, in tokens."""

    name: Literal["length"]
    weight: float = 1.0
    shape: Literal["soft", "cosine"] = Field(
        "soft", description="0 up to low, falling to -1 at high | from the first value to the second along a cosine"
    )
    low: int = Field(0, ge=0, description="tokens up to which a completion is as short as can be")
    high: int = Field(ge=1, description="tokens from which on it is as long as can be")
    right: tuple[float, float] = Field((1.0, 0.5), description="cosine: values of a short and a long right answer")
    wrong: tuple[float, float] = Field((0.0, 0.0), description="cosine: values of a short and a long wrong answer")
    cut: float = Field(-1.0, description="cosine: value of a completion that the token limit cut")

    @model_validator(mode="after")
    def _coherent(self) -> LengthSpec:
        if self.low >= self.high:
            raise ValueError("length needs low < high (tokens)")
        return self

    @property
    def label(self) -> str:
        return self.name


class JudgeSpec(Section):
    """1 or 0 from an LLM that sees question, gold and answer; a rollout that it failed on is masked."""

    name: Literal["judge"]
    weight: float = 1.0
    endpoint: str = Field(description="chat endpoint of the judge (http://host:port/v1#model)")
    concurrency: int = Field(8, ge=1, description="requests at once")
    timeout: float = Field(120.0, gt=0, description="seconds that one request may take")
    retries: int = Field(8, ge=0, description="further attempts; with the backoff they outlast a minute")
    backoff: float = Field(1.0, ge=0, description="seconds before the second attempt, doubled each time up to 30")
    max_tokens: int = Field(2048, ge=1, description="longest reply, its reasoning included")
    thinking: bool | None = Field(None, description="switches the judge's thinking on or off, where it can")
    price: tuple[float, float] | None = Field(
        None, description="money for a million tokens of prompt and of reply; the cost is logged"
    )

    @property
    def label(self) -> str:
        return self.name


class PythonSpec(Section):
    """A function of your own."""

    python: str = Field(description="FILE.py:function; found from the working directory or beside the recipe")
    weight: float = 1.0
    style: Literal["auto", "danlu", "trl", "trl-text"] = Field(
        "auto",
        description="(sample, completion) -> number | (completions, **columns) -> list, completions as chats | the"
        " same with completions as texts; auto: by the names of the parameters",
    )

    @property
    def label(self) -> str:
        return self.python.rpartition(":")[2]


REWARD_SPECS: dict[str, type[Section]] = {
    "plain": RewardSpec,
    "repetition": RepetitionSpec,
    "length": LengthSpec,
    "judge": JudgeSpec,
    "python": PythonSpec,
}


def _reward_kind(value: Any) -> str:
    """Which of REWARD_SPECS an item of grpo.rewards is."""
    if not isinstance(value, dict):
        return next((kind for kind, spec in REWARD_SPECS.items() if isinstance(value, spec)), "plain")
    if "python" in value:
        return "python"
    name = value.get("name")
    return name if name in REWARD_SPECS and name not in ("plain", "python") else "plain"


def _as_reward(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


AnyReward = Annotated[
    Annotated[RewardSpec, Tag("plain")]
    | Annotated[RepetitionSpec, Tag("repetition")]
    | Annotated[LengthSpec, Tag("length")]
    | Annotated[JudgeSpec, Tag("judge")]
    | Annotated[PythonSpec, Tag("python")],
    Discriminator(_reward_kind),
    BeforeValidator(_as_reward),
]


class Filter(Section):
    """Prompts by how often the model that training starts from answers them right."""

    samples: int = Field(8, ge=2, description="completions of each prompt, before training")
    low: float = Field(0.1, ge=0, le=1, description="least share of right answers of a prompt that is kept")
    high: float = Field(0.9, ge=0, le=1, description="greatest share of right answers of a prompt that is kept")

    @model_validator(mode="after")
    def _coherent(self) -> Filter:
        if self.low > self.high:
            raise ValueError("filter needs low <= high")
        return self


class Grpo(Training):
    engine: Literal["danlu", "trl"] = Field(
        "danlu", description="who makes the steps: our own loop | TRL's GRPOTrainer, with our data, rewards and run"
    )
    generate: Literal["local", "vllm"] = Field("local", description="what samples; vllm: with engine trl, needs CUDA")
    vllm: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="options of TRL's GRPOConfig that begin with vllm_, without that"
    )
    data: Sources = Field([], description="rows with a gold answer; empty: data.train")
    valid: Sources = Field([], description="held-out questions whose accuracy is watched; empty: none")
    keep_best: bool = Field(True, description="deliver the adapter with the best held-out accuracy")
    prompts: int = Field(8, ge=1, description="prompts (groups) of a step")
    group: int = Field(8, ge=1, description="completions of a prompt, at least 2")
    steps: int = Field(100, ge=1)
    max_prompt: int = Field(512, ge=1)
    max_completion: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    resample: int = Field(
        0, ge=0, description="rounds in which groups of equal rewards give way to groups of further prompts (DAPO)"
    )
    iterations: int = Field(1, ge=1, description="updates on the same rollouts")
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo"] = Field(
        "dapo",
        description="mean over completions of their means | sum over the longest possible | mean over all tokens |"
        " as grpo, with ratios of whole completions",
    )
    clip_low: float | None = Field(None, gt=0, description="how far a ratio may fall below 1; of the loss's paper")
    clip_high: float | None = Field(None, gt=0, description="how far a ratio may rise above 1; of the loss's paper")
    kl: float = Field(0.0, ge=0, description="weight of the k3 KL to the adapter-off reference")
    scale_rewards: bool | Literal["auto"] = Field(
        "auto", description="divide advantages by the group's standard deviation; auto: all losses but dr_grpo"
    )
    importance: Literal["off", "token", "sequence"] = Field(
        "token",
        description="weigh tokens by how much likelier training finds them than decoding did, each or as a whole",
    )
    importance_cap: float = Field(2.0, gt=0, description="largest such weight")
    mask_truncated: bool = Field(True, description="completions that the token limit cut carry no loss")
    micro_batch: int = Field(
        32, ge=1, description="a forward holds at most so many times (max_prompt + max_completion) tokens"
    )
    rollout_batch: int = Field(256, ge=1, description="completions decoded together at most")
    rewards: list[AnyReward] = [
        RewardSpec(name="answer"),
        RewardSpec(name="think_format", weight=0.1),
    ]
    gate: Literal["none", "think_format"] = Field(
        "none", description="think_format: a completion out of format earns nothing by what it says; penalties stay"
    )
    filter: Filter | None = None

    @model_validator(mode="after")
    def _comparing(self) -> Grpo:
        if self.group < 2:
            raise ValueError("group is at least 2: a completion is compared with others of its prompt")
        if self.engine == "danlu" and (self.generate == "vllm" or self.vllm):
            raise ValueError("vllm samples for engine: trl only")
        return self


class Benchmark(Section):
    """Held-out questions: a benchmark of the domain by its `name` alone, or any `path` as in data sources."""

    name: str
    path: str | None = None
    split: str = "test"
    subset: str | None = None
    revision: str | None = None
    limit: int | None = Field(None, ge=1)
    seed: int = 0
    columns: dict[str, str] = {}


def _as_benchmark(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Mode = Literal["think", "no_think", "answer_only", "loglikelihood"]


class Eval(Section):
    suite: str | None = Field(None, description="benchmarks of the domain under one name (quick, zh, en, full, guard)")
    benchmarks: list[Annotated[Benchmark, BeforeValidator(_as_benchmark)]] = []
    system: str | None = None
    modes: list[Mode] = Field(
        ["think"],
        min_length=1,
        description="each question is asked in each: as trained | thinking switched off | told to give the answer only"
        " (a control) | the likeliest option without generating",
    )
    shuffles: int = Field(0, ge=0, description="more orders of the options that each question is asked in")
    judge: str | None = Field(
        None, description="endpoint of an LLM that judges questions with rubrics (http://host:port/v1#model)"
    )
    budgets: list[int] = Field([], description="accuracy if answers were cut at so many tokens, from one generation")
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="only the so many likeliest tokens; 0: all")
    min_p: float = Field(0.0, ge=0, le=1, description="no token below this share of the likeliest one's probability")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: less of what prompt and answer hold already")
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], description="an answer also ends before any of these")
    samples: int = Field(1, ge=1, description="completions of a question; more than one needs a temperature")
    batch: int = Field(64, ge=1, description="answers written together at most; memory may allow fewer")
    generate: Literal["local", "vllm", "mlx"] = Field(
        "local",
        description="what runs local weights: danlu's own decoder | vLLM (a GPU, danlu[vllm]) | mlx-lm (Apple silicon,"
        " danlu[mlx])",
    )
    seed: int = 0


Quant = Literal[
    "f32", "f16", "bf16", "q8_0", "q5_0", "q4_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k"
]


class Export(Section):
    to: Literal["gguf", "gguf-lora"] = Field("gguf", description="the merged model | the adapter beside its base")
    quant: list[Quant] = Field(["q8_0"], min_length=1, description="one or several; a Modelfile takes the first")
    llama_cpp: str | None = Field(
        None, description="a checkout of llama.cpp: for other architectures, and its llama-quantize"
    )
    imatrix: str | None = Field(
        None, description="importance matrix for K-quants: a file of llama-imatrix, or a .txt to make one from"
    )
    num_ctx: int = Field(4096, ge=64)
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    system: str | None = None
    licence: str = Field("", description="licence of the model, for its card and the Modelfile")
    verify: bool = Field(True, description="compare the files with their source before they are delivered")

    @field_validator("quant", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """One name, or several with commas, is a list too."""
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("quant")
    @classmethod
    def _once(cls, value: list[Quant]) -> list[Quant]:
        return list(dict.fromkeys(value))

    @field_serializer("quant")
    def _bare(self, value: list[Quant]) -> str | list[Quant]:
        """A single type is written as its name."""
        return value[0] if len(value) == 1 else value


class Recipe(Section):
    name: str
    description: str = ""
    domain: str = "medical"
    seed: int = 42
    stages: list[Literal["data", "sft", "grpo", "eval", "export"]] = ["sft", "eval", "export"]
    model: Model = Model()
    data: Data = Data()
    sft: Sft = Sft()
    grpo: Grpo = Grpo()
    eval: Eval = Eval()
    export: Export = Export()

    @model_validator(mode="after")
    def _coherent(self) -> Recipe:
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("a stage may be listed once")
        if self.eval.samples > 1 and self.eval.temperature == 0:
            raise ValueError("eval.samples > 1 needs eval.temperature > 0")
        return self

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values, defaults filled in."""
        return self.model_dump(mode="json")


# ---- loading


def shipped() -> dict[str, Path]:
    """Name -> file of the recipes inside the package."""
    folder = Path(str(resources.files("danlu") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe given by path or by shipped name; DanluError naming the nearest."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), known, n=1)
    hint = f"did you mean {near[0]}?" if near else "list the shipped recipes with: danlu recipes"
    raise DanluError(f"no recipe {name!r} (neither a file nor a shipped name)", hint)


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe by path or shipped name and apply `key.path=value` overrides (values are YAML)."""
    path = find(name)
    recipe = parse(path.read_text(encoding="utf-8-sig", errors="strict"), overrides, origin=str(path))
    rewards = [_beside(path.parent, spec) for spec in recipe.grpo.rewards]
    if rewards == recipe.grpo.rewards:
        return recipe
    return recipe.model_copy(update={"grpo": recipe.grpo.model_copy(update={"rewards": rewards})})


def _beside(folder: Path, spec: Any) -> Any:
    """The reward with the file of its function beside the recipe, where the working directory has none."""
    if not isinstance(spec, PythonSpec):
        return spec
    file, colon, function = spec.python.rpartition(":")
    if Path(file).exists() or not (folder / file).is_file():
        return spec
    return spec.model_copy(update={"python": f"{(folder / file).absolute()}{colon}{function}"})


def parse(text: str, overrides: list[str] | tuple[str, ...] = (), origin: str = "recipe") -> Recipe:
    """Recipe from YAML text; DanluError (exit 2) with the key, the reason and the nearest valid key."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise DanluError(
            f"{origin}{where} is not YAML: {getattr(error, 'problem', error)}", "check the indentation"
        ) from None
    if not isinstance(values, dict):
        raise DanluError(f"{origin} is not a mapping of keys", "a recipe starts with `name: ...`")
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _explained(error, origin) from None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key:
        raise DanluError(f"--set {override!r} is not key=value", "example: --set sft.optimizer.lr=1e-4")
    node: Any = values
    parts = key.split(".")
    for part in parts[:-1]:
        if isinstance(node, list):
            node = node[_place(key, part, node)]
            continue
        if not isinstance(node, dict):
            raise DanluError(f"--set {key}: {part!r} is not inside a mapping", "see the resolved keys with --dry-run")
        if part == "0" and "path" in node:  # a source written without its list is item 0
            continue
        if not isinstance(node.get(part), (dict, list)):
            node[part] = {}
        node = node[part]
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        value = raw
    if isinstance(value, str) and _is_float(value):  # YAML 1.1 reads 1e-4 as text
        value = float(value)
    if isinstance(node, list):
        node[_place(key, parts[-1], node)] = value
    else:
        node[parts[-1]] = value


def _place(key: str, part: str, items: list[Any]) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise DanluError(f"--set {key}: no item {part!r}", f"the list has {len(items)} items, counted from 0")
    return int(part)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _explained(error: ValidationError, origin: str) -> DanluError:
    found = error.errors()
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])  # a typo also looks missing
    where = ".".join(str(part) for part in _without_kinds(first["loc"]))
    if first["type"] == "extra_forbidden":
        valid = list(_fields_at(first["loc"][:-1]))
        key = str(first["loc"][-1])
        prefix = where.rpartition(".")[0]
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
        # elsewhere under the same or a similar name; nearby sections first
        elsewhere = sorted(all_keys(), key=lambda full: not full.startswith(f"{prefix}."))
        leaves = [full.rpartition(".")[2] for full in elsewhere]
        same = [key] if key in leaves else [] if near else difflib.get_close_matches(key, leaves, n=1, cutoff=0.8)
        moved = elsewhere[leaves.index(same[0])] if same else ""
        named = moved or (f"{prefix}.{near[0]}".lstrip(".") if near else "")
        hint = f"did you mean {named}?" if named else f"valid keys there: {', '.join(valid)}"
        return DanluError(f"{origin}: unknown key {where}", hint)
    if first["type"] == "missing":
        return DanluError(f"{origin}: {where} is missing", f"add {where}: ...")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error" and "plain" in first["loc"] and first["loc"][-1] == "name":
        near = difflib.get_close_matches(str(first["input"]), BUILT_IN_REWARDS, n=1)
        message = f"no reward {first['input']!r}" + (f", did you mean {near[0]}?" if near else "")
        return DanluError(
            f"{origin}: {where}: {message}", f"rewards: {', '.join(BUILT_IN_REWARDS)}, python: FILE.py:fn"
        )
    given = first.get("input")
    hint = f"got {given!r:.80}" if where and not isinstance(given, dict) else ""  # a section would say nothing
    return DanluError(f"{origin}: {where or 'recipe'}: {message}", hint)


def _without_kinds(loc: tuple[Any, ...]) -> list[Any]:
    """A place without the kind of a reward, which is no key: ("grpo", "rewards", 0, "length", "high")."""
    return [p for i, p in enumerate(loc) if not (i and isinstance(loc[i - 1], int) and p in REWARD_SPECS)]


def _fields_at(loc: tuple[Any, ...]) -> dict[str, Any]:
    model: Any = Recipe
    for before, part in zip((None, *loc), loc, strict=False):
        if isinstance(part, int):
            continue
        if isinstance(before, int) and part in REWARD_SPECS:
            model = REWARD_SPECS[part]
        else:
            model = _section_of(model.model_fields[part].annotation)
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _section_of(annotation: Any) -> Any:
    """The Section inside Optional / list / Annotated, or the annotation itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return annotation


def all_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe."""
    keys = []
    for name, info in section.model_fields.items():
        inner = _section_of(info.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and "list" not in str(info.annotation):
            keys += all_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def runs_root() -> Path:
    """Where runs live: $DANLU_RUNS or ./runs."""
    return Path(os.environ.get("DANLU_RUNS", "runs"))
