"""What types cannot tell of a recipe: values that contradict each other, and files that are not there."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from transllm.recipe.schema import Recipe, Source, TrainStage


def check_recipe(recipe: Recipe) -> list[str]:
    """All problems of a recipe beyond its types, one or two plain sentences each; an empty list means that it can run.

    Looks at the recipe and at the local files it names; downloads and loads nothing. What its stages need of the machine is another
    question, see ``missing_here``: a stage that is done needs nothing, and a recipe can be planned elsewhere.
    """
    return [*_language(recipe), *_model(recipe), *_sources(recipe), *_data(recipe), *_extend(recipe), *_stages(recipe),
            *_recovery(recipe), *_bridge(recipe)]


def notices(recipe: Recipe) -> list[str]:
    """What a recipe gives up by its choice of what trains: no errors, but nothing to learn from a result."""
    training, said = recipe.training, []
    if training.train == "full":
        said.append("training.train is 'full': the original chat model is no longer inside what trains, so it cannot be had by turning an "
                    "adapter off. recover and evaluate load it by itself. Each training stage's folder holds all weights in float32.")
    elif training.embeddings == "all":
        said.append("training.embeddings is 'all': the original's own rows change, so with the adapter off the model is no longer the "
                    "original. recover and evaluate load it by itself.")
    if training.quantize != "none":
        said.append("training.quantize is 'nf4': an adapter learns on rounded weights and is merged into those that were not rounded. What "
                    "evaluate measures is the merged model; the log's bits per byte are of the rounded one.")
    return said


def sources_of(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """Every source of a recipe with its path, e.g. ``("data.parallel[0]", ...)``."""
    for name in ("parallel", "target", "english"):
        for index, source in enumerate(getattr(recipe.data, name)):
            yield f"data.{name}[{index}]", source
    if recipe.extend.lexicon is not None:
        yield "extend.lexicon", recipe.extend.lexicon
    for index, source in enumerate(recipe.bitext.lexicon):
        yield f"bitext.lexicon[{index}]", source
    for index, prompt in enumerate(recipe.recover.prompts):
        if isinstance(prompt, Source):
            yield f"recover.prompts[{index}]", prompt
    for name in ("delicate", "system_prompts"):
        if isinstance(source := getattr(recipe.recover, name), Source):
            yield f"recover.{name}", source
    if recipe.evaluate.test_pairs is not None:
        yield "evaluate.test_pairs", recipe.evaluate.test_pairs
    if recipe.evaluate.queries is not None:
        yield "evaluate.queries", recipe.evaluate.queries


def _language(recipe: Recipe) -> Iterator[str]:
    if isinstance(recipe.language, dict):
        for key in ("code", "name", "native"):
            if not isinstance(recipe.language[key], str) or not recipe.language[key].strip():
                yield f"language.{key} must be a text, but is {recipe.language[key]!r}."
        for key in ("latin", "spaced"):
            if not isinstance(recipe.language.get(key, True), bool):
                yield f"language.{key} must be true or false, but is {recipe.language[key]!r}."
        code = recipe.language["code"]
        if isinstance(code, str) and not re.fullmatch(r"[a-z]{2,8}(-[a-z0-9]+)*", code):
            yield f"language.code must be lower-case letters (ISO 639, such as 'quy'), but is '{code}'; the marker is made of it."
        if code in ("en", "response"):
            yield f"language.code '{code}' gives the marker <{str(code).upper()}>, which the method uses itself. Choose another code."


def _model(recipe: Recipe) -> Iterator[str]:
    source = recipe.model.source
    local = source.startswith((".", "/", "~")) or source.endswith(".gguf")
    if source.startswith("package:"):
        if not re.fullmatch(r"package:[^=\s]+==[^=\s]+", source):
            yield f"model.source '{source}' does not pin the package. Write package:NAME==VERSION."
    elif local and not (recipe.folder / Path(source).expanduser()).exists():
        yield f"model.source: there is no '{(recipe.folder / Path(source).expanduser()).absolute()}'. Mend the path."
    template = recipe.model.chat_template
    if template is not None and "{" not in template and not (recipe.folder / template).is_file():
        yield f"model.chat_template: there is no file '{(recipe.folder / template).absolute()}'. Mend the path, or give the text."


def _sources(recipe: Recipe) -> Iterator[str]:
    for where, source in sources_of(recipe):
        if source.package is not None and not re.fullmatch(r"[^=\s]+==[^=\s]+", source.package):
            yield f"{where}.package '{source.package}' does not pin the package. Write NAME==VERSION."
        if source.files is not None and not source.optional:
            for pattern in [source.files] if isinstance(source.files, str) else source.files:
                path = (recipe.folder / Path(pattern).expanduser()).absolute()
                if not path.exists() and not glob.glob(str(path), recursive=True):
                    yield (f"{where}.files: there is no file '{path}'. Mend the path (relative ones start at the recipe's folder), "
                           "or set 'optional: true'.")
        if source.split != "train" and source.hub is None:
            yield f"{where}.split is for hub data sets only. Take it out, or name a 'hub' source."
        if source.query is not None and source.format not in ("auto", "sqlite"):
            yield f"{where}.query is for sources of format 'sqlite' only, but the format is '{source.format}'. Take one of them out."


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    for index, source in enumerate(data.parallel):
        if source.side is not None or (source.columns is not None and len(source.columns) == 1) or source.format == "txt":
            yield (f"data.parallel[{index}] gives documents, not pairs. Name two columns (English, target) and no 'side', "
                   "or move it to data.target or data.english.")
    for name in ("target", "english"):
        for index, source in enumerate(getattr(data, name)):
            pairs = (source.columns is not None and len(source.columns) == 2) or source.format in ("gettext", "catalog")
            if pairs and source.side is None:
                yield f"data.{name}[{index}] gives pairs, not documents. Add 'side: {name}' to take that side of them."
    if not data.parallel:
        if recipe.bitext.tokens:
            yield "data.parallel is empty, but bitext.tokens is not 0. Add sentence pairs, or set bitext.tokens to 0."
        if recipe.finetune.tokens and recipe.bridge.translator.name == "self":
            yield ("data.parallel is empty, but bridge.translator is 'self', which learns to translate from it. Add sentence pairs, "
                   "or choose another translator.")
        if not data.target and (recipe.pretrain.tokens or recipe.extend.vocab_size):
            yield ("data.target and data.parallel are empty, but pretrain.tokens or extend.vocab_size is not 0. "
                   "Add target-language text, or set both to 0.")
    if data.held_out + data.development >= 1:
        yield f"data.held_out and data.development leave nothing to train on: their sum is {data.held_out + data.development:g}."
    if data.held_out == 0:
        yield "data.held_out is 0, so there is nothing to measure the result on. Give it a small share, such as 0.02."


def _extend(recipe: Recipe) -> Iterator[str]:
    extend = recipe.extend
    asked = [key for key in ("init", "head_init") if getattr(extend, key) == "lexicon"]
    if asked and extend.lexicon is None:
        yield (f"extend.{asked[0]} is 'lexicon', but extend.lexicon is missing. Name one, English words first: "
               "lexicon: {files: FILE.tsv, columns: [0, 1]}.")
    if extend.lexicon is not None and not asked:
        yield f"extend.lexicon is for extend.init 'lexicon' only, but that is '{extend.init}'. Set it to 'lexicon', or take the source out."
    lexicon = extend.lexicon
    if lexicon is not None and (lexicon.side is not None or (lexicon.columns is not None and len(lexicon.columns) == 1)
                                or lexicon.format == "txt"):
        yield "extend.lexicon gives single words, not pairs. Name two columns (English, target) and no 'side'."


def _stages(recipe: Recipe) -> Iterator[str]:
    for name in ("pretrain", "bitext", "finetune"):
        stage: TrainStage = getattr(recipe, name)
        if stage.tokens == 0:
            continue
        if stage.micro_tokens > stage.batch_tokens:
            yield (f"{name}.micro_tokens ({stage.micro_tokens}) is more than {name}.batch_tokens ({stage.batch_tokens}): one process "
                   "cannot hold more than a whole step. Lower it, or raise batch_tokens.")
        if stage.sequence_length > stage.micro_tokens:
            yield (f"{name}.sequence_length ({stage.sequence_length}) is more than {name}.micro_tokens ({stage.micro_tokens}): a sequence "
                   "must fit. Lower it, or raise micro_tokens.")
        if stage.tokens < stage.batch_tokens:
            yield (f"{name}.tokens ({stage.tokens}) is less than one step of {name}.batch_tokens ({stage.batch_tokens}). "
                   "Lower batch_tokens, or set tokens to 0 to skip the stage.")


def _recovery(recipe: Recipe) -> Iterator[str]:
    by, training, logits = recipe.recover.by, recipe.training, recipe.recover.logits
    if by != "text" and training.trains_old_rows:
        setting = "training.train is 'full'" if training.train == "full" else "training.embeddings is 'all'"
        yield (f"recover.by is '{by}', which needs the original model inside the one that trains, but {setting}. Set recover.by to 'text', "
               "or train an adapter and new rows only.")
    if by == "text" and logits.own_samples:
        yield ("recover.logits.own_samples is set, but recover.by is 'text', which learns no distribution. Set recover.by to 'logits' or "
               "'both'.")
    if recipe.recover.ray is not None and recipe.recover.engine.name == "auto":
        yield ("recover.engine is 'auto', which measures this machine, but recover.ray spreads the work over others. Name an engine, or "
               "take recover.ray out.")


def _bridge(recipe: Recipe) -> Iterator[str]:
    if not recipe.recover.prompts:
        yield "recover.prompts is empty, so there is nothing to answer. Name 'seed', 'self' or a source."
    if recipe.recover.answers > 1 and not recipe.recover.temperature and not recipe.recover.sampled:
        yield (f"recover.answers is {recipe.recover.answers}, but nothing is sampled: greedy decoding gives the same answer each time. "
               "Raise recover.sampled or recover.temperature, or take 'answers' out.")
    if recipe.bridge.min_length_ratio >= recipe.bridge.max_length_ratio:
        yield (f"bridge.min_length_ratio ({recipe.bridge.min_length_ratio:g}) is not below bridge.max_length_ratio "
               f"({recipe.bridge.max_length_ratio:g}), so every example would be dropped.")
    encoder = Path(recipe.bridge.encoder).expanduser()
    if recipe.bridge.encoder.startswith((".", "/", "~")) and not (recipe.folder / encoder).is_dir():
        yield (f"bridge.encoder: there is no folder '{(recipe.folder / encoder).absolute()}'. Mend the path, name a hub id, or take the "
               "run's own model: 'self'.")
    if recipe.finetune.own_words == "distribution" and recipe.bridge.translator.name != "self":
        yield (f"finetune.own_words is 'distribution', which is for the model's own translations, but bridge.translator is "
               f"'{recipe.bridge.translator.name}': what the model would have said is worse. Set finetune.own_words to 'text'.")
    if recipe.bridge.drop_worst == 1:
        yield "bridge.drop_worst is 1, so every example would be dropped. A tenth is usual."
    if recipe.bridge.round_trip and not recipe.bridge.drop_worst:
        yield "bridge.round_trip is for bridge.drop_worst, which is 0: nothing would read it. Give that a share, or take this one out."
