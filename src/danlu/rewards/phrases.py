"""The words by which an answer claims, judges, denies or corrects an option, in Chinese and English.

Patterns ending in $ are searched in the words before a mention, the others matched to the words after it. Every run in
them is bounded: model outputs hold thousands of spaces and brackets.
"""

from __future__ import annotations

import re

from danlu.rewards.marks import TOKEN
from danlu.rewards.mentions import BOLD, BOX, INLINE, ROUND

CORRECTION = re.compile(
    r"(?:^|(?<=[。，；！？,;!?.…\n ]))(?:不对|不,|等(?:一下|等)\s*,|我刚才)|更正|纠正|改为|改选|修正|重新考虑|"
    r"再想想|看错|应当?改|"
    r"(?:题目?|问题)[^。]{0,8}?(?:只?要求|只能)选?择?一个|"
    r"\bactually\b|\bcorrection\b|\bwait\b|\bsorry\b|\bon (?:second thought|reflection)\b|\breconsider|\bmisread\b",
    re.I,
)
GAP = f"[^{TOKEN}。,;!?\n]"
GAP_EN = f"[^{TOKEN}.;!?\n]"
TAIL = rf"{ROUND}{{0,8}}(?:(?:选项|第|options?|choice|letter|答案)\s*)?{ROUND}{{0,8}}$"
ADVERB = (
    r"(?:\s*\b(?:therefore|thus|then|indeed|clearly|definitely|probably|most likely|likely|simply|just|both|"
    r"all|only|to|"
    r"an?|the)\b)*"
)
KEYED = re.compile(
    rf"(?:{BOX}\W{{0,6}}|[\"'][a-z_ ]{{0,16}}(?:answer|choice|option|correct|"
    rf"prediction)[a-z_ ]{{0,12}}(?<!options)[\"']\s*:\s*"
    r"[\[\"'\s(]*|[\"'](?:正确|最终)?(?:答案|选项)[\"']\s*:\s*[\[\"'\s(]*)$",
    re.I,
)
SAID = re.compile(
    rf"(?:答案(?:选?项)?(?:{GAP}{{0,12}}?(?:是|为|选择?|有|包括|应|[:=非]))?"
    rf"|(?<![挑筛备候入优竞])选(?!项|手|题)(?:择|取|用|定)?(?:的)?(?:{GAP}{{0,8}}?(?:是|为|:))?"
    r"|(?:正确|最佳|最优|最终|错误|不正确|不恰当|符合题意|首选)(?:的)?(?:选?项|选择|一项|说法|描述|叙述|"
    rf"答案)?{GAP}{{0,6}}?(?:是|为|有|包括|:)"
    r"|(?:更正|修正|订正|纠正|改)(?:是|为|成)?"
    r"|\b(?:answers?|ans\.?|(?:correct|best|right|final|false|incorrect|wrong|true)\s+(?:answer|choice|option|"
    r"statement|one)s?|"
    rf"solution|exception|choice)(?!\w)"
    rf"(?:{GAP_EN}{{0,40}}?(?:\b(?:is|are|was|be|were|include)\b|[:=-]){ADVERB}(?:\s*(?:not|never|"
    r"n't)\b)?(?:\s+(?:the|an?)\b)?)?"
    r"|\bcorrect\s*[:=]|\b(?:choose|chose|pick(?:ed)?|select(?:ed)?|go(?:ing)? with|opt(?:ed)? for|vote for|"
    r"lean(?:ing)? towards?)"
    rf"){TAIL}",
    re.I,
)
SAID_LETTER = re.compile(  # says it only of a letter
    r"(?:(?:是|为|即|指)|\bit(?:'s| is| must be| should be| has to be)|\b(?:hence|thus|therefore|so|"
    r"correction|actually|wait|no|leaves|"
    rf"must be|should be|is|(?<!could )(?<!may )(?<!might )be)[,:]?){TAIL}",
    re.I,
)
STATED = re.compile(  # says it of a wording
    rf"(?:[的其]{GAP}{{0,10}}?(?:是|为|指的?(?:就)?是|即)|诊断{GAP}{{0,6}}?(?:为|是|:|考虑)|考虑(?:为|诊断为)?|"
    rf"辨证{GAP}{{0,4}}?(?:为|属)|(?:证|应|当|多|均)属于?|应(?:该|当)?(?:首先|首选|先|给予|采用|予|用|做|行|为|"
    r"是|选用)|"
    rf"首选(?:{GAP}{{0,8}}?(?:是|为))?|称(?:为|作|之为)|[而才就]是|判断为|最可能(?:为|是)|(?:这|此|均|"
    rf"都)些?(?:都|均)?(?:是|为)|(?:病位|部位){GAP}{{0,6}}在|约(?:为|是)?|符合{GAP}{{0,6}}|方用|治(?:法|宜|以)|"
    r"\b(?:diagnosis|step|choice|treatment|cause|organism|drug|agent|management|therapy|course of action|pathogen|"
    rf"mechanism|explanation|test|study|condition|medication)\b{GAP_EN}{{0,40}}?(?:\b(?:is|be|remains)\b|:){ADVERB}|"
    r"\bmost (?:likely|probably|consistent with)\b(?:\s+(?:has|have|caused by|due to|represents|is|"
    rf"diagnosis is))?{ADVERB}|"
    rf"\b(?:suggests?|indicat(?:es?|ing|ive of)|diagnostic of|characteristic of|typical of|classic for|hallmark of|"
    rf"points? to(?:ward)?|(?:it|this) is|due to){ADVERB}){TAIL}",
    re.I,
)
RIGHT = (
    r"(?:正确|对(?=的|$|\W)|(?<!不)符合(?:题意|题干|要求|描述|条件)?|恰当|合适|最?佳|吻合|(?:本题|题目|"
    r"正确)?的?答案|√|✓|✔|✅|☑|"
    r"correct|right(?!-)|true|best|better|the answer|answer|(?:most|more)\s+(?:appropriate|likely|suitable|accurate)|"
    r"\w+ of choice|first[- ]line|"
    r"appropriate|exception|yes|fits?(?: best)?|it is|matches)"
)
WRONG = (
    r"(?:错误|错|不正确|不对|不符合?|不成立|不支持|不恰当|不合适|不考虑|不选|有误|(?:可以?|被|应|予以|故)?排除|"
    r"可能性小|×|✗|✘|❌|✖|"
    r"incorrect|wrong|false|not\b|unlikely|less likely|ruled out|excluded|inappropriate|no\b|isn't|aren't)"
)
OF = (
    rf"{INLINE}{{0,6}}(?:选?项|[二两三四]个?选?项|号)?{INLINE}{{0,4}}(?:的?(?:说法|描述|叙述|表述|解释|特点|观点))?"
    r"(?:是|为|也|均|都|皆|全|才|最|就|完全|显然|的|并)*[ ]*"
    r"(?:\b(?:is|are|was|were|seems?|looks?|(?:c|w)ould be|may be|can be|remains?|must be|that)\b)?[ ]*"
    r"(?:\b(?:also|both|all|clearly|therefore|thus|the|only|single|an?|most|more|choice that)\b[ ]*)*"
)
JUDGED_RIGHT = re.compile(rf"{OF}{RIGHT}", re.I)
JUDGED_WRONG = re.compile(rf"{OF}{WRONG}", re.I)
VERDICT = re.compile(
    rf"(?:^|[,。;:.|()—–!\s{BOLD}-])(?:\W{{0,3}}(?:判断|因此|所以|故|是|为|本项|该项|完全|最)*(?:"
    r"(?P<no>错误|错|不正确|不对|不符合?(?:题意|题干|要求)?|不成立|不支持|不选|不考虑|(?:可|故|予以|应)?排除|"
    r"无效|×|✗|✘|❌|✖|"
    r"incorrect|wrong|false|not correct|unlikely|ruled out|no)|"
    r"(?P<yes>正确|对|符合(?:题意|题干|要求)?|吻合|选|√|✓|✔|✅|☑|correct|right|true|yes|which matches|"
    r"matches)))(?:的|选项|答案)?(?=$|\W)",
    re.I,
)
AS_ANSWER = re.compile(
    rf"(?:选?项)?[^{TOKEN}。;\n]{{0,6}}[(,]\s*(?:故|因此|所以)?(?:即|就)?(?:是|为)(?:本题|该题|此题)的?(?:正确)?答案",
    re.I,
)
FITS = r"\s*(?:选?项)?\s*(?:explains?|fits?|accounts? for|matches|符合|满足|能)"
BEST = re.compile(
    rf"{ROUND}{{0,6}}(?:选?项)?{ROUND}{{0,4}}(?:的{GAP}{{0,8}})?(?:才)?(?:是|为)?(?:最(?!后|终|初)|"
    r"更为?(?:准确|合适|符合))",
    re.I,
)
FITTEST = re.compile(rf"{ROUND}{{0,4}}(?:的{GAP}{{0,8}})?最(?:符合|适合|合适|能|佳|恰当|接近|准确|贴切)")
LABEL_WRONG = re.compile(
    rf"(?:\b(?:incorrect|wrong)(?:\s+(?:options?|answers?|choices?))?\s*{BOLD}?:|(?:错误(?:选项|的有)?|不正确)\s*{BOLD}?:|错误答案:?){TAIL}",
    re.I,
)
ITEM = re.compile(
    rf"(?:^|(?<=[\n。;.]))[^\w\n{TOKEN}]{{0,8}}(?:\d{{1,2}}\W{{1,3}})?(?:选项|option\s)?{ROUND}{{0,3}}(?=[{TOKEN}])",
    re.I,
)
REPORTED = re.compile(
    r"(?<!错)误|有人|同学|容易(?:被|[误错混选])|易选|一开始|起初|初看|乍看|刚才|干扰项|students|\bsome\b|"
    r"\btempting|\binitially|\bat first\b|"
    r"first thought|\bleaned\b|distract",
    re.I,
)
CONDITION = re.compile(r"如果|假如|倘若|若(?!干)|否则|\bif\b|\botherwise\b|\bunless\b|\bwhen\b", re.I)
NO_CONDITION = re.compile(r"如果(?:只能|必须|一定要|要)|\bif (?:i|you|we) (?:had|have) to", re.I)
ASKED = re.compile(rf"{ROUND}{{0,3}}(?:选?项)?(?:吗|么)?\s*\?|{ROUND}{{0,3}}吗")
CONCLUDES = re.compile(
    r"因此|所以|故|综上|综合|总之|由此|可见|最终|结论|\b(?:therefore|thus|hence|so|overall|consequently|"
    r"in (?:conclusion|summary))\b",
    re.I,
)
SUBJECT = re.compile(r",?\s*(?:它|其|本题)?(?:应该?|可以?|就|才)?(?:是|为|属|最|不(?!选)|无须|无需|被认为|适合|适用)")
NEGATIVE = re.compile(  # what asks for the false option, in the last clause of a question
    r"错误|不正确|不属于|不是|不包括|除外|除了|除[^，,]{0,6}外|不符合|不宜|不应|不会|不能|不恰当|无需|无须|不支持|不用于|"
    r"\bexcept\b|\bincorrect\b|\bfalse\b|\bleast\b|\bwhich\b[^?]*\bnot\b|\bnot (?:true|correct)\b",
    re.I,
)
OPTIONS_BEGIN = re.compile(r"\n\s*[*(（]{0,3}[A1][.．、:：)）]")
EITHER = re.compile(r"或|还是|\bor\b", re.I)
JOIN = (
    rf"(?:[ {BOLD}'\"]{{0,3}}(?:选?项)?[ {BOLD}'\"]{{0,3}}"
    rf"(?:[、/&+]|[,;]\s?(?:and|or|和|以及|及)?|和|与|及|以及|或者?|还是|\band\b|\bor\b)"
    rf"[ {BOLD}'\"]{{0,3}}(?:选项|options?\s)?[ {BOLD}'\"]{{0,3}}|(?<=[\ue000-\ue0ff]) {{0,2}}(?=[\ue000-\ue0ff]))"
)
LAST = rf"(?![{TOKEN}](?:选?项)?\s*(?:错|不|并?非|排除|则|is\b|was\b|would\b|were\b|cannot|can't|had\b))"
GROUP = re.compile(rf"[{TOKEN}](?:{JOIN}(?:(?<![,;] )(?<![,;])|{LAST})[{TOKEN}]){{0,25}}")
