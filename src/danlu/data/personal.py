"""Personal data in texts: resident ID numbers, telephone numbers, e-mail addresses and Chinese patients' names.

Precision comes before recall: a redaction in the wrong place spoils a training row, and clinical prose is full of
surname characters (高热, 黄疸, 严重, 于). What is found:
  id_number  18 digits with a province code, a real date from 1900 to 2099 and a right check character (GB 11643-1999,
             ISO 7064 MOD 11-2; the last may be X in any case or width), or the 15 digits of before 1999 (date 19YY)
  phone      mainland mobile numbers (plain, hyphenated, or spaced after a label or a country code), and land lines
             with their area code where a label (电话, 联系方式, Tel ...) stands before them
  email      address@domain.tld
  name       after 姓名 with a colon or a space: a surname and one or two characters up to a boundary;
             after 患者, 病人, 患儿: the same, if sex or age follow directly and no character is a word of the clinic,
             or up to punctuation, 因, a date ..., if the given name is made of characters frequent in names
Of overlapping finds the leftmost, then the longest counts. Names that are none (王某, 李女士, 张三) are left alone.
Not covered: names elsewhere (doctors, relatives, signatures), names in Latin letters, names of minorities, addresses,
birthdays, passports, insurance and bank numbers, numbers written in Chinese numerals or with other separators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from danlu.records import Message, Sample

Kind = Literal["id_number", "phone", "email", "name"]
_INSTEAD: dict[Kind, str] = {"id_number": "[ID]", "phone": "[PHONE]", "email": "[EMAIL]", "name": "[NAME]"}


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of personal data: characters [start, end) of the text, and what stands there."""

    kind: Kind
    start: int
    end: int
    text: str


def find(text: str) -> list[Found]:
    """Personal data in `text`, in order, none overlapping."""
    found = [*_numbers(text), *_emails(text), *_names(text)]
    found.sort(key=lambda one: (one.start, -one.end))
    chosen: list[Found] = []
    for one in found:
        if not chosen or one.start >= chosen[-1].end:
            chosen.append(one)
    return chosen


def redact(text: str) -> str:
    """`text` with [ID], [PHONE], [EMAIL] and [NAME] in place of personal data; the same string where there is none."""
    while found := find(text):  # again, since what is taken away may have hidden its neighbour
        parts = []
        at = 0
        for one in found:
            parts += [text[at : one.start], _INSTEAD[one.kind]]
            at = one.end
        text = "".join([*parts, text[at:]])
    return text


def redact_sample(sample: Sample) -> Sample:
    """The sample with all turns, reasoning and answer redacted; itself where there is nothing to redact.

    Target, aliases, options and meta stay: they are compared with, and hold no patients.
    """
    messages = tuple(_redacted(message) for message in sample.messages)
    reasoning, answer = redact(sample.reasoning), redact(sample.answer)
    if (messages, reasoning, answer) == (sample.messages, sample.reasoning, sample.answer):
        return sample
    return replace(sample, messages=messages, reasoning=reasoning, answer=answer)


def _redacted(message: Message) -> Message:
    changed = message.copy()
    if "content" in message:
        changed["content"] = redact(message["content"])
    if "reasoning_content" in message:
        changed["reasoning_content"] = redact(message["reasoning_content"])
    return message if changed == message else changed


# ---- numbers and addresses

_LONG = re.compile("[0-9０-９][0-9０-９ .()（）-]{8}")  # cheaper than the expressions below
_D = "[0-9０-９]"
_BEFORE, _BEHIND = r"(?<![0-9０-９A-Za-z_.])", r"(?![0-9０-９A-Za-z_]|\.[0-9])"
_ID = re.compile(
    rf"{_BEFORE}(?:{_D}{{17}}[0-9０-９XxＸｘ]|{_D}{{6}}([ -]){_D}{{8}}\1{_D}{{3}}[0-9Xx]|{_D}{{15}}){_BEHIND}"
)
_PROVINCES = frozenset(
    (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83)
)
_MOBILE = re.compile(
    rf"(?<![0-9０-９A-Za-z_./+-])(?:(?:[+＋]|00)?(?:86|８６)[- ]?)?[1１][3-9３-９]{_D}(-?){_D}{{4}}\1{_D}{{4}}"
    rf"(?![0-9０-９A-Za-z_@＠%％‰]|\.[0-9]|-[0-9]|\s*(?:个|元|[×*/]))"
)
_COUNTRY = re.compile(r"(?<![0-9A-Za-z_.,/+-])(?:\+|00)86[- ]?1[3-9]\d \d{4} \d{4}(?![0-9A-Za-z_]|[.,][0-9])")
_LABEL = re.compile(
    r"(?:电话|手机|座机|联系方式|热线|传真|[Tt][Ee][Ll]|(?<![A-Za-z])[Pp]hone|(?<![A-Za-z])[Ff]ax)"
    r"(?:号码|号|是|为|No\.?|[ 　:：.)）]|[(（](?![0-9]))*"
)
_LABELLED = re.compile(
    r"(?:(?:\+|00)?86[- ]?)?(?:\(0\d{2,3}\)|（0\d{2,3}）|0\d{2,3})[- ]?\d{7,8}(?![0-9])(?:[-转]\d{1,5}(?![0-9]))?"
    r"|(?:\+|00)86[- ]?\d{2,3}[- ]\d{7,8}(?![0-9])"
    r"|(?:(?:\+|00)?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![0-9])"
)
_AND = re.compile(r"\s*(?:[,，、;；/]|或|和)\s*")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+@＠-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}[@＠](?:[A-Za-z0-9-]{1,63}\.){1,6}[A-Za-z]{2,24}(?![A-Za-z0-9@＠_-])"
)


