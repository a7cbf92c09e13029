"""A real vLLM server: the one that samples traces, teaches, comments and judges over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reward.llm_judge import LlmJudge
from reward.verdict import Verdict
from rlkd.data.curate.generate import ServedSampler
from rlkd.errors import TeacherError
from rlkd.models import load_tokenizer
from rlkd.recipe.privileged import JudgeFeedback, ServerTeacher
from rlkd.records import Example
from rlkd.rollout.feedback import Attempt, JudgeCritic
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.teacher.server_teacher import ServerTeacherWorker
from rlkd.teacher.transformers_teacher import TransformersTeacher
from rlkd.trainer.contract import check_spelling

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with a byte-level tokenizer and a chat template: enough for a real server.

    It says what can be read: a client sees nothing of special tokens, blanks and half characters.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("served")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate([*letters, "<|end|>"])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(  # one head of 64: what the CPU attention kernel takes
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=2048, eos_token_id=len(letters), pad_token_id=len(letters),
    )  # fmt: skip
    torch.manual_seed(0)
    network = LlamaForCausalLM(config)
    said = [tokenizer.decode([token], skip_special_tokens=True).strip() for token in range(len(vocabulary))]
    unspoken = [token for token, text in enumerate(said) if not (text and text.isascii() and text.isprintable())]
    network.lm_head.weight.data[unspoken] = 0.0  # a logit of 0, never the largest
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vllm_url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--model": str(model), "--served-model-name": "teacher", "--port": str(port), "--host": "127.0.0.1",
        "--max-model-len": "2048", "--dtype": "float32", "--max-num-seqs": "8",
        "--structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [word for pair in options.items() for word in pair]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                text = (folder / "log").read_text()[-3000:]
                assert process.poll() is None and time.monotonic() < deadline, text
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_it_samples(vllm_url: str) -> None:
    """Greedy samples repeat, limits cut and are reported, and a seed fixes a hot sample."""
    sampler = ServedSampler(vllm_url, "teacher", concurrency=4)
    prompts = ["What is 2 + 3?", "Name a colour."]
    cold = [sampler(prompts, max_tokens=[8, 16], temperature=0.0, seed=0) for _ in range(2)]
    assert cold[0] == cold[1]
    for each, limit in zip(cold[0], (8, 16), strict=True):
        assert each.finished or each.tokens == limit
        assert each.tokens <= limit
    hot = [sampler(prompts * 2, max_tokens=[16] * 4, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


def test_it_teaches(vllm_url: str, model: Path) -> None:
    """Its prompt log-probs, sampled and top-k, are those of the learner's own pass over the same weights."""
    settings = EngineSettings(str(model), "float32", 256, 8, on_gpu=False)
    local = TransformersTeacher(settings, temperature=1.0, tokens_per_batch=256)
    served = ServerTeacherWorker(ServerTeacher(url=vllm_url, model="teacher", tokenizer=str(model)))
    pairs = [((5, 9, 30), (40, 41, 7)), ((8,), (12,)), ((60, 61), (3, 3, 3, 3, 50))]
    for mine, theirs in zip(served.score(pairs), local.score(pairs), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    for mine_k, theirs_k in zip(served.top_k(pairs, k=8), local.top_k(pairs, k=8), strict=True):
        assert mine_k.ids == theirs_k.ids
        for one, other in zip(mine_k.logprobs, theirs_k.logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    check_spelling(load_tokenizer(model), pairs, served.spelled(pairs), where="teacher.model")
    shifted = [(prompt, tuple(token + 1 for token in done)) for prompt, done in pairs]
    with pytest.raises(TeacherError, match="another tokenizer"):
        check_spelling(load_tokenizer(model), shifted, served.spelled(pairs), where="teacher.model")
    with pytest.raises(TeacherError, match=r"answered 40\d.*"):
        served.top_k(pairs, k=64)  # more than the server's --max-logprobs allows


def test_it_comments(vllm_url: str) -> None:
    """What a random model says is noise, but it comes back as one text an attempt, cut where the recipe says."""
    example = Example("e", "What is 6 times 7?", "42")
    attempts = [Attempt(example, f"try {at}", Verdict.wrong("41")) for at in range(3)]
    spec = JudgeFeedback(url=vllm_url, model="teacher", instructions="Name the error.", max_tokens=12)
    said = JudgeCritic(spec).comment(attempts)
    assert len(said) == 3
    assert all(text and len(text) <= 12 for text in said)  # a token a character


def test_it_judges_in_the_schema(vllm_url: str) -> None:
    """A random model cannot judge, but held to the schema it must say one of the labels, every time."""
    matcher = LlmJudge(url=vllm_url, model="teacher", timeout_s=120.0)
    rater = LlmJudge(url=vllm_url, model="teacher", timeout_s=120.0, scale=3, rubric="length")
    example = {"question": "1+1?", "answer": "2"}
    verdicts = [matcher.verify(f"It is {n}.", example) for n in range(4)]
    assert [verdict.detail for verdict in verdicts if verdict.abstained] == []
    assert {verdict.score for verdict in verdicts} <= {0.0, 1.0}
    assert rater.verify("A text.", {}).score in (0.0, 0.5, 1.0)
    wrong_name = LlmJudge(url=vllm_url, model="nobody", timeout_s=120.0).verify("2", example)
    assert wrong_name.abstained
    assert "HTTP 404" in wrong_name.detail
