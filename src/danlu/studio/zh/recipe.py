"""What the keys of a recipe mean; the English texts are those of the schema. The docs are made of them too."""

TEXTS = {
    "the merged model | the adapter beside its base": "依次为：合并后的模型、适配器放在基座旁边",
    "a checkout of llama.cpp: for other architectures, and its llama-quantize": (
        "llama.cpp 仓库目录：转换其他架构，也用它的 llama-quantize"
    ),
    "importance matrix for K-quants: a file of llama-imatrix, or a .txt to make one from": (
        "K 量化的重要性矩阵：llama-imatrix 的文件，或用来测它的 .txt"
    ),
    "licence of the model, for its card and the Modelfile": "模型的许可证，写进模型卡和 Modelfile",
    "compare the files with their source before they are delivered": "交付前与源模型核对文件",
    "one or several; a Modelfile takes the first": "一个或几个；Modelfile 指向第一个",
    "config.json to build a model with random weights from (no download)": "按该 config.json 随机初始化（不下载）",
    "tokenizer directory or id, when it is not the model's": "分词器目录或 id；与模型不同源时才写",
    "reasoning format; auto asks the chat template": "推理格式；auto 表示去问对话模板",
    "our name -> the file's column": "我们的字段名 -> 文件里的列名",
    "rows longer than max_length; truncate-reasoning keeps the answer and the end token": (
        "超过 max_length 的行怎么办；truncate-reasoning 只截推理，回答和结束符保留"
    ),
    "the last answer | every assistant turn of a chat | every token": (
        "依次为：最后那个回答、对话里 assistant 的每一轮、所有 token"
    ),
    "replace ID numbers, phone numbers, e-mail addresses and patients' names": (
        "替换身份证号、电话号码、邮箱地址和患者姓名"
    ),
    "drop training rows that hold a question of eval.benchmarks": "剔除含有 eval.benchmarks 考题的训练行",
    "share of rows that are masked": "被遮盖的行所占比例",
    "least and most terms masked in a row": "一行里最少、最多遮几个术语",
    "[MASK], [CATEGORY] or ...": "[MASK]、大写的类别名或省略号",
    "at a masked place: train on the mask's text | no loss | mask the input, train on the term itself": (
        "遮住的位置上，依次为：学遮盖符号本身、不算损失、只遮输入而照样学原词"
    ),
    "our name -> the files' column, for sources that name none themselves": (
        "我们的字段名 -> 文件里的列名，给没写对照的数据源用"
    ),
    "commit, branch or tag of a hub's data set": "平台上数据集的 commit、分支或标签",
    "licence of the data, for the data card": "数据的许可证，写进数据卡",
    "validation rows; empty: valid_fraction of the training rows": "验证集；留空则从训练行里切 valid_fraction",
    "system prompt put before rows that have none": "给没有 system 的行补上的系统提示",
    "tokens of prompt + completion": "提示与回答合计的 token 上限",
    "largest gradient norm": "梯度范数上限",
    "share of all steps": "占总步数的比例",
    "steps; 0: at the end only": "步数；0 表示只在结束时",
    "steps; 0: when interrupted and at the end only": "步数；0 表示只在被中断时和结束时",
    "optimizer steps; overrides epochs": "优化步数；写了就不看 epochs",
    "held-out questions, answered greedily (eval.max_tokens) at eval_every": (
        "留出题：每 eval_every 步用贪心解码回答一遍（长度不超过 eval.max_tokens）"
    ),
    "what best is, for keep_best and patience: least loss on validation rows | accuracy of watch": (
        "keep_best 和 patience 所说的“最好”，依次为：验证行损失最低、watch 的正确率最高"
    ),
    "deliver the adapter that was best in evaluations, not the last one": "交付评测中最好的适配器，而不是最后一版",
    "who makes the steps: our own loop | TRL's GRPOTrainer, with our data, rewards and run": (
        "由谁走每一步：我们自己的循环，或 TRL 的 GRPOTrainer（数据、奖励和运行目录仍是我们的）"
    ),
    "what samples; vllm: with engine trl, needs CUDA": "用什么采样；vllm：须配 engine: trl，需要 CUDA",
    "options of TRL's GRPOConfig that begin with vllm_, without that": (
        "TRL GRPOConfig 里 vllm_ 开头的选项，写时去掉这个前缀"
    ),
    "rows with a gold answer; empty: data.train": "带标准答案的行；留空用 data.train",
    "held-out questions whose accuracy is watched; empty: none": "训练途中盯正确率的留出题；留空则不看",
    "deliver the adapter with the best held-out accuracy": "交付留出题正确率最高时的适配器",
    "prompts (groups) of a step": "每步的题数（组数）",
    "completions of a prompt, at least 2": "每题采样的回答数，至少 2",
    "rounds in which groups of equal rewards give way to groups of further prompts (DAPO)": (
        "组内奖励全相同的组，换成后面题目的组，最多换几轮（DAPO 动态采样）"
    ),
    (
        "mean over completions of their means | sum over the longest possible | mean over all tokens |"
        " as grpo, with ratios of whole completions"
    ): "依次为：先按回答平均、再跨回答平均；总和除以最大可能长度；所有 token 平均；同 grpo，但比率按整个回答算",
    "how far a ratio may fall below 1; of the loss's paper": "比率最多低于 1 多少；不写则用该损失论文里的值",
    "how far a ratio may rise above 1; of the loss's paper": "比率最多高于 1 多少；不写则用该损失论文里的值",
    "weigh tokens by how much likelier training finds them than decoding did, each or as a whole": (
        "按训练与解码对同一 token 的概率之比加权：逐 token 或整个回答"
    ),
    "largest such weight": "该权重的上限",
    "completions that the token limit cut carry no loss": "被 token 上限截断的回答不计损失",
    "updates on the same rollouts": "同一批采样更新几次",
    "weight of the k3 KL to the adapter-off reference": "对“关掉适配器的模型”的 k3 KL 权重",
    "divide advantages by the group's standard deviation; auto: all losses but dr_grpo": (
        "优势值是否除以组内标准差；auto：除 dr_grpo 外都除"
    ),
    "a forward holds at most so many times (max_prompt + max_completion) tokens": (
        "一次前向最多容纳这么多倍的（max_prompt + max_completion）个 token"
    ),
    "completions decoded together at most": "最多同时解码的回答数",
    "think_format: a completion out of format earns nothing by what it says; penalties stay": (
        "think_format：格式不对的回答，内容再好也不得分；扣分照扣"
    ),
    "completions of each prompt, before training": "训练前每道题采样的回答数",
    "least share of right answers of a prompt that is kept": "保留的题，答对比例至少多少",
    "greatest share of right answers of a prompt that is kept": "保留的题，答对比例至多多少",
    "words (of Chinese: characters) of a piece that counts when it comes again": (
        "多少个词（中文按字）算一个片段，再次出现即计重复"
    ),
    "share of repeated pieces that costs nothing": "重复片段占比在此以内不扣分",
    "0 up to low, falling to -1 at high | from the first value to the second along a cosine": (
        "依次为：low 以内为 0、到 high 降到 -1；沿余弦从第一个值变到第二个值"
    ),
    "tokens up to which a completion is as short as can be": "不超过这么多 token 就算最短",
    "tokens from which on it is as long as can be": "达到这么多 token 就算最长",
    "cosine: values of a short and a long right answer": "cosine：答对时，短回答与长回答的值",
    "cosine: values of a short and a long wrong answer": "cosine：答错时，短回答与长回答的值",
    "cosine: value of a completion that the token limit cut": "cosine：被 token 上限截断的回答的值",
    "chat endpoint of the judge (http://host:port/v1#model)": "裁判模型的服务地址（http://host:port/v1#模型名）",
    "requests at once": "同时发出的请求数",
    "seconds that one request may take": "一次请求最多多少秒",
    "further attempts; with the backoff they outlast a minute": "失败后再试几次；加上退避，能熬过一分钟的中断",
    "seconds before the second attempt, doubled each time up to 30": "第二次尝试前等几秒，之后每次翻倍，最多 30 秒",
    "longest reply, its reasoning included": "裁判回复的 token 上限，含它的思考",
    "switches the judge's thinking on or off, where it can": "打开或关闭裁判的思考（模板支持时）",
    "money for a million tokens of prompt and of reply; the cost is logged": (
        "每百万 token 的价格（提示、回复）；费用记入日志"
    ),
    "FILE.py:function; found from the working directory or beside the recipe": (
        "文件.py:函数名；从工作目录找，找不到再看配方所在目录"
    ),
    (
        "(sample, completion) -> number | (completions, **columns) -> list, completions as chats | the same with"
        " completions as texts; auto: by the names of the parameters"
    ): (
        "依次为：(sample, completion) -> 数；(completions, **columns) -> 列表，回答是对话；同前，回答是文本。"
        "auto 看参数名"
    ),
    "benchmarks of the domain under one name (quick, zh, en, full, guard)": (
        "领域里打包好的一组基准，写名字即可（quick、zh、en、full、guard）"
    ),
    (
        "each question is asked in each: as trained | thinking switched off | told to give the answer only (a control)"
        " | the likeliest option without generating"
    ): "每道题每种方式都考一遍，依次为：照训练时的样子、关掉思考、要求只给答案（对照）、不生成而直接取概率最大的选项",
    "more orders of the options that each question is asked in": "每道题额外再换几种选项顺序来考",
    "accuracy if answers were cut at so many tokens, from one generation": (
        "假如回答在这么多 token 处截断，正确率是多少；只生成一次"
    ),
    "endpoint of an LLM that judges questions with rubrics (http://host:port/v1#model)": (
        "给带评分细则的题当裁判的模型，写服务地址（http://host:port/v1#模型名）"
    ),
    "0: greedy": "0 为贪心",
    "only the so many likeliest tokens; 0: all": "只在概率最高的这么多个 token 里取；0 为不限",
    "no token below this share of the likeliest one's probability": "概率低于最高者这一比例的 token 不取",
    "above 1: less of what prompt and answer hold already": "大于 1 时，提示与回答里已有的 token 更少再出现",
    "an answer also ends before any of these": "遇到其中任一字符串，回答也在它之前结束",
    "answers written together at most; memory may allow fewer": "最多同时生成多少个回答；内存不够时会更少",
    "what runs local weights: danlu's own decoder | vLLM (a GPU, danlu[vllm]) | mlx-lm (Apple silicon, danlu[mlx])": (
        "本地权重由谁来跑，依次为：danlu 自己的解码器、vLLM（要 GPU 和 danlu[vllm]）、mlx-lm（苹果芯片，要 danlu[mlx]）"
    ),
    "what computes: torch | mlx-lm with LoRA (Apple silicon, danlu[mlx]), all else being equal": (
        "由谁来算，依次为：torch、mlx-lm 的 LoRA（苹果芯片，要 danlu[mlx]），其余都一样"
    ),
    "completions of a question; more than one needs a temperature": "每题回答数；多于 1 时温度须大于 0",
    "recompute activations in the backward pass; auto: when the plan does not fit without": (
        "反向传播时重算激活值；auto：不这样就放不下时才用"
    ),
    "one pass over memory for elementwise functions; true: by torch.compile (half a minute at first); "
    "auto: in C on a CPU, compiled on a GPU where the run is long; false: neither": (
        "逐元素的算子只扫一遍内存；true：由 torch.compile 编译（开头要半分钟）；"
        "auto：CPU 上用 C，GPU 上运行够长时编译；false：都不用"
    ),
    "stop after so many evaluations without a new best; 0: never": "连续这么多次评测没有新的最好结果就停；0 表示不停",
    "rows of a step: batch_size x accumulation, over all processes": "每步行数为 batch_size × accumulation，各进程合计",
    "a forward holds at most so many times data.max_length tokens; auto: what fits; batch_size": (
        "一次前向最多容纳这么多倍的 data.max_length 个 token；auto：放得下多少用多少；不写则等于 batch_size"
    ),
    "weight-decomposed LoRA (Liu et al. 2024): better at small ranks, slower": (
        "权重分解的 LoRA（Liu 等，2024）：秩小时效果更好，但更慢"
    ),
}
