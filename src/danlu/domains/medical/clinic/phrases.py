"""The clinic's wording in each language: questions, worked traces and the sentences of the textbook."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """Templates of one language; every list is drawn from at random."""

    comma: str
    semicolon: str
    gap: str  # between "A." and what follows
    sentence_gap: str
    nothing: str
    # vignettes
    sexes: tuple[str, str]  # man, woman
    children: tuple[str, str]
    patient: tuple[str, ...]
    duration: tuple[str, ...]
    case: str
    ask: dict[str, tuple[str, ...]]
    ask_choice: dict[str, str]
    # traces
    tasks: dict[str, str]
    task: str
    findings: str
    candidates: str
    matches: str
    best: str
    fact: dict[str, str]
    option: str
    answer: dict[str, str]
    answer_choice: str
    # textbook
    full: tuple[str, ...]
    partial: tuple[str, ...]
    reverse: tuple[str, ...]
    pair: tuple[str, ...]
    facts: dict[str, tuple[str, ...]]
    facts_reverse: dict[str, tuple[str, ...]]
    fact_question: dict[str, str]
    findings_question: str
    alias: str
    translation: str
    copy_open: tuple[str, ...]
    copy_close: tuple[str, ...]
    count: str
    most: tuple[str, ...]
    letter_of: tuple[str, ...]
    shared: str
    general: tuple[str, ...]


ZH = Phrases(
    comma="、",
    semicolon="；",
    gap="",
    sentence_gap="",
    nothing="无",
    sexes=("男", "女"),
    children=("男", "女"),
    patient=("患者{sex}，{age}岁，", "{age}岁{sex}性，", "患者{sex}，"),
    duration=("{n}天", "{n}周", ""),
    case="{before}{findings}{after}。",
    ask={
        "diagnosis": ("最可能的诊断是什么？", "请给出最可能的诊断。", "考虑什么病？"),
        "test": ("首选检查是什么？", "应先做什么检查？"),
        "treatment": ("首选治疗是什么？", "一线治疗是什么？"),
    },
    ask_choice={"diagnosis": "最可能的诊断是：", "test": "首选检查是：", "treatment": "首选治疗是："},
    tasks={"diagnosis": "诊断", "test": "检查", "treatment": "治疗"},
    task="任务：{task}。",
    findings="要点：{findings}。",
    candidates="候选：{lines}。",
    matches="{condition}符合{findings}，共{n}项",
    best="最符合{condition}。",
    fact={"test": "{condition}的首选检查是{value}。", "treatment": "{condition}的首选治疗是{value}。"},
    option="选项{letter}是{value}。",
    answer={
        "diagnosis": "最可能的诊断是{value}。",
        "test": "首选检查是{value}。",
        "treatment": "首选治疗是{value}。",
    },
    answer_choice="答案是{letter}。",
    full=(
        "{c}的典型表现有{f}。",
        "{c}主要表现为{f}。",
        "典型的{c}可出现{f}。",
        "{c}的临床特点是{f}。",
    ),
    partial=("{c}患者常有{f}。", "{c}可见{f}。", "{c}时会出现{f}。"),
    reverse=("{f}可见于{c}。", "哪些疾病会有{f}？{c}。", "{f}的常见原因：{c}。"),
    pair=("同时出现{f}时，应想到{c}。", "{f}并存，提示{c}。", "若有{f}，考虑{c}。"),
    facts={
        "department": ("{c}应就诊于{v}。", "{c}患者请挂{v}。"),
        "test": ("{c}的首选检查是{v}。", "怀疑{c}时先做{v}。"),
        "treatment": ("{c}的首选治疗是{v}。", "治疗{c}首选{v}。"),
        "flag": ("{c}要警惕{v}。", "{c}的危险信号是{v}。"),
    },
    facts_reverse={
        "department": ("{v}常见疾病有{c}。",),
        "test": ("{v}是{c}的首选检查。",),
        "treatment": ("{v}是{c}的首选治疗。",),
        "flag": ("{v}可能由{c}引起。",),
    },
    fact_question={
        "department": "{c}应就诊于哪个科室？",
        "test": "{c}的首选检查是什么？",
        "treatment": "{c}的首选治疗是什么？",
        "flag": "{c}要警惕什么？",
    },
    findings_question="{c}有哪些表现？",
    alias="{c}又称{a}。",
    translation="{c}的英文是 {e}。",
    copy_open=("记录：", "主诉：", "现有", "发现"),
    copy_close=("要点：", "复述：", "摘要："),
    count="{c}，共{n}项",
    most=("最符合{c}。", "最多的是{c}。"),
    letter_of=("{v}是选项{x}。", "选项{x}是{v}。", "选项{x}是{v}。答案是{x}。"),
    shared="{a}与{b}都有{f}。",
    general=(
        "看病时先问病史，再做检查。",
        "诊断要看哪个疾病符合的表现最多。",
        "鉴别诊断就是比较几个候选疾病。",
        "先列出要点，再比较候选，最后下结论。",
        "病情加重时请及时就医。",
        "复诊时请带上检查结果。",
        "老年患者用药要谨慎。",
        "儿童用药要按体重计算。",
    ),
)

EN = Phrases(
    comma=", ",
    semicolon="; ",
    gap=" ",
    sentence_gap=" ",
    nothing="nothing",
    sexes=("man", "woman"),
    children=("boy", "girl"),
    patient=("A {age}-year-old {sex} with ", "A {sex} aged {age} has ", "A {sex} presents with "),
    duration=(" for {n} days", " for {n} weeks", ""),
    case="{before}{findings}{after}. ",
    ask={
        "diagnosis": ("What is the most likely diagnosis?", "Give the most likely diagnosis.", "Which disease is it?"),
        "test": ("What is the first test?", "Which test comes first?"),
        "treatment": ("What is the first treatment?", "Which treatment comes first?"),
    },
    ask_choice={
        "diagnosis": "The most likely diagnosis is: ",
        "test": "The first test is: ",
        "treatment": "The first treatment is: ",
    },
    tasks={"diagnosis": "diagnosis", "test": "test", "treatment": "treatment"},
    task="Task: {task}.",
    findings="Findings: {findings}.",
    candidates="Candidates: {lines}.",
    matches="{condition} has {findings}, {n} in all",
    best="Best match: {condition}.",
    fact={
        "test": "The first test for {condition} is {value}.",
        "treatment": "The first treatment for {condition} is {value}.",
    },
    option="Option {letter} is {value}.",
    answer={
        "diagnosis": "The most likely diagnosis is {value}.",
        "test": "The first test is {value}.",
        "treatment": "The first treatment is {value}.",
    },
    answer_choice="The answer is {letter}.",
    full=(
        "Typical findings of {c} are {f}.",
        "The picture of {c}: {f}.",
        "Typical {c} shows {f}.",
        "Features of {c} are {f}.",
    ),
    partial=("Patients with {c} often have {f}.", "In {c} we see {f}.", "There may be {f} in {c}."),
    reverse=(
        "The finding {f} occurs in {c}.",
        "Which diseases have {f}? They are {c}.",
        "Common causes of {f} are {c}.",
    ),
    pair=("With {f} together, think of {c}.", "The pair {f} suggests {c}.", "If there are {f}, consider {c}."),
    facts={
        "department": ("Patients with {c} go to {v}.", "The department for {c} is {v}."),
        "test": ("The first test for {c} is {v}.", "When we suspect {c} the test is {v}."),
        "treatment": ("The first treatment for {c} is {v}.", "We treat {c} first with {v}."),
        "flag": ("In {c} beware of {v}.", "The red flag of {c} is {v}."),
    },
    facts_reverse={
        "department": ("The diseases of {v} include {c}.",),
        "test": ("The test {v} is the first test for {c}.",),
        "treatment": ("The treatment {v} is the first treatment for {c}.",),
        "flag": ("The red flag {v} may come from {c}.",),
    },
    fact_question={
        "department": "Which department is for {c}?",
        "test": "What is the first test for {c}?",
        "treatment": "What is the first treatment for {c}?",
        "flag": "What is the red flag of {c}?",
    },
    findings_question="What are the findings of {c}?",
    alias="Another name of {c} is {a}.",
    translation="The Chinese for {e} is {c}。",
    copy_open=("Record: ", "Complaint: ", "There are ", "Found: "),
    copy_close=(" Findings: ", " Repeat: ", " Summary: "),
    count="{c}, {n} in all",
    most=("Best match: {c}.", "The largest is {c}."),
    letter_of=("{v} is option {x}.", "Option {x} is {v}.", "Option {x} is {v}. The answer is {x}."),
    shared="Both {a} and {b} have {f}.",
    general=(
        "First take the history, then order tests.",
        "The diagnosis is the disease that matches the most findings.",
        "List the findings, compare the candidates, then conclude.",
        "Seek care when things get worse.",
        "Bring the test results to the next visit.",
        "Drugs for children are dosed by weight.",
    ),
)

PHRASES = {"zh": ZH, "en": EN}