def _numbers(text: str) -> list[Found]:
    if not _LONG.search(text):
        return []
    found = [_found("id_number", match) for match in _ID.finditer(text) if _is_id(match[0])]
    found += [_found("phone", match) for match in _MOBILE.finditer(text) if not _round(match[0])]
    found += [_found("phone", match) for match in _COUNTRY.finditer(text)]
    for label in _LABEL.finditer(text):
        at = label.end()
        while match := _LABELLED.match(text, at):
            found.append(_found("phone", match))
            more = _AND.match(text, match.end())
            at = more.end() if more else len(text)
    return found


def _emails(text: str) -> list[Found]:
    if "@" not in text and "＠" not in text:
        return []
    return [_found("email", match) for match in _EMAIL.finditer(text)]


def _found(kind: Kind, match: re.Match[str]) -> Found:
    return Found(kind, match.start(), match.end(), match[0])


def _is_id(written: str) -> bool:
    digits = re.sub("[ -]", "", written).translate(_NARROW)
    if int(digits[:2]) not in _PROVINCES:
        return False
    if len(digits) == 15:
        return _is_date(f"19{digits[6:12]}")
    return _is_date(digits[6:14]) and check_character(digits[:17]) == digits[17]


_NARROW = str.maketrans("０１２３４５６７８９xｘＸ", "0123456789XXX")


