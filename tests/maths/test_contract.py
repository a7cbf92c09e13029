"""Every public function meets bad input: a refusal that names the argument, or a limit that stays visible."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from contract_cases import FUNCTIONS, GOOD, REFUSED, V
from torch import Tensor

from rlkd.errors import NumericsError

pytestmark = pytest.mark.usefixtures("unchecked")


def tensors_in(arguments: dict[str, Any]) -> Iterator[tuple[str, str, Tensor]]:
    """(argument, field of it or "", tensor) of every tensor in a call."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, "", value
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            yield from ((name, field, tensor) for field, tensor in zip(value._fields, value, strict=True))


def call(function: str, name: str = "", field: str = "", value: Any = None) -> Any:
    """The good call, with one argument or one field of it changed."""
    arguments = GOOD[function]
    if field:
        value = arguments[name]._replace(**{field: value})
    return FUNCTIONS[function](**(arguments | ({name: value} if name else {})))


def numbers(result: Any) -> Tensor:
    """Every floating-point number of a result, in a row."""
    parts = [part for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, Tensor)]
    return torch.cat([part.flatten().double() for part in parts if part.is_floating_point()] or [torch.zeros(1)])


def cases(*kinds: torch.dtype, without: Collection[str] = ()) -> list[Any]:
    return [
        pytest.param(function, name, field, id=f"{function}, {field or name}")
        for function in sorted({*GOOD} - {*without})
        for name, field, tensor in tensors_in(GOOD[function])
        if not kinds or tensor.dtype in kinds
    ]


def given(function: str, name: str, field: str) -> Tensor:
    value = GOOD[function][name]
    tensor: Tensor = getattr(value, field) if field else value
    return tensor


