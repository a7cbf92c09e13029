"""Whether an answer's tree means what the gold's tree means. Order of arguments counts: gold first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from reward.math.nodes import SCALARS, Node, UnparsedError
from reward.math.policy import Policy
from reward.math.scalar import free_symbols, ratio_constant, rename, rounds, same_function, same_value, scalar_equal
from reward.math.sets import ORDERS, as_set, same_set
from reward.math.structure import BOUND, parse

__all__ = ["equivalent"]
MAX_UNLIKE = 200  # items of two collections that are not spelt alike
PARAMETER = "parameter"  # the symbol of "k in Z" behind a family of values, whatever its letter
_FLIPPED = {">": "<", "ge": "le"}


def equivalent(gold: Node, answer: Node, policy: Policy) -> bool:
    """Complete agreement: a part, a superset, another bracket or another unit is no agreement."""
    gold, answer = _expand(gold), _expand(answer)
    if gold == answer:
        return True
    if gold.op == "rel" or answer.op == "rel":
        verdict = _relations(gold, answer, policy)
        if verdict is not None:
            return verdict
    if gold.op == "list" or answer.op == "list":
        return _lists(gold, answer, policy)
    if gold.op == "set" and len(gold.args) == 1 and answer.op in SCALARS:
        gold = gold.args[0]  # {2} is answered by 2; 2 is not answered by a set
    if gold.op in SCALARS and answer.op in SCALARS:
        return scalar_equal(gold, answer, policy) or _units_in_letters(gold, answer)
    if gold.op == "tuple" and answer.op == "tuple":
        return _tuples(gold, answer, policy) or _sets(gold, answer)
    if gold.op == "set" and answer.op == "set":
        return _unordered(gold.args, answer.args, policy)
    if gold.op == "matrix" and answer.op in ("matrix", "tuple"):
        answer = _as_matrix(answer)
        return gold.name == answer.name and _ordered(gold.args, answer.args, policy)
    if gold.op == "cases" and answer.op == "cases":
        return _unordered(gold.args, answer.args, policy)
    if gold.op == answer.op and gold.op in ("row", "ratio"):
        return _ordered(gold.args, answer.args, policy)
    if gold.op == "based":
        return _based(gold, answer, policy)
    return _sets(gold, answer)


def _units_in_letters(gold: Node, answer: Node) -> bool:
    """2 m without \\text reads as 2 times m: the side that has a unit is multiplied by its letters too."""
    if bool(gold.unit) == bool(answer.unit):
        return False
    worded, other = (gold, answer) if gold.unit else (answer, gold)
    try:
        unit = parse(worded.unit)
    except UnparsedError:
        return False
    return bool(free_symbols(unit)) and same_function(Node("mul", (replace(worded, unit=""), unit)), other)


def _expand(node: Node) -> Node:
    """A plus-minus inside a scalar as the list of its two values."""
    if node.op in SCALARS and node.has("pm", "mp"):
        return Node("list", (_choose(node, upper=True), _choose(node, upper=False)), ",")
    if node.op in ("list", "set") and any(arg.op in SCALARS and arg.has("pm", "mp") for arg in node.args):
        items: list[Node] = []
        for arg in node.args:
            expanded = _expand(arg)
            items.extend(expanded.args if expanded.op == "list" else [arg])
        return Node(node.op, tuple(items), node.name)
    if node.op == "rel" and node.name == "=" and node.args[-1].has("pm", "mp"):
        values = _expand(node.args[-1])
        return Node("list", tuple(Node("rel", (node.args[0], value), "=") for value in values.args), ",")
    return node


def _choose(node: Node, *, upper: bool) -> Node:
    args = tuple(_choose(arg, upper=upper) for arg in node.args)
    if node.op in ("pm", "mp"):
        plus = upper == (node.op == "pm")
        return Node("add", (args[0], args[1] if plus else Node("neg", (args[1],))))
    return Node(node.op, args, node.name, node.value, node.decimals, node.unit)


# -- relations


def _relations(gold: Node, answer: Node, policy: Policy) -> bool | None:
    """None where the other rules should decide (both sides are solution sets, or one is a labelled value)."""
    if gold.op == "rel" and answer.op == "rel":
        return _two_relations(gold, answer, policy)
    relation, other = (gold, answer) if gold.op == "rel" else (answer, gold)
    for stated in _beside_rounding(relation):
        if equivalent(stated, other, policy) if relation is gold else equivalent(other, stated, policy):
            return True
    operators = set(relation.name.split())
    if operators <= {"=", "approx", "equiv"}:
        value = _chain_value(relation, loose=relation is answer, other=other, policy=policy)
        if value is None:
            return False
        return equivalent(value, other, policy) if relation is gold else equivalent(other, value, policy)
    if relation.name == "in":
        return (
            equivalent(relation.args[1], other, policy)
            if relation is gold
            else equivalent(other, relation.args[1], policy)
        )
    if other.op == "list":
        return None
    if not policy.inequality_as_interval:
        return False
    return _sets(gold, answer)


def _beside_rounding(node: Node) -> tuple[Node, ...]:
    """4/9 and 0.444 of "x = 4/9 ≈ 0.444": the decimals are that value's, and so no second guess."""
    operators = node.name.split()
    if "approx" not in operators:
        return ()
    at = operators.index("approx")
    value, *decimals = node.args[at:]
    if value.op not in SCALARS or not all(rounds(decimal, value) for decimal in decimals):
        return ()
    stated = replace(node, args=node.args[: at + 1], name=" ".join(operators[:at])) if at else value
    return stated, *decimals


