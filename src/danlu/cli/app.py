"""Every command: its arguments, its help, and one call into the function that does it.

Bodies import what they need when they run, so that `danlu --help` costs typer and nothing else. Help is plain text
(no rich panels): it starts faster and reads the same in a pipe.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


class Display(StrEnum):
    auto = "auto"
    rich = "rich"
    plain = "plain"
    none = "none"


def _set_display(value: Display) -> Display:
    from danlu import display

    display.set_mode(value.value)
    return value


def _show_version(value: bool) -> None:
    if value:
        from danlu import __version__

        typer.echo(f"danlu {__version__}")
        raise typer.Exit


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A .yaml file or a shipped name (danlu recipes).")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run: its name (danlu ls) or its directory.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="A run, a model directory or hub id, or a .gguf file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, e.g. sft.optimizer.lr=1e-4."),
]
Start = Annotated[str | None, typer.Option("--from", metavar="RUN|MODEL", help="Start from this run or model.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run; default: RECIPE-STAGE.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run under the same recipe.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show the traceback of an error.")]
DisplayMode = Annotated[Display, typer.Option("--display", callback=_set_display, help="How progress is shown.")]


@app.callback(invoke_without_command=True, epilog="Start with: danlu demo")
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,  # noqa: ARG001
) -> None:
    """Tune an open LLM into a specialist, prove that it got better, ship it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: danlu demo --seed 1")
