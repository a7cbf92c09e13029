"""What proves that the right bytes arrived, and how they are cut into layers."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch import Tensor

from rlkd.learner import weights
from rlkd.learner.deepspeed_engine import layer_of
from rlkd.learner.weights import Checksum, checksum


def named() -> list[tuple[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    large = torch.randn(3 * weights._CHUNK + 5, generator=draw)  # several chunks and a rest
    return [("a", large), ("b", torch.randn(7, 3, generator=draw).bfloat16()), ("c", torch.tensor(2.0))]


def changed(index: int, position: int) -> list[tuple[str, Tensor]]:
    """The same weights but for the lowest bit of one word."""
    found = [(name, tensor.clone()) for name, tensor in named()]
    kind = torch.int32 if found[index][1].element_size() == 4 else torch.int16
    found[index][1].view(-1).view(kind)[position] ^= 1
    return found


@pytest.mark.parametrize(("index", "position"), [(0, 0), (0, weights._CHUNK), (0, -1), (1, 0), (1, -1), (2, 0)])
def test_one_bit_changes_it(index: int, position: int) -> None:
    assert checksum(changed(index, position)) != checksum(named())


def test_names_shapes_types_and_order_count() -> None:
    a, b, c = named()
    known = checksum([a, b, c])
    assert checksum([a, b, c]) == known
    others = [[a, c, b], [a, b], [("x", a[1]), b, c], [a, (b[0], b[1].T.contiguous().view(3, 7)), c]]
    others.append([a, (b[0], b[1].view(21)), c])
    others.append([a, (b[0], b[1].view(torch.float16)), c])
    for other in others:
        assert checksum(other) != known


def test_exchanged_words_and_chunks_change_it() -> None:
    a = named()[0][1]
    for first, second in ((0, 1), (5, weights._CHUNK + 5), (weights._CHUNK - 1, weights._CHUNK)):
        moved = a.clone()
        moved[first], moved[second] = a[second], a[first]
        assert checksum([("a", moved)]) != checksum([("a", a)])


def test_a_view_counts_as_what_it_shows() -> None:
    whole = torch.arange(24.0).view(4, 6)
    assert checksum([("a", whole.T)]) == checksum([("a", whole.T.contiguous())])
    packed = torch.arange(9.0).bfloat16()  # a weight that starts at half a word of the buffer that it came in
    assert checksum([("a", packed[1:])]) == checksum([("a", packed[1:].clone())])


def test_it_may_be_summed_up_on_the_way() -> None:
    found = Checksum()
    for name, tensor in named():
        found.add(name, tensor)
    assert found.value() == checksum(named())
    assert Checksum().value() == checksum([])


def test_layers_are_whole_and_in_order() -> None:
    """Adapters stay beside their base weight, experts beside their layer."""
    names = [
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.layers.0.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.mlp.experts.0.w1.weight",
        "base_model.model.model.layers.0.mlp.experts.11.w1.weight",
        "base_model.model.model.layers.10.norm.weight",
        "base_model.model.model.norm.weight",
        "base_model.model.lm_head.weight",
    ]
    assert [len(list(part)) for _, part in groupby(names, key=layer_of)] == [1, 4, 1, 2]