def _chain_value(node: Node, *, loose: bool, other: Node, policy: Policy) -> Node | None:
    """The value that ``x = 5``, ``f(x) = 2x + 1``, ``2 + 3 = 5`` or ``A = ab = 12`` states; None if contradictory."""
    last = node.args[-1]
    for index, side in enumerate(node.args[:-1]):
        if side.op in ("text", "call") or (side.op == "sym" and index == 0 and side.name not in free_symbols(last)):
            continue
        if index == 0 and _is_segment(side) and not free_symbols(last):
            continue
        point = side.op == last.op == "tuple" and index == 0 and len(side.args) == len(last.args)
        if point and all(arg.op == "sym" for arg in side.args):  # (x, y) = (1, 2)
            continue
        if side.op not in SCALARS or last.op not in SCALARS:
            return None
        if free_symbols(side) and not free_symbols(last):
            zero = side.op == "add" and last.op == "num" and last.value == 0  # an equation, not a value
            asked = len(free_symbols(side)) > 1 or (
                side.op == "fn" and side.name != "abs"
            )  # x^2 = 5 is to be solved yet
            if loose and asked and not zero and not free_symbols(other):  # a + b = 5 answers "find a + b"
                continue
            return None
        if not same_value(side, last, policy):
            return None
    return last


def _is_segment(node: Node) -> bool:
    """AB, the length between two points."""
    return node.op == "mul" and all(arg.op == "sym" and len(arg.name) == 1 and arg.name.isupper() for arg in node.args)


def _two_relations(gold: Node, answer: Node, policy: Policy) -> bool | None:
    ours, theirs = _steps(gold), _steps(answer)
    if gold.name == answer.name == "to":
        return _ordered(gold.args, answer.args, policy)
    if "in" in (gold.name, answer.name):
        return (
            _sets(gold, answer)
            if gold.name != answer.name
            else (equivalent(gold.args[0], answer.args[0], policy) and equivalent(gold.args[1], answer.args[1], policy))
        )
    if all(operator == "=" for _, operator, _ in ours + theirs):
        return _equations(gold, answer, policy)
    if len(ours) == len(theirs) and _match_all(ours, theirs):
        return True
    return _sets(gold, answer)


def _equations(gold: Node, answer: Node, policy: Policy) -> bool:
    left, right = gold.args[0], answer.args[0]
    named = left.op in ("text", "call", "sym") and right.op in ("text", "call", "sym")
    if left.op == right.op == "call" and left.name != right.name and left.name[0] == right.name[0]:
        return False  # f' is not f
    if named and (left == right or "text" in (left.op, right.op) or "call" in (left.op, right.op)):
        values = [_chain_value(node, loose=False, other=node.args[-1], policy=policy) for node in (gold, answer)]
        if values[0] is not None and values[1] is not None and equivalent(values[0], values[1], policy):
            return True
    ours, theirs = _steps(gold), _steps(answer)
    return len(ours) == len(theirs) and _match_all(ours, theirs)


Step = tuple[Node, str, Node]


def _steps(node: Node) -> list[Step]:
    """A chain as its single comparisons, every one turned to <, le or =."""
    steps: list[Step] = []
    for left, operator, right in zip(node.args, node.name.split(), node.args[1:], strict=False):
        if operator in _FLIPPED:
            left, operator, right = right, _FLIPPED[operator], left
        steps.append((left, operator, right))
    return steps


def _match_all(ours: list[Step], theirs: list[Step]) -> bool:
    rest = list(theirs)
    for step in ours:
        found = next((other for other in rest if _same_step(step, other)), None)
        if found is None:
            return False
        rest.remove(found)
    return True


def _same_step(one: Step, two: Step) -> bool:
    """left - right agree up to a factor; for an order the factor must be positive."""
    if one[1] != two[1] or any(side.op not in SCALARS for side in (one[0], one[2], two[0], two[2])):
        return one == two
    factor = ratio_constant(*(Node("add", (step[0], Node("neg", (step[2],)))) for step in (one, two)))
    if factor is None:
        return False
    return one[1] not in ORDERS or (getattr(factor, "imag", 0) == 0 and bool(factor > 0))


