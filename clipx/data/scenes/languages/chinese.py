"""Chinese (simplified): measure words, the order of attributes, and the forms a caption may take."""

from collections.abc import Sequence

from clipx.data.scenes.statements import Description, On, Related, Statement, There, Written

SHAPES = {
    "circle": ("圆形",),
    "square": ("正方形",),
    "triangle": ("三角形",),
    "star": ("星形",),
    "heart": ("心形",),
    "cross": ("十字形",),
    "ring": ("圆环",),
    "diamond": ("菱形",),
    "crescent": ("月牙形",),
    "hexagon": ("六边形",),
    "arrow": ("箭头",),
    "drop": ("水滴形",),
}
OBJECT = "物体"
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "orange": "橙色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
    "gray": "灰色",
    "cyan": "青色",
}
SIZES = {"small": "小的", "medium": "中等大小的", "large": "大的"}
TEXTURES = {"solid": "", "striped": "条纹", "dotted": "圆点", "checkered": "格子"}
NUMBERS = ("零", "一", "两", "三", "四", "五", "六")
RELATIONS = {
    "left": "左边",
    "right": "右边",
    "above": "上方",
    "below": "下方",
    "front": "前面",
    "behind": "后面",
}
GROUNDS = {"plain": "纯色", "gradient": "渐变", "noise": "颗粒", "textured": "花纹"}
TONES = ("浅", "", "深")
TEMPLATES = ["一个{}", "一张有一个{}的图片", "图中有一个{}"]
FRAMES = (
    "一张有{}的图片",
    "一幅有{}的画",
    "这张图片显示{}",
    "图中有{}",
    "可以看到{}",
    "这里有{}",
    "图片里画着{}",
    "画面上有{}",
)


def colour_name(colour: str) -> str:
    """The colour by itself: ``红色``."""
    return COLOURS[colour]


def class_name(colour: str, shape: str) -> str:
    """Name of a class: ``红色的圆形``."""
    return f"{COLOURS[colour]}的{SHAPES[shape][0]}"


def phrase(what: Description, count: int = 1, definite: bool = False) -> str:
    """A noun phrase: ``一个小的红色条纹的圆形``, ``两个蓝色的星形``, ``红色的圆形``."""
    traits = (COLOURS[what.colour] if what.colour else "") + (TEXTURES[what.texture] if what.texture else "")
    words = (SIZES[what.size] if what.size else "") + (f"{traits}的" if traits else "")
    words += SHAPES[what.shape][0] if what.shape else OBJECT
    return words if definite else f"{NUMBERS[count]}个{words}"


def join(parts: Sequence[str]) -> str:
    """The parts as a list: ``x``, ``x和y``, ``x、y和z``."""
    return parts[0] if len(parts) == 1 else f"{'、'.join(parts[:-1])}和{parts[-1]}"


def place(relation: str, what: Description, definite: bool = False) -> str:
    """Where something is: ``一个圆形的左边``."""
    return f"{phrase(what, definite=definite)}的{RELATIONS[relation]}"


def short(statements: Sequence[Statement]) -> str:
    """Everything that is there, or one relation."""
    first = statements[0]
    if isinstance(first, Related):
        return f"{phrase(first.first)}在{place(first.relation, first.second)}"
    return join([phrase(part.what, part.count) for part in statements if isinstance(part, There)])


def paraphrase(statements: Sequence[Statement], form: float) -> str:
    """The same as ``short`` in one of the forms; ``form`` in [0, 1) picks it."""
    first = statements[0]
    if not isinstance(first, Related):
        return FRAMES[int(form * len(FRAMES))].replace("{}", short(statements))
    near, where = phrase(first.first), place(first.relation, first.second)
    # A relation is a clause of its own and does not fit every frame.
    forms = (
        f"{near}位于{where}",
        f"{where}有{near}",
        f"图中{near}在{where}",
        f"可以看到{near}在{where}",
        f"图中{where}是{near}",
        f"这张图片显示{near}在{where}",
        f"画面上{where}有{near}",
    )
    return forms[int(form * len(forms))]


def long(statements: Sequence[Statement]) -> str:
    """Sentences that say everything."""
    there = [phrase(part.what, part.count) for part in statements if isinstance(part, There)]
    where = next((part for part in statements if isinstance(part, On)), None)
    ground = f"{TONES[where.tone]}{COLOURS[where.tint]}{GROUNDS[where.kind]}背景上有" if where else "图中有"
    sentences = [f"{ground}{join(there)}"]
    for part in statements:
        if isinstance(part, Related):
            first = phrase(part.first, definite=True)
            sentences.append(f"{first}在{place(part.relation, part.second, definite=True)}")
        elif isinstance(part, Written):
            sentences.append(f"上面写着“{part.words}”")
    return "。".join(sentences)