def demo(
    seed: Annotated[int, typer.Option(help="Fixes data, training and sampling.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Where its runs go; default: runs/demo (or the next free one).")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """The whole way with a tiny model, on a CPU.

    Base, SFT, GRPO, a verdict between each, and a checked GGUF.
    """
    from danlu.cli.readers import show_demo

    show_demo(seed, out, json)


def _stage(name: str, summary: str, example: str) -> None:
    """Declare one of the commands that run stages; they all take the same options."""

    def command(
        recipe: RecipeName,
        set_: Set = None,
        start: Start = None,
        run_name: Name = None,
        resume: Resume = False,
        dry_run: DryRun = False,
        json: Json = False,
        verbose: Verbose = False,  # noqa: ARG001
        display: DisplayMode = Display.auto,  # noqa: ARG001
    ) -> None:
        from danlu.cli.stages import command as run_command

        run_command(
            name,
            recipe,
            overrides=set_ or [],
            start=start,
            run_name=run_name,
            resume=resume,
            dry_run=dry_run,
            as_json=json,
        )

    app.command(name, help=summary, epilog=f"Example: {example}")(command)


@app.command(epilog="Example: danlu recipes")
def recipes(json: Json = False, verbose: Verbose = False) -> None:  # noqa: ARG001
    """List the shipped recipes."""
    from danlu.cli.readers import show_recipes

    show_recipes(json)


@app.command(epilog="Example: danlu new clinic --recipe qwen3-1.7b-medical-qlora-v2")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the recipe; it is written to ./NAME.yaml.")],
    recipe: Annotated[str, typer.Option("--recipe", help="The shipped recipe to copy.")] = "demo",
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Copy a shipped recipe into ./NAME.yaml."""
    from danlu.cli.readers import new_recipe

    typer.echo(new_recipe(name, recipe))


@app.command(epilog="Example: danlu accelerate fsdp2 --processes 8 --out fsdp2.yaml")
def accelerate(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="ddp, zero2, fsdp2 (or zero3), slurm; without: list them.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there, not to stdout.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes in all, one a GPU; default: 2.")] = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """A configuration for training in several processes.

    For accelerate launch --config_file FILE -m danlu sft RECIPE, or for sbatch.
    """
    from danlu.cli.launch import show_configuration

    show_configuration(name, out, processes, json)


@app.command(epilog="Example: danlu doctor")
def doctor(json: Json = False, verbose: Verbose = False) -> None:  # noqa: ARG001
    """Say what this machine can do and what is missing.

    Exit 1 if something that the default path needs is broken.
    """
    from danlu.cli.doctor import show_doctor

    raise typer.Exit(show_doctor(json))


_stage(
    "run",
    "Run a recipe's stages in order; compare before and after.",
    "danlu run demo --name first",
)
data = typer.Typer(rich_markup_mode=None, help="Look at training data before training: check, view, prepare.")
app.add_typer(data, name="data")


@data.callback(invoke_without_command=True)
def data_root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


OptionalRecipe = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="A .yaml file or a shipped name; or use --data and --model.")
]
ModelDir = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A model directory or hub id.")]
DataFile = Annotated[str | None, typer.Option("--data", metavar="FILE", help="A data file, folder or hub id.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained page.")]


@data.command("check", epilog="Example: danlu data check --model tiny --data rows.jsonl --html check.html")
def data_check(
    recipe: OptionalRecipe = None,
    set_: Set = None,
    model: ModelDir = None,
    data: DataFile = None,
    start: Start = None,
    html: Html = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """What is wrong with the training rows, as numbers.

    Lengths, cut answers, end tokens, lost reasoning, duplicates, benchmark questions, personal data. Exit 1 for a
    finding at error level.
    """
    from danlu.cli.look import show_check

    raise typer.Exit(show_check(recipe, set_ or [], model, data, start, html, json))


@data.command("view", epilog="Example: danlu data view demo --row 3")
def data_view(
    recipe: OptionalRecipe = None,
    set_: Set = None,
    model: ModelDir = None,
    data: DataFile = None,
    start: Start = None,
    row: Annotated[int | None, typer.Option(min=0, help="Number of the row, from 0, in training order.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Any row (see --seed).")] = False,
    count: Annotated[int, typer.Option(min=1, help="How many rows.")] = 1,
    epoch: Annotated[int, typer.Option(min=0, help="Terms are masked as in this epoch.")] = 0,
    masked: Annotated[bool, typer.Option("--masked", help="Only rows with masked terms.")] = False,
    seed: Annotated[int, typer.Option(help="Fixes what --random draws.")] = 0,
    html: Html = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Rows as the model sees them, coloured by what the loss does.

    Context, supervised, masked term, end token.
    """
    from danlu.cli.look import show_rows

    show_rows(
        recipe,
        set_ or [],
        model,
        data,
        start,
        html,
        json,
        row=row,
        random=random,
        count=count,
        epoch=epoch,
        masked=masked,
        seed=seed,
    )


@data.command("prepare", epilog="Example: danlu data prepare demo --name clinic-data")
def data_prepare(
    recipe: RecipeName,
    set_: Set = None,
    start: Start = None,
    run_name: Name = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Write the prepared rows and tokens as a run, with a data card.

    Also as train.jsonl and valid.jsonl in the formats of other trainers.
    """
    from danlu.cli.stages import command as run_command

    run_command(
        "data",
        recipe,
        overrides=set_ or [],
        start=start,
        run_name=run_name,
        resume=resume,
        dry_run=dry_run,
        as_json=json,
    )


class Where(StrEnum):
    detect = "detect"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@app.command(epilog="Example: danlu plan qwen3-1.7b-medical-qlora-v1 --vram 16GB")
def plan(
    recipe: RecipeName,
    vram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of the GPU, e.g. 16GB.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="A known GPU, e.g. T4, RTX4090, H100.")] = None,
    device: Annotated[Where, typer.Option(help="Where it would run; detect: this machine.")] = Where.detect,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    sharding: Annotated[
        str | None, typer.Option(metavar="NAME", help="ddp, zero2, fsdp2, zero3 or hsdp; default: all.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the data, where it is not here.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="config.json of the model.")] = None,
    set_: Set = None,
    start: Start = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """What a recipe takes, before it runs: memory, steps, time.

    And the cheapest change that fits. Needs no weights. Exit 1 if it does not fit.
    """
    from danlu.cli.plan import show_plan

    raise typer.Exit(
        show_plan(
            recipe,
            set_ or [],
            vram=vram,
            device=device.value,
            gpu=gpu,
            gpus=gpus,
            nodes=nodes,
            sharding=sharding,
            rows=rows,
            config=config,
            start=start,
            as_json=json,
        )
    )


@app.command(epilog="Example: danlu rehearse qwen3-1.7b-medical-qlora-v2 --set data.train.path=my.jsonl")
def rehearse(
    recipe: RecipeName,
    set_: Set = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was written: runs/RECIPE-rehearsal.")] = False,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Every stage of a recipe in about a minute, with a tiny model.

    Your rows, template and tokenizer, two steps, a kill and resume, four answers, an export that is loaded. Names what
    would fail in the real run, and when. Exit 1 if something would.
    """
    from danlu.cli.rehearse import show_rehearsal

    raise typer.Exit(show_rehearsal(recipe, set_ or [], keep, json))


_stage("sft", "Supervised fine-tuning.", "danlu sft qwen3-1.7b-medical-qlora-v2 --set sft.epochs=1")
_stage("grpo", "Reinforcement learning from verified answers.", "danlu grpo demo --from demo-sft")
reward = typer.Typer(rich_markup_mode=None, help="Look at rewards before training: test.")
app.add_typer(reward, name="reward")


@reward.callback(invoke_without_command=True)
def reward_root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@reward.command("test", epilog="Example: danlu reward test demo --from demo-sft --prompts 8 --samples 8")
def reward_test(
    recipe: RecipeName,
    set_: Set = None,
    start: Start = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Prompts that attacks are made from; default: 20, with a judge 4.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=0, help="Prompts that the model is asked; 0: no model is loaded.")] = 8,
    samples: Annotated[int, typer.Option(min=2, help="Completions of each of them.")] = 8,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """What a recipe's rewards pay for, before training on them.

    Every reward on right, wrong, empty and hacked completions of your own prompts; pass@k of the model, and how many
    groups would teach nothing. Exit 1 if an attack earns more than an honest wrong answer.
    """
    from danlu.cli.rewards import show_reward_test

    raise typer.Exit(
        show_reward_test(recipe, set_ or [], start, rows=rows, prompts=prompts, samples=samples, as_json=json)
    )


Suite = Annotated[str | None, typer.Option(help="Questions of the domain: quick, zh, en, full, guard, clinic.")]


@app.command("eval", epilog="Example: danlu eval demo-sft --suite clinic")
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A recipe; or a run, model, .gguf file or http://... endpoint.")
    ],
    suite: Suite = None,
    bench: Annotated[
        list[str] | None, typer.Option("--bench", metavar="NAME|FILE", help="A benchmark by name, or a file of yours.")
    ] = None,
    set_: Set = None,
    start: Start = None,
    run_name: Name = None,
    resume: Resume = False,
    rescore: Annotated[bool, typer.Option("--rescore", help="Judge the stored answers of this run again.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Also write sample logs as: lm-eval, evalscope.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Answer benchmark questions: a recipe's, a suite's, or your own.

    A recipe answers with its base model unless --from says otherwise.
    """
    from danlu.cli.evaluation import show_eval

    show_eval(
        target,
        set_ or [],
        suite,
        bench or [],
        start,
        run_name,
        resume=resume,
        rescore=rescore,
        format_=format_,
        dry_run=dry_run,
        as_json=json,
    )


@app.command(epilog="Example: danlu score answers.jsonl --json")
def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file of questions, targets and outputs.")],
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Verify the answers of any model in a .jsonl file."""
    from danlu.cli.readers import show_score

    show_score(file, json)


@app.command(epilog="Example: danlu compare demo-eval-base demo-eval --html verdict.html")
def compare(
    base: Annotated[
        str, typer.Argument(metavar="A", help="Before: an eval run, a score file, a model; or SFT runs, A1,A2,A3.")
    ],
    tuned: Annotated[str, typer.Argument(metavar="B", help="After.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[C]...", help="Further SFT runs.")] = None,
    suite: Suite = None,
    partial: Annotated[bool, typer.Option("--partial", help="Compare only the questions that both answered.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 if what should have stayed got worse.")] = False,
    html: Html = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write as Markdown.")] = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """The verdict of B against A on the same questions, or their training curves.

    Better, worse, mixed, or cannot tell, with paired statistics for each benchmark. For SFT runs (a run, several seeds
    as A1,A2,A3, or the name of a recipe: all its runs) losses, convergence and gradient norms, and which differences
    are real; with --suite their answers.
    """
    from danlu.cli.curves import show_training, training_arms
    from danlu.cli.evaluation import show_compare

    arms = training_arms([base, tuned, *(more or [])], [suite, partial, gate, html, markdown])
    if arms is None:
        raise typer.Exit(show_compare(base, tuned, suite, partial, gate, html, markdown, json))
    show_training(arms, json)


class Dtype(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@app.command(epilog="Example: danlu merge demo-sft --out merged")
def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A trained run, or the directory of an adapter.")],
    out: Annotated[Path | None, typer.Option(help="New directory for the model; default: RUN/merged.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the merged weights; default: the base's own.")] = None,
    base: Annotated[str | None, typer.Option(help="Merge onto this model instead of the recorded base.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare with base + adapter on prompts.")] = True,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Merge the adapter of a run into its base model, and write its card."""
    from danlu.cli.readers import print_json
    from danlu.cli.stages import merge_run

    made = merge_run(run, out, dtype=dtype.value if dtype else None, base=base, check=check)
    if json:
        print_json(made)
    else:
        typer.echo(made["out"])


@app.command(epilog="Example: danlu convert clinic-sft --out for-mlx")
def convert(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A run, or a directory with an adapter of peft or of mlx-lm.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory for the other kind.")],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="Its base, where the adapter names another one."),
    ] = None,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Turn a peft adapter into one of mlx-lm, or the other way.

    What comes from mlx-lm is then evaluated, merged and exported like any run's: danlu eval DIR, danlu merge DIR.
    """
    from danlu.cli.stages import convert_adapter

    typer.echo(convert_adapter(adapter, out, base))


class To(StrEnum):
    gguf = "gguf"
    lora = "gguf-lora"
    ollama = "ollama"


@app.command(epilog="Example: danlu export demo-sft --quant q4_k_m,f16 --to ollama")
def export(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN|MODEL", help="A run, a model directory or id, or a recipe.")
    ],
    quant: Annotated[
        str | None, typer.Option(metavar="TYPES", help="One type or several with commas (export.quant).")
    ] = None,
    to: Annotated[
        To | None,
        typer.Option(
            "--to", help="The merged model; the adapter beside its base; a model in Ollama (at $OLLAMA_HOST)."
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="QUESTION", help="Ask it in Ollama, with and without thinking.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check the files before delivering.")] = True,
    llama_cpp: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A checkout of llama.cpp: other architectures, its tools.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix for K-quants, or a .txt to make one from.")
    ] = None,
    set_: Set = None,
    start: Start = None,
    run_name: Name = None,
    resume: Resume = False,
    force: Annotated[bool, typer.Option("--force", help="Export also what failed `danlu compare --gate`.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Write GGUF files and an Ollama Modelfile, and check them.

    With --to ollama the model is made there too, also of a finished export run.
    """
    from danlu.cli.export import show_export
    from danlu.cli.verify import after_export

    kind = to.value if to and to is not To.ollama else None
    given = {
        "quant": quant,
        "to": kind,
        "llama_cpp": llama_cpp,
        "imatrix": imatrix,
        "verify": None if verify else "false",
    }
    show_export(
        target,
        overrides=[*(f"export.{key}={value}" for key, value in given.items() if value is not None), *(set_ or [])],
        start=start,
        run_name=run_name,
        resume=resume,
        force=force,
        dry_run=dry_run,
        as_json=json,
        after=after_export(to.value if to else "", run, json),
    )


@app.command(epilog="Example: danlu verify demo-export --suite clinic")
def verify(
    export: Annotated[
        str, typer.Argument(metavar="EXPORT", help="An export run, the directory of its artifact, or a file in it.")
    ],
    suite: Annotated[
        str | None, typer.Option(help="Also ask these questions of the source and of each file: quick, clinic ...")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Check an export against the model it came from.

    Tensors, logits, tokens, rendered prompts and stops; exit 1 if a check fails. With --suite also accuracy by
    quantization, against size and speed, as table and plot.
    """
    from danlu.cli.verify import show_verify

    raise typer.Exit(show_verify(export, suite, json))


@app.command(epilog="Example: danlu chat demo-grpo --compare tiny")
def chat(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A run, a model directory or hub id, a .gguf file, or http://…/v1.")
    ],
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="OTHER", help="Answer beside this one, which stands on the left.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; default: the one of the run's recipe.")] = None,
    once: Annotated[str | None, typer.Option(metavar="QUESTION", help="Ask this one question and end.")] = None,
    think: Annotated[bool, typer.Option("--think/--no-think", help="With or without reasoning.")] = True,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.6,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    seed: Annotated[int, typer.Option(help="Fixes the draws.")] = 0,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Talk to a model, or answer one question from stdin.

    Commands while talking: /system, /think, /reset, /save, /help, /quit. Ctrl-C ends an answer.
    """
    from danlu.cli.chat import chat as talk

    raise typer.Exit(
        talk(
            target,
            compare=compare,
            system=system,
            once=once,
            think=think,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            as_json=json,
        )
    )


class Engine(StrEnum):
    auto = "auto"
    vllm = "vllm"
    llama_cpp = "llama.cpp"
    transformers = "transformers"


@app.command(epilog="Example: danlu serve demo-grpo --port 8000")
def serve(
    target: Target,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which is printed.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="The model's name for clients; default: TARGET's.")] = None,
    engine: Annotated[
        Engine, typer.Option(help="The server; auto: vLLM where installed, else llama.cpp.")
    ] = Engine.auto,
    context: Annotated[
        int | None, typer.Option(min=64, metavar="TOKENS", help="Question and answer at most; llama.cpp: 4096.")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Answers written at once, others wait; llama.cpp: 4.")
    ] = None,
    api_key: Annotated[bool, typer.Option("--api-key", help="Ask clients for the key in $DANLU_API_KEY.")] = False,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="The same, from another variable.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show what the server says.")] = False,
    display: DisplayMode = Display.auto,  # noqa: ARG001
) -> None:
    """Serve a model at /v1/chat/completions, as OpenAI's clients ask.

    With vLLM (adapters unmerged), llama.cpp or transformers. SIGTERM or Ctrl-C lets running answers finish.
    """
    from danlu.cli.serve import show_serve

    raise typer.Exit(
        show_serve(
            target,
            host=host,
            port=port,
            name=name,
            kind=engine.value,
            context=context,
            parallel=parallel,
            key_name=api_key_env or ("DANLU_API_KEY" if api_key else ""),
            verbose=verbose,
        )
    )


@app.command(epilog="Example: danlu studio my-recipe.yaml rows.jsonl")
def studio(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Recipes, data files, models and folders that it may read besides."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; default: the first free one from 8600 on.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(envvar="DANLU_STUDIO_TOKEN", help="Whoever opens the studio must know it.")
    ] = None,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser, where there is one.")] = True,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """See and steer the runs of ./runs (or $DANLU_RUNS) in a browser.

    On 127.0.0.1. Runs are processes of their own: closing the browser or the studio changes nothing about them.
    """
    from danlu.cli.readers import show_studio

    show_studio(files or [], host, port, token, show)


@app.command(epilog="Example: danlu ls --json")
def ls(
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """List the runs in ./runs (or $DANLU_RUNS), oldest first."""
    from danlu.cli.readers import show_runs

    show_runs(json)


@app.command(epilog="Example: danlu show demo-grpo --html grpo.html")
def show(
    run: RunName,
    html: Html = None,
    json: Json = False,
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """One run: status, results, last metrics, lineage.

    As a page also curves, rollouts or answers, and how its recipe differs from that of the run before.
    """
    from danlu.cli.readers import show_run

    show_run(run, html, json)


@app.command(epilog="Example: danlu plot demo-sft demo-grpo")
def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, by name or directory.")],
    verbose: Verbose = False,  # noqa: ARG001
) -> None:
    """Draw what runs hold, as PNG and SVG: curves, accuracy, differences.

    Into plots/ of each run; several runs of a kind also together, in the last one.
    """
    from danlu.cli.stages import plot_runs

    for path in plot_runs(runs):
        typer.echo(path)


def commands() -> dict[str, Any]:
    """Name ("sft", "data check") -> click command, for tests and generated docs."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {part}": value for part, value in inner.items()} if inner else {name: command}
    return found