def _sets(gold: Node, answer: Node) -> bool:
    """As sets of numbers. Conditions on different symbols are different: y > 2 does not answer x > 2."""
    symbols = [free_symbols(node) - {BOUND} for node in (gold, answer)]
    if all(symbols) and symbols[0] != symbols[1]:
        return False
    left, right = as_set(gold), as_set(answer)
    return left is not None and right is not None and same_set(left, right)


# -- collections


def _lists(gold: Node, answer: Node, policy: Policy) -> bool:
    """Bare lists are unordered unless a dot dot dot makes them sequences; sets count as lists, tuples by policy."""
    if gold.op == "list" and answer.op == "list":
        family, other = _family(gold), _family(answer)
        if family and other:
            return family[1] == other[1] and equivalent(family[0], other[0], policy)
        if all(arg.op == "rel" and set(arg.name.split()) & ORDERS for arg in (*gold.args, *answer.args)):
            joined = {gold.name, answer.name} != {"and", "or"} and _unordered(gold.args, answer.args, policy)
            return joined or _sets(gold, answer)
        ours, theirs = _strip_shared_label(gold.args), _strip_shared_label(answer.args)
        if any(arg.op == "ellipsis" for arg in (*ours, *theirs)):
            return _ordered(ours, theirs, policy)
        return _unordered(ours, theirs, policy) or _unordered(gold.args, answer.args, policy)
    listed, single = (gold, answer) if gold.op == "list" else (answer, gold)
    items = _strip_shared_label(listed.args)
    pair = (items, single.args) if listed is gold else (single.args, items)
    if single.op == "set":
        return _unordered(*pair, policy)
    if single.op == "tuple" and policy.list_as_tuple and single.name == "()":
        return _ordered(*pair, policy)
    if single.op in ("rel", "union", "inter", "minus", "tuple", "reals") and listed.args[0].op == "rel":
        return policy.inequality_as_interval and _sets(gold, answer)
    return False


def _family(node: Node) -> tuple[Node, Node] | None:
    """The values and the numbers of "k pi, k in Z"; None for other lists."""
    declared = [arg for arg in node.args if arg.op == "rel" and arg.name == "in" and _is_parameter(arg)]
    rest = [arg for arg in node.args if arg not in declared]
    if len(declared) != 1 or not rest:
        return None
    values = rest[0] if len(rest) == 1 else Node("list", tuple(rest), node.name)
    return rename(values, declared[0].args[0].name, PARAMETER), declared[0].args[1]


def _is_parameter(node: Node) -> bool:
    return all(arg.op == "sym" for arg in node.args) and node.args[1].name in ("bbZ", "bbN")


def _strip_shared_label(items: Sequence[Node]) -> tuple[Node, ...]:
    """x = 1, x = 2 as 1, 2: only when every labelled item has one and the same symbol."""
    labels = {item.args[0] for item in items if item.op == "rel"}
    simple = all(item.op != "rel" or (item.name == "=" and item.args[0].op in ("sym", "call")) for item in items)
    if len(labels) == 1 and simple:
        return tuple(item.args[-1] if item.op == "rel" else item for item in items)
    return tuple(items)


def _tuples(gold: Node, answer: Node, policy: Policy) -> bool:
    brackets = gold.name == answer.name or len(gold.args) > 2
    return brackets and _ordered(gold.args, answer.args, policy)


def _ordered(ours: Sequence[Node], theirs: Sequence[Node], policy: Policy) -> bool:
    if len(ours) != len(theirs):
        return False
    unlike = [(one, two) for one, two in zip(ours, theirs, strict=True) if one != two]
    return len(unlike) <= MAX_UNLIKE and all(equivalent(one, two, policy) for one, two in unlike)


def _unordered(ours: Sequence[Node], theirs: Sequence[Node], policy: Policy) -> bool:
    if len(ours) != len(theirs):
        return False
    unmatched = Counter(theirs)
    unlike = [one for one in ours if not _take(unmatched, one)]
    if len(unlike) > MAX_UNLIKE:
        return False
    rest = list(unmatched.elements())
    for one in unlike:
        found = next((two for two in rest if equivalent(one, two, policy)), None)
        if found is None:
            return False
        rest.remove(found)
    return True


def _take(items: Counter[Node], item: Node) -> bool:
    """Remove one of this spelling, if there is one."""
    if not items[item]:
        return False
    items[item] -= 1
    return True


def _as_matrix(node: Node) -> Node:
    """[[1, 2], [3, 4]] as the matrix of these rows."""
    if node.op != "tuple" or not all(arg.op == "tuple" and arg.name == node.name == "[]" for arg in node.args):
        return node
    return Node("matrix", tuple(Node("row", row.args) for row in node.args))


def _based(gold: Node, answer: Node, policy: Policy) -> bool:
    if answer.op == "based":
        return (gold.name, gold.args) == (answer.name, answer.args)
    plain = answer.op == "num" and answer.value.denominator == 1 and answer.decimals < 0
    return policy.bare_base_digits and plain and gold.name == str(answer.value)
