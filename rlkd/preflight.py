"""What a recipe names: files, cards, verifiers, models. Looked up before data are read or a model is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reward.registry import load as load_verifier
from rlkd.data.cards import load_card
from rlkd.data.source import Source, card_folder, source_file
from rlkd.errors import DataCardError, RecipeError, VerifierError
from rlkd.models.materialise import find_model
from rlkd.models.window import check_windows
from rlkd.recipe import Recipe
from rlkd.recipe.checks import has_rl, needs_teacher
from rlkd.recipe.data import CardData, FileData
from rlkd.recipe.models import ModelSpec, PretrainedModel, TeacherSpec
from rlkd.recipe.offline_checks import samples
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.recipe.schema import SftStage


def check_references(recipe: Recipe, root: Path) -> None:
    """Whether everything that the recipe names is there; hub models and hub data are left to their download.

    Args:
        root: the folder that relative paths start at: the recipe's.

    Raises: RecipeError with one line for each name that stands for nothing.
    """
    data = root / recipe.data.dir if recipe.data.dir else root
    faults = [*_data(recipe, data), *_verifier(recipe), *_models(recipe)]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise RecipeError(f"{recipe.name} names what is not there:\n{lines}")
    folders = {
        name: Path(spec.path).expanduser()
        for name, spec in model_specs(recipe).items()
        if isinstance(spec, PretrainedModel) and not spec.config and Path(spec.path).expanduser().is_dir()
    }
    check_windows(recipe, folders)


def model_specs(recipe: Recipe) -> dict[str, ModelSpec]:
    """Models by name: the policy, and every teacher that runs here and that a stage reads."""
    named = separate_teachers(recipe).items()
    read = needs_teacher(recipe) or samples(recipe, "teacher") or not has_rl(recipe)
    teachers = {name: spec.model for name, spec in named if isinstance(spec, TeacherSpec) and read}
    return {"policy": recipe.policy} | teachers


def where_of(name: str) -> str:
    """The dotted place of a model's section."""
    return name if name == "policy" else "teacher.model" if name == "teacher" else f"teacher.teachers.{name}.model"


def _data(recipe: Recipe, root: Path) -> Iterator[str]:
    own = {f"stages.{stage.name}.data": stage.data for stage in recipe.stages if isinstance(stage, SftStage)}
    sides: dict[str, Sequence[Source] | None] = {"data.train": recipe.data.train, "data.eval": recipe.data.eval}
    for where, sources in (sides | own).items():
        for index, source in enumerate(sources or ()):
            here = f"{where}.{index}" if len(sources or ()) > 1 else where
            try:
                if isinstance(source, FileData):
                    source_file(source.path, here, root)
                elif isinstance(source, CardData):
                    _card(source, root)
            except RecipeError as error:
                yield str(error)
            except DataCardError as error:
                yield f"{here}.name: {error}"


def _card(source: CardData, root: Path) -> None:
    card = load_card(source.name)
    if card.source.file is not None:
        card.path(card_folder(card, root))


def _verifier(recipe: Recipe) -> Iterator[str]:
    try:
        load_verifier({"name": recipe.verifier.kind, **recipe.verifier.options})
    except VerifierError as error:
        yield f"verifier.kind: {error}"


def _models(recipe: Recipe) -> Iterator[str]:
    for name, spec in model_specs(recipe).items():
        try:
            find_model(spec, where=where_of(name))
        except RecipeError as error:
            yield str(error)
