"""The form that starts a run, and what stands beside it."""

TEXTS = {
    "It runs by itself: the browser and the studio may be closed.": "它独立运行：关掉浏览器或工作室都不受影响。",
    "Recipe": "配方",
    "Name of the run": "运行名称",
    "Its stages are called NAME-sft, NAME-grpo and so on.": "各阶段将命名为 名称-sft、名称-grpo 等。",
    "Base model": "基座模型",
    "A hub id, modelscope:ID, tiny, or a folder that was named when the studio started.": (
        "模型仓库 id、modelscope:ID、tiny，或启动工作室时指定的文件夹。"
    ),
    "the base model": "基座模型",
    "Start from": "从何处开始",
    "Other files: upload one, or end the studio and name them: danlu studio FILE.": (
        "其他文件：可以上传，或退出后重新启动并指定：danlu studio 文件。"
    ),
    "Training rows": "训练数据",
    "Questions for GRPO": "GRPO 的题目",
    "{name} is uploaded.": "{name} 已上传。",
    "This file is too large.": "文件太大。",
    "Upload a file": "上传文件",
    "nothing": "无",
    "as in the recipe: {what}": "按配方：{what}",
    "Or type a hub id, modelscope:ID or world:SPLIT.": "也可以输入数据集 id、modelscope:ID 或 world:SPLIT。",
    "Budget": "预算",
    "SFT: epochs": "SFT：轮数",
    "SFT: steps instead of epochs": "SFT：步数（代替轮数）",
    "GRPO: steps": "GRPO：步数",
    "Advanced": "高级",
    "Every key of a recipe. Lists and mappings are written as YAML.": "配方的全部键。列表和映射用 YAML 书写。",
    "{n} keys": "{n} 个键",
    "Start": "开始",
    "This name cannot be a run's.": "这个名称不能用作运行名。",
    "A name is one directory, without slashes.": "名称就是一个目录名，不能带斜杠。",
    "{name} is already used.": "{name} 已被占用。",
    "Choose another name.": "请换一个名称。",
    "What it takes": "需要多少资源",
    "weights": "权重",
    "adapter": "适配器",
    "optimizer": "优化器",
    "gradients": "梯度",
    "activations": "激活值",
    "logits": "logits",
    "KV cache": "KV 缓存",
    "weights copied for decoding": "解码用的权重副本",
    "best weights so far": "目前最好的权重",
    "libraries": "运行库",
    "overhead": "额外开销",
    "fits": "放得下",
    "does not fit": "放不下",
    "of {budget} memory": "内存（共 {budget}）",
    "memory": "内存",
    "{n} steps": "{n} 步",
    "Cheapest change that fits: {what}": "代价最小的可行改动：{what}",
    "Where the memory goes": "内存用在哪里",
    "Rehearsal": "彩排",
    "Every stage in about a minute, with a tiny model and your own rows.": (
        "约一分钟走完所有阶段：用微型模型和你自己的数据。"
    ),
    "Rehearse": "彩排一次",
    "Nothing found that would fail.": "没有发现会失败的地方。",
    "Something would fail.": "有些地方会失败。",
    "goes through": "通过",
    "would fail": "会失败",
    "Not rehearsed: {what}": "未彩排：{what}",
    # the shipped recipes
    "Tiny base -> SFT on 128 worked traces -> GRPO on answers -> verdict -> checked GGUF": (
        "微型基座 -> 用 128 条解题过程做 SFT -> 按答案做 GRPO -> 结论 -> 核对过的 GGUF"
    ),
    "Qwen2.5-3B-Instruct learns by GRPO from verified answers, on questions that it gets right now and then": (
        "Qwen2.5-3B-Instruct 用 GRPO 学可验证的答案，只练它时对时错的题"
    ),
    "Qwen2.5-3B-Instruct learns <reasoning>/<answer> by GRPO with five rewards": (
        "Qwen2.5-3B-Instruct 用 GRPO 和五种奖励学 <reasoning>/<answer> 格式"
    ),
    "Qwen3-1.7B, medical R1 traces, QLoRA in fp16 with a linear schedule": (
        "Qwen3-1.7B，医学 R1 推理数据，fp16 QLoRA，学习率线性下降"
    ),
    "v1 in bf16 with cosine and warm-up, embeddings and head trained as well": (
        "v1 改用 bf16、余弦加预热，词嵌入和输出层也训练"
    ),
    "v2 plus medical terms masked in a tenth of the training rows": "v2 加上在十分之一的训练行里遮盖医学术语",
    "v3 without masking, which lost in our ablation; decontaminated, redacted, answers never cut": (
        "v3 去掉遮盖（消融实验里它更差）；去污染、脱敏，回答从不截断"
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B, medical-o1 (Chinese), fused into a GGUF that Ollama runs": (
        "DeepSeek-R1-Distill-Qwen-1.5B，medical-o1（中文），合并成 Ollama 能跑的 GGUF"
    ),
    "DeepSeek-R1-Distill-Qwen-7B, medical-o1 (Chinese), LoRA, measured before and after": (
        "DeepSeek-R1-Distill-Qwen-7B，medical-o1（中文），LoRA，训练前后各测一次"
    ),
}
