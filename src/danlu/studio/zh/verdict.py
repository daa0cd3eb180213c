"""The page Verdict."""

TEXTS = {
    "The same questions before and after, and whether the difference is more than chance.": (
        "同样的题，训练前和训练后各答一遍；差别是不是超出了偶然。"
    ),
    "There are no two evaluations of the same questions yet.": "还没有两次做同一批题的评测。",
    "danlu run RECIPE evaluates before and after training; danlu eval TARGET evaluates any model.": (
        "danlu run 配方 会在训练前后各评测一次；danlu eval 目标 可以评测任何模型。"
    ),
    "Before": "之前",
    "After": "之后",
    "before": "之前",
    "after": "之后",
    "Swap the two": "前后对调",
    "Comparing the answers …": "正在比较答案……",
    "Differences": "差异",
    "Percentage points, after minus before, with 95 % intervals; left of 0 is worse.": (
        "百分点，之后减之前，附 95 % 区间；在 0 左边就是变差。"
    ),
    "How the answers ended": "答案的结局",
    "right": "答对",
    "wrong": "答错",
    "no answer found": "没找到答案",
    "more than one answer": "不止一个答案",
    "cut before the answer": "没写到答案就被截断",
    "Figures": "数字",
    "Benchmark": "评测集",
    "Group": "分组",
    "n": "题数",
    "Points": "百分点",
    "p, adjusted": "校正后的 p",
    "Gained": "变对",
    "Lost": "变错",
    "Wrong both times": "两次都错",
    "better": "更好",
    "worse": "更差",
    "mixed": "有好有坏",
    "cannot tell yet": "还说不准",
    "{verdict}: {points} points, 95 % interval {low} to {high}, {p}, n = {n}": (
        "{verdict}：{points} 个百分点，95 % 区间 {low} 到 {high}，{p}，{n} 题"
    ),
    "By subject": "按科目",
    "By task": "按任务",
    "By language": "按语言",
    "Questions to read": "逐题看",
    "Which questions": "看哪些题",
    "All benchmarks": "全部评测集",
    "All subjects": "全部科目",
    "Subject": "科目",
    "Words or an id": "关键词或题号",
    "Only those in the training data": "只看训练数据里有的",
    "Earlier": "前面",
    "Later": "后面",
    "There are none.": "没有。",
    "in the training data": "训练数据里有",
    "These rows hold no question.": "这些记录里没有题面。",
    "Gold:": "标准答案：",
    "Reasoning": "推理",
    "(no answer)": "（没有答案）",
}