def test_every_public_function_has_a_good_call() -> None:
    """The contract is complete: every function and every one of its arguments, positional or by default."""
    assert set(GOOD) == set(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        parameters = inspect.signature(function).parameters
        optional = {"start", "with_entropy", "name", "of"}  # nothing can be wrong with these
        variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert variadic or set(parameters) - set(GOOD[name]) <= optional, name


@pytest.mark.parametrize("function", sorted(GOOD))
def test_good_calls_are_good(function: str) -> None:
    assert numbers(call(function)).isfinite().all()


# A tensor alone has no shape that it must fit.
ALONE = {"as_float", "top_support", "prior_weights", "gradient_magnitude_weights"}
ALONE |= {"soft_overlong_penalty", "fresh_enough", "mixed_source_weights"}
# Where a shorter tensor is another good call, and why.
SHORTER_IS_FINE = {
    ("mix_teachers", "teacher_logits", "last"): "a smaller vocabulary",
    ("cross_entropy", "policy_logprobs", "last"): "fewer tokens a row",
    ("to_tokens", "response_mask", "last"): "fewer tokens a row",
    ("boundary_logmass", "next_logits", "first"): "fewer chunks",
    ("chunked_top_support", "hidden", "first"): "fewer positions",
    ("trilateral_weights", "features", "first"): "fewer rows",
}


@pytest.mark.parametrize(("function", "name", "field"), cases())
def test_shapes_that_do_not_fit_are_refused(function: str, name: str, field: str) -> None:
    """One entry fewer along the first axis, along the last, and one axis more: nothing broadcasts, nothing is cut."""
    tensor = given(function, name, field)
    changes = {"axis": tensor[None]}
    if tensor.ndim:
        changes |= {"first": tensor[:-1], "last": tensor[..., :-1]}
    for change, value in changes.items():
        if (function, name, change) in SHORTER_IS_FINE:
            assert numbers(call(function, name, field, value)).isfinite().all()
        elif function not in ALONE:
            with pytest.raises(NumericsError, match=any_name(function)):
                call(function, name, field, value)


def any_name(function: str) -> str:
    """A pattern for a message that names one of the call's tensors."""
    return rf"\b({'|'.join(field or name for name, field, _ in tensors_in(GOOD[function]))})\b"


# Ground work that takes any number: statistics count tokens and booleans.
COUNTABLE = {"as_float", "select", "masked_sum", "masked_mean", "require_mask", "require_same_shape"}


@pytest.mark.parametrize(("function", "name", "field"), cases(torch.float32, torch.float64, without=COUNTABLE))
def test_whole_numbers_for_floats_are_refused(function: str, name: str, field: str) -> None:
    with pytest.raises(NumericsError, match=rf"\b{field or name}\b"):
        call(function, name, field, given(function, name, field).long())


@pytest.mark.parametrize(("function", "name", "field"), cases(torch.bool))
def test_masks_of_numbers_are_refused(function: str, name: str, field: str) -> None:
    for dtype in (torch.float32, torch.int64):
        with pytest.raises(NumericsError, match=rf"\b{field or name}\b.*torch\.bool"):
            call(function, name, field, given(function, name, field).to(dtype))


@pytest.mark.parametrize(("function", "name", "field"), cases(torch.int64))
def test_ids_that_are_not_whole_are_refused(function: str, name: str, field: str) -> None:
    for dtype in (torch.float64, torch.bool):
        with pytest.raises(NumericsError, match=rf"\b{field or name}\b.*integers"):
            call(function, name, field, given(function, name, field).to(dtype))


@pytest.mark.parametrize(("function", "name", "field"), cases(torch.bool))
def test_empty_masks_and_rows_are_no_problem(function: str, name: str, field: str) -> None:
    """All false, and one row all false: a documented limit (0, or an entry without mass), never NaN."""
    mask = given(function, name, field)
    one_row = mask.clone()
    one_row[0] = False
    if function == "boundary_logmass":
        with pytest.raises(NumericsError, match="hold a true"):
            call(function, name, field, torch.zeros_like(mask))
        return
    for empty in (torch.zeros_like(mask), one_row):
        assert not numbers(call(function, name, field, empty)).isnan().any()


# Their result holds no floating-point number that could show it.
SHOW_NOTHING = {"top_support", "chunked_top_support", "require_mask", "require_same_shape"}


@pytest.mark.parametrize(("function", "name", "field"), cases(torch.float32, torch.float64))
def test_what_is_not_finite_stays_visible(function: str, name: str, field: str) -> None:
    """NaN in an entry that counts, and an infinite advantage: refused, or the result is not finite either."""
    for fault in (float("nan"), *([float("inf"), -float("inf")] if name == "advantages" else [])):
        value = given(function, name, field).clone()
        value.view(-1)[0] = fault
        try:
            result = numbers(call(function, name, field, value))
        except NumericsError:
            continue
        assert function in SHOW_NOTHING or not result.isfinite().all()


@pytest.mark.parametrize("function", [f for f in sorted(GOOD) if any("logits" in name for name in GOOD[f])])
def test_impossible_entries_have_no_mass_and_no_gradient(function: str) -> None:
    """Both sides rule out one entry (-inf): no NaN comes out, nor back."""
    arguments = dict(GOOD[function])
    trained = []
    for name, value in GOOD[function].items():
        if "logits" not in name and name != "valid":
            continue
        value = value.clone()
        value[..., 1] = False if name == "valid" else -torch.inf
        if name == "valid" or name == "teacher_logits" or not value.is_floating_point():
            arguments[name] = value
            continue
        arguments[name] = value.requires_grad_()
        trained.append(arguments[name])
    result = numbers(FUNCTIONS[function](**arguments))
    assert not result.isnan().any()
    if not result.requires_grad:
        return
    for gradient in torch.autograd.grad(result[result > -torch.inf].sum(), trained):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


SETTINGS = [
    pytest.param(function, name, value, id=f"{function}, {name}={value}")
    for function in sorted(GOOD)
    for name, setting in GOOD[function].items()
    if isinstance(setting, bool | int | float | str)
    for value in REFUSED.get(f"{function}.{name}", REFUSED.get(name, ["not in the table"]))
]


@pytest.mark.parametrize(("function", "name", "value"), SETTINGS)
def test_settings_out_of_range_are_refused(function: str, name: str, value: Any) -> None:
    with pytest.raises(NumericsError):
        call(function, name, value=value)


IDS = [
    ("chunked_logprobs", "targets", ""),
    ("plackett_luce", "first", ""),
    ("bucketed", "support", "ids"),
    ("chunked_bucketed", "support", "ids"),
]


@pytest.mark.parametrize(("function", "name", "field"), IDS)
@pytest.mark.parametrize("outside", [-1, V])
def test_ids_outside_the_vocabulary_are_refused(function: str, name: str, field: str, outside: int) -> None:
    ids = given(function, name, field).clone()
    ids.view(-1)[1] = outside
    with pytest.raises(NumericsError, match=rf"{field or name}.*{outside}.*\[0, {V}\)"):
        call(function, name, field, ids)


LISTS = [
    ("align_chunks", "teacher_spans"),
    ("align_chunks", "policy_spans"),
    ("merge_uncertain", "chunks"),
    ("chunked_rows", "extras"),
    ("chunked_rows", "teachers"),
]


@pytest.mark.parametrize(("function", "name"), LISTS)
def test_lists_of_unequal_length_are_refused(function: str, name: str) -> None:
    items = GOOD[function][name]
    shorter = items[:-1] if len(items) > 1 else [_fewer_rows(items[0])]
    with pytest.raises(NumericsError):
        call(function, name, value=shorter)


def _fewer_rows(item: Any) -> Any:
    return item[:-1] if isinstance(item, Tensor) else item._replace(hidden=item.hidden[:-1])
