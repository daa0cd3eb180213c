"""What every page shows."""

TEXTS = {
    "Runs": "运行",
    "Data": "数据",
    "Verdict": "结论",
    "Chat": "对话",
    "Export": "导出",
    "Skip to content": "跳到正文",
    "Main pages": "主要页面",
    "Light": "浅色",
    "Dark": "深色",
    "As the system": "跟随系统",
    "Appearance": "外观",
    "This page does not exist.": "没有这个页面。",
    "Back to the runs": "回到运行列表",
    "Something went wrong here.": "这里出了问题。",
    "{n} s": "{n} 秒",
    "{n} min": "{n} 分钟",
    "{n} h": "{n} 小时",
    "{n} d": "{n} 天",
    "The terminal in which the studio runs tells more.": "运行工作室的终端里有更多信息。",
}