def check_character(digits: str) -> str:
    """Last character of a resident ID number from its first 17 digits (ISO 7064 MOD 11-2: weights 2^(17-i) mod 11)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(digits))
    return "10X98765432"[total % 11]


def _is_date(digits: str) -> bool:
    year = int(digits[:4])
    try:
        date(year, int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return 1900 <= year < 2100


def _round(written: str) -> bool:
    """Whether it ends in five zeros, as counts do and numbers of people hardly ever."""
    return written.translate(_NARROW).endswith("00000")


# ---- names

# the 130 or so most frequent surnames; those that are also words of clinical prose stand apart
_SURNAMES = frozenset(
    "王李张刘陈杨赵黄周吴徐孙胡朱林郭罗梁宋郑谢韩唐冯董萧程曹袁邓许傅沈彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴钟汪田任姜"
    "范姚谭廖邹熊陆郝孔崔邱秦史顾侯邵孟龙段雷钱汤尹黎贺赖龚武乔樊兰殷施陶翟颜倪申耿牛俞章鲁葛韦毕聂焦柳邢岳齐莫庄辛"
    "祝涂苗柯翁肖欧阮关季裴靳詹闫苟鲍瞿饶宁游伍路江洪马"
)
_WORDS_TOO = frozenset("高何夏金石康毛梅霍于曾方白常严易尚左时安向万温包管车单房文邱钱华古乐成全")
_DOUBLE = "欧阳|司马|上官|诸葛|夏侯|皇甫|尉迟|公孙|慕容|令狐|司徒|东方|南宫|端木|长孙|宇文|轩辕|独孤"
_NAME = re.compile(rf"(?P<surname>{_DOUBLE}|[一-鿿])(?P<given>[一-鿿]{{1,2}})")
# characters that given names are made of, without those of clinical words
_GIVEN = frozenset(
    "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛明超兰霞平刚桂玉萍红玲建国华志文辉鹏飞龙凤梅琴云莲珍荣福贵春秋雪冬晓小亚海"
    "燕波斌宾彬浩宇轩泽豪博涵梓萱怡佳欣诗雨婷雯倩颖琳瑶璐琪慧惠雅洁莹莉蓉芬芝菊香淑翠彩俊峰坤昊晨阳旭东林森松柏江"
    "河山川峻岭瑞祥吉庆德义仁礼智信忠孝廉耻振兴邦宏伯仲叔季立新永胜民爱卫卓然思远子嘉馨紫溪语嫣依诺雄武威虎豹腾良"
    "才贤哲学鑫淼焱垚银铜钢铁铭锋锐钧钰珊珠瑛璇璋琦琼瑾瑜媛妍妮娇婉婧嫦娥姗姝姣"
)
# characters that stand behind a surname character in clinical prose, or that make a name no name
_CLINICAL = frozenset(
    "热烧疸染血压糖脂痛肿胀炎症病患者毒癌瘤胞规带侧部位体便尿汗咳痰呕吐泻晕昏迷虚弱虑怒感觉重度期可能因于为的了是"
    "有无不未已曾尚并且或及与在从至被将把对但而则应需须要当前后时日年岁周左右上下内外双单全男女性某氏姓先士医护诊"
    "治药术检查室院科龄危人身盲种族群老幼少中妇孕产乳腹胸头面颈眼耳鼻口舌咽喉肺肝胆脾胃肾肠膀胱皮肤骨节肌神脉管腺"
    "牙发复颤腔意识状态素史伤梗塞栓溃疡原菌虫胎盘份第过低增减降变躁稳其他们叫说述称自诉家属亲爸妈父母兄弟姐匠夫工乱知"
)
_NOT_NAMES = frozenset(
    re.findall(
        r"\w+",
        "先生 医师 医生 同学 大妈 大爷 太太 女士 安静 小姐 平静 护士 文明 文静 明显 林海 毛玉 江山 江河 温馨 白洁 石林 "
        "石英 老师 金银 阿姨 雷雨 马兰 马虎 马铁 高兴 高山 高平 高敏 高明 高贵 黄铜 龙虎 钟爱 "
        "丁香 杨梅 苏子 黄柏 黄连 黄芪 葛根 韩国 雷诺 范德华",
    )
)
_PLACEHOLDERS = frozenset(("张三", "李四", "王五", "赵六", "王二", "王麻子", "李雷", "韩梅梅", "未知", "不详"))
_FORM = re.compile(r"(?:患者|病人|患儿)?姓名(?:\s*[:：]\s*|[ 　]{1,4})")
_PATIENT = re.compile(r"(?:患者|病人|患儿)(?:名叫|叫|[:：])?\s?(?=[一-鿿]{2})")
_ENDED = re.compile(
    r"$|\s|[^\w]|(?:性别|男|女|年龄|出生|生日|电话|手机|身份证|住院|门诊|床号|科室|职业|民族|籍贯|联系|[0-9０-９])"
)
_PERSON = re.compile(
    r"[\s，,、。;；:：（(]{0,2}(?:性别\s?[:：]?\s?|年龄\s?[:：]?\s?)?"
    r"(?:[男女](?=[\s，,、。;；）)性士孩，0-9]|$)|[0-9０-９一二三四五六七八九十]{1,3}\s?(?:岁|周岁|个月|月龄))"
)
_ON = re.compile(
    r"[，,、。；;：:）)（(\s]|$|因|[0-9]{2,4}\s?[年\-/.]|于\s?[0-9一二三四五六七八九十昨今去]|[男女](?!性?激素)"
)


def _names(text: str) -> list[Found]:
    found = []
    if "姓名" in text:
        found += [_form_name(text, match.end()) for match in _FORM.finditer(text)]
    if "患" in text or "病人" in text:
        found += [_patient_name(text, match.end()) for match in _PATIENT.finditer(text)]
    return [one for one in found if one]


def _form_name(text: str, start: int) -> Found | None:
    for surname, given, end in _split(text, start):
        known = surname in _SURNAMES or surname in _WORDS_TOO or len(surname) == 2
        if known and _ENDED.match(text, end) and _may_be_name(surname, given):
            return Found("name", start, end, surname + given)
    return None


def _patient_name(text: str, start: int) -> Found | None:
    for surname, given, end in _split(text, start):
        if not _may_be_name(surname, given):
            continue
        usual = surname in _SURNAMES or len(surname) == 2
        named = set(given) <= _GIVEN
        if _PERSON.match(text, end):
            if (named and (usual or surname in _WORDS_TOO)) or (usual and not set(given) & _CLINICAL):
                return Found("name", start, end, surname + given)
        elif usual and named and _ON.match(text, end):
            return Found("name", start, end, surname + given)
    return None


def _split(text: str, start: int) -> list[tuple[str, str, int]]:
    """(surname, given name, end) at `start`: the longer readings first."""
    longest = _NAME.match(text, start)
    if not longest:
        return []
    readings = []
    for surname in dict.fromkeys((longest["surname"], text[start])):
        for size in (2, 1):
            given = text[start + len(surname) : start + len(surname) + size]
            if len(given) == size and all("一" <= char <= "鿿" for char in given):
                readings.append((surname, given, start + len(surname) + size))
    return readings


def _may_be_name(surname: str, given: str) -> bool:
    whole = surname + given
    anonymous = given[0] in "某姓氏" or given[-1] in "某氏" or given in _NOT_NAMES or whole in _NOT_NAMES
    return not anonymous and whole not in _PLACEHOLDERS and not set(given) & set("男女的性岁患")
