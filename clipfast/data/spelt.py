"""Texts that spell a list or an object, as Python, pandas, numpy or JSON write one into a cell."""

import ast
import io
import json
import re
import tokenize
import warnings

# A text in brackets is common in captions; these are common in lists alone.
_LOOKS = re.compile(
    r"""
    \[\s*[uUbB]?['"].*['"]\s*\]          # from a quote to a quote
    | \{\s*['"].*\}
    | (\[\s*)+[uUbB]?['"][^\]]*          # cut
    | [\[({]\s*[uUbB]?(?P<quote>['"])[^'"]*(?P=quote)\s*,\s*[uUbB]?['"][^\])}]*
    | \{\s*['"][^'"]*['"]\s*:[^}]*
    | \[\s*(np|numpy)\.\w+\(.*           # numpy's, cut or with dots
    | ((np|numpy)\.)?(array|Index|deque|frozenset|set)\([\s\[({]*['"].*
    """,
    re.DOTALL | re.VERBOSE,
)
_WRAPPERS = {"array", "list", "tuple", "deque", "set", "frozenset"}
_VALUES = {"null": None, "true": True, "false": False, "nan": float("nan"), "NaN": float("nan")}
_REFUSALS = (
    ValueError,
    TypeError,
    SyntaxError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
_BETWEEN = (tokenize.NL, tokenize.COMMENT)


def looks_spelt(text: str) -> bool:
    """Whether `text` is no caption but something like a list or an object, perhaps cut."""
    return _LOOKS.fullmatch(text) is not None


def read_spelt(text: str) -> list[object] | dict[object, object] | None:
    """The list or the object that `text` spells; None where it spells none.

    Args:
        text: without white space around it.

    Returns:
        A list also for a tuple, a set, or an array.
    """
    if text[-1:] not in ("]", ")", "}"):
        return None
    value: object = None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = _python(text)
        except _REFUSALS:
            return None
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, (list, dict)) else None


def _python(text: str) -> object:
    """What Python's way to write a value gives, without running any of it."""
    with warnings.catch_warnings():
        # No writer of lists leaves a backslash that means nothing.
        warnings.simplefilter("error")
        tree = ast.parse(text, mode="eval")
    if not isinstance(tree.body, (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Call)):
        return None
    if _joins_texts(text):
        return None
    return ast.literal_eval(_Plain().visit(tree).body)


def _joins_texts(text: str) -> bool:
    """Whether two texts lack a comma, as numpy prints them; Python reads them as one."""
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == last == tokenize.STRING:
            return True
        if token.type not in _BETWEEN:
            last = token.type
    return False


class _Plain(ast.NodeTransformer):
    """Makes literals of names and calls in lists: ``nan``, ``array([...])``, ``np.str_('a')``."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_VALUES[node.id]) if node.id in _VALUES else node

    def visit_Set(self, node: ast.Set) -> ast.expr:
        # In the order in which it is written, which a set would lose.
        return ast.List([self.visit(element) for element in node.elts], ast.Load())

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if node.value is ...:
            raise ValueError("texts were left out")
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        name = node.func
        of_numpy = (
            isinstance(name, ast.Attribute)
            and isinstance(name.value, ast.Name)
            and name.value.id in ("np", "numpy")
        )
        if node.args and (of_numpy or (isinstance(name, ast.Name) and name.id in _WRAPPERS)):
            inside: ast.expr = self.visit(node.args[0])
            return inside
        raise ValueError("a call that no list holds")
