"""What the data check finds, and what to do about it; the English texts are those of the check itself."""

_OVER = (
    "rows are longer than max_length {max_length}; cut there, {close} of all rows would lose the closing tag,"
    " {answer} part of the answer, {end} the end token; "
)
_OVER_ZH = (
    "有的行超过 max_length {max_length}；若在此处截断，全部行中有 {close} 会丢掉推理的闭合标签、"
    "{answer} 会丢掉部分回答、{end} 会丢掉结束符；"
)

TEXTS = {
    "GRPO prompts: ": "GRPO 的题目：",
    # rows that were not read
    "rows cannot be used: {reasons}; training would stop at the first": (
        "有的行用不了：{reasons}；训练碰到第一行就会停"
    ),
    "rows cannot be used: {reasons}": "有的行用不了：{reasons}",
    "mend them, or map columns with data.columns, or leave them out with data.on_bad_row=skip": (
        "改数据，或用 data.columns 写列名对照，或用 data.on_bad_row=skip 跳过"
    ),
    "mend them, or map columns with data.columns; they are left out": (
        "改数据，或用 data.columns 写列名对照；眼下会跳过"
    ),
    "training rows ask a validation question word for word; they are left out of training": (
        "训练行与验证题逐字相同，已从训练里剔除"
    ),
    "remove repeated questions from the source if you need the rows": "想留下这些行，就去掉数据源里的重复题",
    # texts
    "rows hold an end token ({tokens}) in their text: it is read as a real one,"
    " and the model learns to go on behind it": ("正文里写着结束符（{tokens}）：会被当真，模型会学着在它后面接着写"),
    "remove it from data.system or from the rows": "从 data.system 或行里删掉",
    "rows hold special tokens in their text: they are tokenised as such": (
        "正文里写着别的特殊 token：会照特殊 token 分词"
    ),
    "remove them from the rows if they are not meant": "不是有意的就删掉",
    "rows have no reasoning: the model learns to answer at once": "没有推理：模型会学着张口就答",
    "fill it, leave such rows out, or keep them on purpose": "补上，或去掉这些行，或者想清楚了再留",
    "rows have a reasoning under {least} characters, or one that only repeats the question or the answer": (
        "推理不到 {least} 个字符，或只是照抄问题、回答"
    ),
    "leave such rows out": "去掉这些行",
    "rows hold think tags inside reasoning or answer: no completion like that can be told apart again": (
        "推理或回答里混进了推理标签：两者再也拆不开"
    ),
    "remove the tags from the texts": "从正文里删掉标签",
    "rows hold what looks like personal data: {kinds}": "行里像是有个人信息：{kinds}",
    "data.redact=true replaces it": "用 data.redact=true 替换",
    "already redacted where it was found": "认得出的已经替换",
    # the same thing twice
    "training rows repeat another one to the letter": "训练行一字不差地重复",
    "remove them, or keep them as extra weight on purpose": "删掉；有意加权的除外",
    "training rows ask the same question as another one (width, case, script and punctuation aside)": (
        "训练行之间问题相同（不计全半角、大小写、简繁和标点）"
    ),
    "several answers to one question are fine where they agree": "一题多答没关系，只要彼此一致",
    "pairs of training rows ask nearly the same question (Jaccard >= 0.8)": ("成对的训练题几乎一样（Jaccard ≥ 0.8）"),
    "validation rows ask nearly what a training row asks: the eval loss will look too good": (
        "验证题和某条训练题几乎一样：验证损失会虚低"
    ),
    "remove one of each pair from its source": "每对在数据源里删一条",
    "questions of benchmark {benchmark} have no usable gold answer": "基准 {benchmark} 里有的题没有可用的标准答案",
    "mend them in the source; they cannot be scored": "在数据源里改好，不然没法判分",
    "training rows hold {items} benchmark questions ({listed}); they are dropped from training": (
        "训练行里有 {items} 道基准考题（{listed}），已从训练里剔除"
    ),
    "training rows hold {items} benchmark questions ({listed}): the evaluation would measure memory": (
        "训练行里有 {items} 道基准考题（{listed}）：考出来的会是记性"
    ),
    "nothing: data.decontaminate drops them": "不用管：data.decontaminate 会剔除",
    "data.decontaminate=true drops these rows": "用 data.decontaminate=true 剔除这些行",
    # GRPO
    "GRPO prompts are longer than grpo.max_prompt {max_prompt}: they are left out": (
        "GRPO 的提示超过 grpo.max_prompt {max_prompt}：不会用来训练"
    ),
    "over 99 % of the rows fit; {key}={limit} would keep all": "99 % 以上的行放得下；{key}={limit} 可全部保留",
    "{key}={limit} keeps 99 % of the rows whole": "{key}={limit} 可完整保留 99 % 的行",
    "over 99 % of the rows fit; {key}={limit} would keep all; or data.overlong=truncate-reasoning": (
        "99 % 以上的行放得下；{key}={limit} 可全部保留；或用 data.overlong=truncate-reasoning"
    ),
    "{key}={limit} keeps 99 % of the rows whole; or data.overlong=truncate-reasoning": (
        "{key}={limit} 可完整保留 99 % 的行；或用 data.overlong=truncate-reasoning"
    ),
    # tokens
    f"{_OVER}they are dropped": f"{_OVER_ZH}这些行会被丢弃",
    f"{_OVER}their reasoning is cut, answer and end token stay": f"{_OVER_ZH}只截推理，回答和结束符保留",
    f"{_OVER}cutting them loses the end: a model trained on such rows does not stop": (
        f"{_OVER_ZH}截断会丢掉结尾，练出来的模型停不下来"
    ),
    f"{_OVER}training would stop": f"{_OVER_ZH}训练会停下",
    "rows have no token to learn from": "有的行没有一个 token 可学",
    "look at them: danlu data view": "用 danlu data view 看看这些行",
    "rows never train the end token {token}: the model would not learn to stop": (
        "结束符 {token} 从未参与训练：模型学不会停"
    ),
    "use data.overlong=drop or truncate-reasoning": "改用 data.overlong=drop 或 truncate-reasoning",
    "rows begin with two BOS tokens": "开头有两个 BOS",
    "take the BOS out of the chat template": "把 BOS 从对话模板里去掉",
    "rows lose part of their reasoning or answer on the way to tokens": "推理或回答变成 token 之后少了内容",
    "look at them: danlu data view; the tokenizer may not know the characters": (
        "用 danlu data view 看看这些行；可能是分词器不认识这些字"
    ),
    "the chat template deletes the reasoning of assistant turns; training on apply_chat_template would lose it": (
        "对话模板会删掉 assistant 轮里的推理；直接用 apply_chat_template 训练就没了"
    ),
    "nothing: completions are joined by the think-format, not by the template": (
        "不用管：回答按推理格式拼接，不过模板"
    ),
    "chats have reasoning in earlier turns; as context the model's template decides about it": (
        "前面几轮也有推理；作为上文时去留由模型的模板决定"
    ),
    "data.loss_on=assistant trains each turn with its own reasoning": (
        "data.loss_on=assistant 让每一轮带着自己的推理训练"
    ),
    "rows would merge the last token of the prompt with the first of the completion if tokenised in one piece": (
        "提示与回答连起来分词的话，交界处会并成一个 token"
    ),
    "nothing: prompt and completion are tokenised apart, as in generation": ("不用管：两段分开分词，与生成时一致"),
    # the verdict over all
    ", ": "，",
    ": ": "：",
    "{n} error": "{n} 个错误",
    "{n} errors": "{n} 个错误",
    "{n} warning": "{n} 个警告",
    "{n} warnings": "{n} 个警告",
    "mend the data before you train.": "先改好数据再训练。",
    "ready to train; read the warnings first.": "可以训练，先看看警告。",
    "ready to train.": "可以训练。",
}
