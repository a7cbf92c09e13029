"""Weights from the learners to the rollout engines, by the recipe's transport; the engines' answers prove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkd.cluster import gather
from rlkd.learner.weights import Route
from rlkd.records import Prompt, TrainRow
from rlkd.trainer.context import Run
from rlkd.trainer.contract import Bounds, compare
from rlkd.trainer.fleet import Fleet, Published
from rlkd.trainer.learners import Learners

Probe = tuple[tuple[int, ...], tuple[int, ...]]


def probe_of(run: Run, prompt: Prompt) -> Probe:
    """A fixed prompt and completion, scored after every publication."""
    has_solution = prompt.example.solution is not None
    completion = run.builder.completion_ids(prompt.example, prompt) if has_solution else prompt.token_ids
    return prompt.token_ids, tuple(completion[: min(32, run.recipe.rollout.max_new_tokens)])


@dataclass
class Publication:
    """Between one stage's learners and the run's engines."""

    run: Run
    learners: Learners
    probe: Probe
    joined: int | None = None  # how many engines had been replaced when the group met

    def publish(self, fleet: Fleet, version: int) -> None:
        """Weights to every engine, and proof that each now computes with them. Raises: RlkdError where one does not."""
        recipe = self.run.recipe
        fleet.revive()
        published = self._send(fleet, version)
        row = TrainRow(0, self.probe[0], self.probe[1], (0.0,) * len(self.probe[1]), advantage=0.0)
        expected = self.learners.submit("score", [row])
        use_probe = self.probe if recipe.rollout.temperature == 1.0 else None
        answers = gather(fleet.publish(published, use_probe), recipe.cluster.step_deadline_s)
        known = gather(expected, recipe.cluster.step_deadline_s)[0]
        if use_probe is not None:
            for worker, answer in zip(fleet.workers, answers, strict=True):
                names = (f"{worker.name} after loading version {version}", "the learner")
                compare([answer], known, names=names, bounds=Bounds.of(recipe))

    def _send(self, fleet: Fleet, version: int) -> Published:
        if fleet.settings.transport == "object_store":
            return Published(self._export(), version)
        if self.joined != fleet.replaced:
            self._join(fleet)
        sent = self.learners.submit("send_weights")
        gather(sent, self.run.recipe.cluster.step_deadline_s)  # here an error still names the learner
        return Published(sent[0].ref, version, again=self._export)

    def _join(self, fleet: Fleet) -> None:
        """Learners and engines meet; anew when an engine was replaced, whom the others' group does not know."""
        cluster = self.run.recipe.cluster
        route = Route(
            transport=fleet.settings.transport,
            engines=tuple(fleet.workers),
            devices=fleet.settings.tensor_parallel,
            address=self.run.cluster.address(self.learners.workers[0]),
            deadline_s=cluster.step_deadline_s,
        )
        idle = [engine.submit("score", []) for engine in fleet.workers]
        gather(idle, cluster.step_deadline_s)  # they may still be sampling, and a rendezvous has a deadline of its own
        gather(self.learners.submit("join_engines", route), cluster.start_deadline_s)
        self.joined = fleet.replaced

    def _export(self) -> Any:
        return self.learners.submit("export_weights")[0].ref
