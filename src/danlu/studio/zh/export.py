"""The page Export."""

TEXTS = {
    "A file that Ollama and llama.cpp run, checked against the model it came from.": (
        "Ollama 和 llama.cpp 能直接运行的文件，已与原模型逐项核对。"
    ),
    "Export a run": "导出一次运行",
    "Nothing has been exported yet.": "还没有导出过。",
    "Choose a trained run: it is merged, written as GGUF, and checked.": (
        "选一次训练好的运行：合并、写成 GGUF、再核对。"
    ),
    "Train a run first: start one on the page Runs.": "先训练：到“运行”页开始一次。",
    "done": "完成",
    "at work": "进行中",
    "failed": "失败",
    "stopped": "已停止",
    "its process is gone": "进程没了",
    "At work. The page follows; it may be closed.": "正在进行，页面会跟着更新；关掉也没关系。",
    "It ended without a result.": "它结束了，但没有结果。",
    "A check failed: nothing was delivered.": "有一项核对没通过：没有交付任何文件。",
    "{right} of {all}": "{right} / {all}",
    "checks hold": "项核对通过",
    "files": "个文件",
    "made from": "来自",
    "Files": "文件",
    "Measure what they keep": "测一测量化损失",
    "on the suite {name}": "用题组 {name}",
    "File": "文件",
    "Type": "类型",
    "Size": "大小",
    "the model itself": "原模型",
    "Tokens a second": "每秒 token 数",
    "Right": "答对",
    "95 % interval": "95 % 区间",
    "Against the model": "与原模型相比",
    "no difference shown": "看不出差别",
    "{count} questions of {name}; paired with the model that the files were made from.": (
        "题组 {name} 的 {count} 道题；与原模型逐题配对。"
    ),
    "Checks": "检查",
    "holds": "通过",
    "fails": "没通过",
    "Copy the Modelfile": "复制 Modelfile",
    "Copy": "复制",
    "Copied.": "已复制。",
    "Looking for an Ollama on this machine …": "正在找本机的 Ollama……",
    "Copy this command": "复制这条命令",
    "created": "已创建",
    "{name} is in Ollama.": "{name} 已在 Ollama 里。",
    "Create in Ollama": "在 Ollama 里创建",
    "Ollama {version} answers here.": "本机有 Ollama {version}。",
    "No Ollama answers here. Where one runs, these two commands make the model and talk to it:": (
        "本机没有 Ollama。在有 Ollama 的机器上，用这两条命令创建模型并和它对话："
    ),
    "There is no finished sft or grpo run to export.": "没有已完成的 sft 或 grpo 运行可以导出。",
    "Run": "运行",
    "Types": "类型",
    "Name": "名字",
    "Cancel": "取消",
}
