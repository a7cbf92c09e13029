"""Pairs of freshly sampled traces. Each part of the problems is kept once it is judged: a kill costs one part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from reward.verdict import Verdict
from rlkd.cluster import gather
from rlkd.data.rows import Row, write_rows
from rlkd.recipe.offline import SampledPairs
from rlkd.recipe.schema import OfflineStage
from rlkd.records import Prompt, RolloutGroup
from rlkd.trainer.context import Run
from rlkd.trainer.contract import check_teacher_tokenizer
from rlkd.trainer.fleet import Published, Sampling, sample
from rlkd.trainer.pair_file import Pair, PairReport
from rlkd.trainer.sampling import derive_seed

CHUNK = 256  # problems sampled and judged at once


def sampled_pairs(
    run: Run, stage: OfflineStage, spec: SampledPairs, place: Path, report: PairReport, models: dict[str, Path]
) -> Iterator[Pair]:
    """Traces of ``data.train`` from one of the recipe's models; tokens go to the learner as they were sampled.

    Args:
        place: folder of the finished parts; what is there already is not sampled again.
        report: counts every part.
    """
    prompts, source = run.train_prompts[: spec.problems], None
    with run.console.bar(f"{stage.name}: traces", len(prompts)) as bar:
        for start in range(0, len(prompts), CHUNK):
            part = prompts[start : start + CHUNK]
            end = start + len(part)
            kept = place / f"{start:06d}-{end:06d}.jsonl"
            known = kept.is_file()
            if not known:
                source = source or _engines(run, spec, models)
                write_rows(kept, _sample_part(run, source, stage, spec, part))
            with kept.open(encoding="utf-8") as stream:
                counts, *pairs = map(json.loads, stream)
            run.abstained += counts["abstained"] if known else 0  # else the run counted them as it judged
            report.add(PairReport(**counts))
            yield from map(Pair.of, pairs)
            bar.update(end, f"{report.traces['right']:,} right, {report.traces['wrong']:,} wrong")
    if source is not None and source is not run:
        assert source.rollouts is not None
        source.rollouts.stop()
        run.turn("wake")


def _engines(run: Run, spec: SampledPairs, models: dict[str, Path]) -> Run:
    """The run's own engines with the policy's weights, or the teacher's, for as long as it samples."""
    folder, source = models[spec.model], run
    if spec.model == "teacher":
        check_teacher_tokenizer(models["policy"], folder)
        run.turn("sleep")
        source = dataclasses.replace(run, rollouts=None)
    source.start_rollouts(folder, kind="TraceWorker" if spec.model == "teacher" else "RolloutWorker")
    assert source.rollouts is not None
    gather(source.rollouts.publish(Published(str(folder), version=0), None), source.rollouts.deadline_s)
    return source


def _sample_part(run: Run, source: Run, stage: OfflineStage, spec: SampledPairs, part: Sequence[Prompt]) -> list[Row]:
    """The part's counts, then its pairs, as rows of a file. Seeds are the problems' own."""
    seeds = [derive_seed(run.recipe.seed, stage.name, "pairs", prompt.example.id) for prompt in part]
    sampling = Sampling(spec.samples, spec.temperature, stage.max_response_tokens)
    assert source.rollouts is not None
    groups = sample(source.rollouts, part, seeds, sampling, run.tokenizer).groups()
    verdicts, report = iter(run.verify(groups)), PairReport()
    pairs: list[Pair] = []
    for group in groups:
        pairs += _group_pairs(group, list(islice(verdicts, len(group.rollouts))), spec, report)
    return [vars(report), *map(dataclasses.asdict, pairs)]


def _group_pairs(
    group: RolloutGroup, verdicts: list[Verdict], spec: SampledPairs, report: PairReport
) -> Iterator[Pair]:
    """Different right traces against different wrong ones. One that was cut off is neither: it never ended."""
    kinds: dict[str, dict[tuple[int, ...], None]] = {"right": {}, "wrong": {}, "neither": {}, "cut off": {}}
    for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
        kind = "neither" if verdict.score is None else "right" if verdict.score >= 1.0 else "wrong"
        kind = "cut off" if rollout.truncated else kind
        report.traces[kind] += 1
        kinds[kind].setdefault(rollout.completion_ids)
        report.generated += len(rollout.completion_ids)
        report.abstained += verdict.abstained
    found = list(zip(kinds["right"], kinds["wrong"], strict=False))[: spec.pairs_per_problem]
    if not found:
        report.excluded["problem without a right and a wrong trace"] += 1
    for number, (right, wrong) in enumerate(found):
        example = group.prompt.example
        yield Pair(f"{example.id}-{number}", example.question, group.prompt.token_ids, right, wrong)
