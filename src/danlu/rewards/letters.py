"""Which letters of a text stand for options.

A letter counts only where it stands alone, is no part of a term (维生素D, A型血, hepatitis B, C. difficile, 双酚A) and
not the English article. Digits that label options count only after words that make them a choice, or alone;
"第三项" and "option 2" name options that have letters.
"""

from __future__ import annotations

import re

from danlu.rewards.mentions import BOLD, BOX, ROUND, needle

MOST = 1000  # letters read from either end of an answer
_TERM = (
    r"(?:维生素|维他命|肝炎|流感|血型|球蛋白|因子|补体|方案|分级|评级|等级|分型|染色体|附录|[图表组级型类]|°|ig|hla-?|"
    r"\b(?:vitamins?|hepatitis|hep|groups?|types?|class|grade|stage|category|subtype|serotype|factor|protein|influenza|"
    r"flu|plan|arm|cohort|figure|fig\.|table|appendix|panel|part|chromosome|complement|immunoglobulin|schedule|"
    r"stanford|pugh|child|apolipoprotein|amphotericin|toxin|strep|coenzyme|cytochrome|section))"
)
_IN_TERM = re.compile(rf"{_TERM}[\s-]{{0,2}}(?:[A-Z]\s*(?:\band\b|\bor\b|[、/和及与或])\s*){{0,6}}\Z", re.I)
_AFTER_TERM = re.compile(
    r"\s*(?:型|族|类|级|期|超|细胞|染色体|因子|群|链|带|区|波|支|段|组|亚型|抗原|抗体|受体|蛋白|反应|淋巴)|"
    r"[\s-]+(?:streptococc|strep\b|cells?\b|lymphocyte|virus|fibers?\b|surface|antigen)|-[^\W_]|'[a-z]",
    re.I,
)
_ARTICLE = re.compile(
    r"\s+(?!(?:is|was|are|were|because|since|but|not|isn't|which|and|or|as|would|has|have|fits?|explains?|makes?|does|"
    r"can|cannot|could|should|describes?|seems?|looks?|represents?|alone|rather|instead|correct|incorrect|wrong|right|"
    r"here|best|matches|it|must|remains|to|on|in|from|with|based|given|due|[A-Z])\b)[A-Za-z]"
)
_ORDINALS = {c: i for i, group in enumerate(("1一", "2二", "3三", "4四", "5五", "6六")) for c in group}
_ORDINALS |= {word: i for i, word in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"))}
_NUMBERED = re.compile(
    r"第([1-6一二三四五六])(?:个选?项|选?项|个答案)|选项 ?([1-6一二三四五六])(?![\d.%])|"
    r"\b(?:option|choice|answer) (?:number |no\. ?)?([1-6])(?![\d.%]\d|\s*[a-z]?g\b)|"
    r"\b(first|second|third|fourth|fifth|sixth) (?:option|choice|answer)\b",
    re.I,
)
_DIGIT = (
    r"(?:(?:选项?|答案(?:应该?)?(?:是|为|选)?|正确(?:的)?(?:选项|答案)?(?:是|为)|[\"'](?:答案|"
    r"\w*answer\w*)[\"']\s*:|第|"
    r"\b(?:options?|choices?|answers?)(?: is| are| would be)?)[\s:\"'(\[*{bold}]{{0,6}}|{box}\s*|^[(\s{bold}]{{0,3}})"
)


def letters(text: str, options: dict[str, str], taken: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """(start, end, letters) of every mention of an option by its letter, outside the spans `taken`."""
    keys = "".join(options)
    starts = {start for start, _ in taken}
    inside = [False] * (len(text) + 1)
    for start, end in taken:
        inside[start:end] = [True] * (end - start)
    found: list[tuple[int, int, str]] = []
    if keys.isdigit():
        digit = re.compile("[0-9]")
        cue = _DIGIT.format(bold=BOLD, box=BOX)
        then = "号|选?项|正确|是|为|对|错|均|都|不|符|和|与|及|或|了|吧"  # no unit: "2周", "3 mg"
        one = rf"[{keys}](?![\d%]|\.\d|\s*(?!{then})[\u4e00-\u9fff]|[A-Za-z]|\s+[a-z]?g\b)"
        run = re.compile(rf"{cue}({one}(?:\s*(?:[、,/和与及]|and|or)\s*{one})*)", re.I | re.M)
        for match in run.finditer(text):
            if match[0].strip() == match[1] or match[0].lstrip(f" ({BOLD}") == match[1]:
                own = any(start - match.end() in range(1, 6) for start in starts)
                rest = text[match.end() :].split("\n")[0].strip(f" ).。{BOLD}")
                if not own and rest:
                    continue  # a numbered list
            found += [(m.start(), m.end(), m[0]) for m in digit.finditer(text, match.start(1), match.end())]
        return [span for span in found if not inside[span[0]]]
    if not any(needle(value)[0] in "123456" for value in options.values()):
        for match in _NUMBERED.finditer(text):
            index = _ORDINALS[next(filter(None, match.groups())).lower()]
            if index < len(keys) and not inside[match.start()]:
                found.append((*match.span(), keys[index]))
                inside[match.start() : match.end()] = [True] * (match.end() - match.start())
    matches = list(re.finditer(rf"(?<![A-Za-z0-9°])[{re.escape(keys)}]{{1,26}}(?![A-Za-z0-9])", text))
    if len(matches) > 2 * MOST:
        matches = matches[:MOST] + matches[-MOST:]
    for match in matches:
        start, end = match.span()
        if inside[start] or len(set(match[0])) < end - start:
            continue
        if _mention(text, start, end, end in starts or any(end + i in starts for i in (1, 2, 3, 4))):
            found.append((start, end, match[0]))
    return found


_HAN_BEFORE = (  # a letter may follow these; after any other it belongs to a name
    "者另外其余跟同且被断虑像似向于掉持合确出归见择用题的项选是为有案即和与及或如除以而但把将中则非对指在"
    "故才只由此认排比不误并先看改成还了剩下定取推荐从"
)
_WORD_BEFORE = re.compile(
    r"a|b|c|d|e|f|g|h|i|option|options|choice|choices|answer|answers|letter|letters|is|are|was|be|been|"
    r"not|and|or|nor|to|of|pick|picks|picked|choose|chose|select|selected|with|than|that|so|hence|thus|"
    r"therefore|only|either|neither|both|make|makes|making|why|but|for|leaves|leave|out|exclude|excluded|"
    r"excludes|eliminate|eliminates|considered|consider|thought|say|it's|while|because|if|when|then|"
    r"however|between|from|like|go|going|actually|wait|no|correction|correct|best|incorrect|wrong|right|"
    r"final|it|as|toward|towards|says|have|should|though|although|unlike|versus|vs|reject|rejected|"
    r"rejecting|answer's|prefer|hmm|just|since|consistent|definitely|probably|clearly|believe|believes|"
    r"think|thinks|guess",
    re.I,
)
_RUN_BEFORE = re.compile(
    rf"(?:^|[\n选为是有:;=\[(\"'【“{BOLD}{BOX}、,]|答案|选项|项|\b(?:answers?|are|is|select|choose|pick))\s*$", re.I
)
_CUED = re.compile(
    r"(?:选项?|答案|\b(?:option|choice|answer|choose|pick|select)s?)\W{0,3}(?:是|为|\bis\b|\bare\b)?\W{0,3}$", re.I
)


def _mention(text: str, start: int, end: int, worded: bool) -> bool:
    """Whether the capital letters text[start:end] stand for options; `worded`: an option's text follows at once."""
    before, after = text[max(0, start - 40) : start], text[end : end + 24]
    if re.search(r"(?:[^\s.…-][-.]|\w'|&)\Z", before) and not before.endswith("..."):  # not $: a line may begin here
        return False
    if _IN_TERM.search(before):
        return False
    if worded and end - start == 1:
        return True
    word = re.search(r"(?:([\u4e00-\u9fff])|\b([A-Za-z']+) +)\Z", before)
    if word and ((word[1] and word[1] not in _HAN_BEFORE) or (word[2] and not _WORD_BEFORE.fullmatch(word[2]))):
        return False  # 双酚A, box E
    if _AFTER_TERM.match(after):
        return False
    if end - start > 1:
        follows = re.match(rf"\s*(?:选?项|[均都皆]|{ROUND}*(?:[.。,;!]|$|\n))", after)
        return bool(_RUN_BEFORE.search(before) and follows)
    if re.match(r"\.\s?[a-z]", after) and not _CUED.search(before):
        return False  # E. coli
    if text[start] in "AI" and _ARTICLE.match(after):
        return bool(re.search(r"(?:选项|\b(?:option|choice))\s*$", before, re.I))
    return True
