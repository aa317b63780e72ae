"""Reading a recipe: everything wrong is told at once, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.errors import DataError, RecipeError
from transllm.recipe import Recipe, dump_recipe, load_recipe, resolved

GOOD = """
model: org/some-chat
language: th
data:
  parallel: [{files: pairs.tsv, columns: [0, 1]}]
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides=overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def only(folder: Path, text: str, *overrides: str) -> str:
    found = problems(folder, text, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_a_small_recipe_gets_all_defaults_its_name_and_its_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.name == "mine" and recipe.folder == tmp_path
    assert recipe.model.source == "org/some-chat" and recipe.target.marker == "<TH>"
    assert recipe.training.lora.r == 64 and recipe.finetune.learning_rate == 1e-4


def test_a_name_of_its_own_is_kept(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD + "name: other\n")).name == "other"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b"])
def test_a_name_must_be_a_folder_name(tmp_path: Path, name: str) -> None:
    assert "names the run folder" in only(tmp_path, GOOD + f"name: '{name}'\n")


# What is no recipe at all

def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no recipe .*transllm init"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="is a folder"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", "# only words\n", "---\n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="is empty"):
        load_recipe(write(tmp_path, text))


def test_wrong_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: x\n# espa\u00f1ol\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8.*line 2 is 0xf1.*Save the file as UTF-8"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.strip().encode())
    assert load_recipe(path).language == "th"


@pytest.mark.parametrize("text,kind", [("- a\n- b\n", "list"), ("just words\n", "single value")])
def test_not_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    assert f"this is a {kind}" in only(tmp_path, text)


@pytest.mark.parametrize("text,expected", [
    ("model: x\nlanguage: [th\n", "line 3"), ("model: x\n\tlanguage: th\n", "line 2"), ("model: a: b\n", "line 1"),
    ("model: \x01\n", "odd character"),
])
def test_yaml_errors_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    sentence = only(tmp_path, text)
    assert "not YAML" in sentence and expected in sentence


def test_yaml_as_people_mean_it(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("th", "no") + "pretrain: {tokens: 1e6, learning_rate: 2e-4}\n"
                               "bitext: {tokens: 1_000_000, source_loss: false}\n"))
    assert recipe.language == "no", "no is Norwegian, not false"
    assert recipe.pretrain.tokens == 1_000_000 == recipe.bitext.tokens and recipe.pretrain.learning_rate == 2e-4
    assert recipe.bitext.source_loss is False


def test_a_key_given_twice_is_a_problem_with_its_lines(tmp_path: Path) -> None:
    assert only(tmp_path, GOOD + "seed: 1\nextend: {vocab_size: 3,\n  vocab_size: 4}\n") == (
        "'vocab_size' is given twice, on lines 7 and 8. Keep one.")


# Keys

def test_a_misspelt_key_is_recognised(tmp_path: Path) -> None:
    assert only(tmp_path, GOOD + "pretrain: {tokns: 5}\n") == "Unknown key 'tokns' in section 'pretrain'. Did you mean 'tokens'?"
    assert only(tmp_path, GOOD + "pretrian: {tokens: 5}\n") == "Unknown key 'pretrian' in the recipe. Did you mean 'pretrain'?"


def test_a_key_of_another_section_is_sent_there(tmp_path: Path) -> None:
    sentence = only(tmp_path, GOOD + "finetune: {replay: 0.5}\n")
    assert sentence == "Unknown key 'replay' in section 'finetune'. It belongs in section 'bitext'."
    assert "It belongs in section 'training.lora'." in only(tmp_path, GOOD + "training: {r: 8}\n")
    assert "It belongs in section 'pretrain', 'bitext' or 'finetune'." in only(tmp_path, GOOD + "micro_tokens: 8\n")
    assert "It belongs at the top of the recipe" in only(tmp_path, GOOD + "evaluate: {seed: 8}\n")


def test_a_misspelt_key_of_another_section_is_recognised_too(tmp_path: Path) -> None:
    assert "Did you mean 'translator' in section 'bridge'?" in only(tmp_path, GOOD + "extend: {translater: self}\n")


def test_both_hints_where_both_hold(tmp_path: Path) -> None:
    sentence = only(tmp_path, GOOD + "extend: {count: 5}\n")
    assert "Did you mean 'min_count'?" in sentence and "It belongs in section 'recover' or 'bridge'." in sentence


def test_an_unknown_key_without_a_neighbour_lists_the_keys(tmp_path: Path) -> None:
    assert "Its keys are r, alpha, dropout, targets, variant, b_factor." in only(tmp_path, GOOD + "training: {lora: {qqq: 1}}\n")


def test_a_key_that_is_no_text(tmp_path: Path) -> None:
    assert "Unknown key 5" in only(tmp_path, GOOD + "5: x\n")


def test_missing_sections(tmp_path: Path) -> None:
    found = problems(tmp_path, "seed: 3\n")
    assert [sentence.split()[0] for sentence in found] == ["'model'", "'language'", "'data'"]


def test_a_section_with_all_its_keys_commented_out_means_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + "bitext:\n  # tokens: 5\ntraining:\n  lora:\n"))
    assert recipe.bitext.tokens == 100_000_000 and recipe.training.lora.r == 64


# Values

@pytest.mark.parametrize("text,expected", [
    ("seed: abc", "seed must be a whole number, but is 'abc'."),
    ("seed: 1.5", "seed must be a whole number, but is 1.5."),
    ("seed: ", "seed must be a whole number, but is empty."),
    ("training: {lora: {r: 0}}", "training.lora.r must be at least 1, but is 0."),
    ("training: {lora: {alpha: 0}}", "training.lora.alpha must be above 0, but is 0."),
    ("training: {lora: {dropout: 1.5}}", "training.lora.dropout must be below 1, but is 1.5."),
    ("pretrain: {learning_rate: .inf}", "pretrain.learning_rate must be a finite number, but is inf."),
    ("pretrain: {learning_rate: .nan}", "pretrain.learning_rate must be a finite number, but is nan."),
    ("pretrain: {learning_rate: fast}", "pretrain.learning_rate must be a number, but is 'fast'."),
    ("bitext: 7", "bitext must be a section with keys, but is 7."),
    ("bitext: [1]", "bitext must be a section with keys, but is [1]."),
    ("bridge: {check_language: perhaps}", "bridge.check_language must be true or false, but is 'perhaps'."),
    ("training: {embeddings: nwe}", "training.embeddings must be 'new' or 'all', but is 'nwe'. Did you mean 'new'?"),
    ("merge: {dtype: float61}",
     "merge.dtype must be 'auto', 'float32', 'bfloat16' or 'float16', but is 'float61'. Did you mean 'float16'?"),
    ("name: 5", "name must be a text, but is 5. Put it in quotes."),
])
def test_wrong_values_in_words(tmp_path: Path, text: str, expected: str) -> None:
    assert only(tmp_path, GOOD + text + "\n") == expected


def test_a_list_that_is_a_mapping(tmp_path: Path) -> None:
    sentence = only(tmp_path, "model: x\nlanguage: th\ndata:\n  parallel: {files: a.tsv}\n")
    assert sentence == ("data.parallel must be a list, but is a mapping with 'files'. "
                        "Put '- ' before it, to make it the list's only item.")


def test_rules_over_several_keys(tmp_path: Path) -> None:
    said = only(tmp_path, GOOD + "finetune: {recovery: 0.8, translation: 0.3}\n")
    assert "finetune: 'recovery', 'translation', 'direct', 'pairs' and 'own' leave no room" in said
    text = "model: x\nlanguage: th\ndata:\n  parallel: [{files: a, hub: b}, {}]\n"
    assert problems(tmp_path, text) == [
        f"data.parallel[{index}]: a source names exactly one of 'package', 'files' and 'hub'." for index in (0, 1)]


def test_unknown_language(tmp_path: Path) -> None:
    assert "there is no language 'xx' in the table, so it has no marker" in only(tmp_path, GOOD.replace("th\n", "xx\n"))


# Unions: one sentence each

SEED_SELF_OR_SOURCE = "'seed', 'self' or a source (a mapping with 'package', 'files' or 'hub')"


@pytest.mark.parametrize("text,expected", [
    ("recover: {prompts: [sed]}", f"recover.prompts[0] must be {SEED_SELF_OR_SOURCE}, but is 'sed'. Did you mean 'seed'?"),
    ("recover: {prompts: [seed, 5]}", f"recover.prompts[1] must be {SEED_SELF_OR_SOURCE}, but is 5."),
    ("recover: {prompts: [{fils: x}]}", "Unknown key 'fils' in section 'recover.prompts[0]'. Did you mean 'files'?"),
    ("recover: {prompts: [{files: {a: 1}}]}", "recover.prompts[0].files must be a text or a list of texts, but is a mapping with 'a'."),
    ("recover: {prompts: [{hub: x, columns: [1.5]}]}", "recover.prompts[0].columns[0] must be a text or a whole number, but is 1.5."),
    ("training: {lora: {targets: 5}}", "training.lora.targets must be a text or a list of texts, but is 5."),
    ("evaluate: {test_pairs: 5}", "evaluate.test_pairs must be a section with keys, but is 5."),
])
def test_unions_are_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    assert only(tmp_path, GOOD + text + "\n") == expected


def test_language_of_neither_kind(tmp_path: Path) -> None:
    assert only(tmp_path, GOOD.replace("language: th", "language: 5")) == "language must be a text or a mapping, but is 5."


def test_everything_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, """
modle: x
language: xx
seed: a
seed: b
training: {lora: {r: 0, alpah: 3}}
recover: {prompts: [sed, {fils: x}]}
""", "x", "bitext.replay=7")
    for fragment in ("'seed' is given twice", "--set x:", "'model' is missing", "'data' is missing", "Unknown key 'modle'",
                     "no language 'xx'", "seed must be a whole number", "training.lora.r", "'alpah'", "recover.prompts[0]", "'fils'",
                     "bitext.replay must be at most 1"):
        assert sum(fragment in sentence for sentence in found) == 1, fragment
    assert len(found) == 12


def test_the_message_lists_all_problems_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + "a1: 1\nb1: 2\n"))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'mine.yaml'} has 2 problems:" and [line[:4] for line in lines[1:]] == ["  - ", "  - "]


# Overrides

def test_overrides_replace_values_and_make_sections(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), overrides=["finetune.tokens=1000", "training.lora.r=8", "data.parallel.0.limit=50",
                                                           "model.dtype=float32", "recover.prompts=[seed]", "name=other"])
    assert (recipe.finetune.tokens, recipe.training.lora.r, recipe.data.parallel[0].limit) == (1000, 8, 50)
    assert (recipe.model.source, recipe.model.dtype, recipe.recover.prompts, recipe.name) == ("org/some-chat", "float32", ["seed"], "other")


@pytest.mark.parametrize("override,expected", [
    ("finetune.tokens", "not of the form"), ("=5", "not of the form"), ("finetune..x=5", "not of the form"),
    ("seed.x=5", "is a value, not a section"),
    ("data.parallel.7.limit=5", "a list of 1, counted from 0"), ("data.parallel.x.limit=5", "'x' is none of them"),
    ("finetune.tokns=5", "Did you mean 'tokens'?"), ("seed=[", "not YAML"),
])
def test_wrong_overrides(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in only(tmp_path, GOOD + "seed: 3\n", override)


# Writing

def test_dump_round_trips_with_all_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + "pretrain: {learning_rate: 1e-5}\n"))
    (tmp_path / "run").mkdir()
    dump_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.name == "mine", "the name is the recipe's, not the copy's file"
    assert resolved(again) == resolved(recipe) and again.pretrain == recipe.pretrain
    assert "checkpoint_minutes: 2.0" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"], "no temporary file is left"


def test_paths_mean_the_same_in_the_copy(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "template.jinja").write_text("x")
    recipe = load_recipe(write(tmp_path, GOOD.replace("org/some-chat", "{source: model, chat_template: template.jinja}")
                               + "evaluate: {test_pairs: {files: [a.tsv, /b.tsv]}}\n"
                               + "extend: {init: lexicon, lexicon: {files: words.tsv}}\n"))
    dump_recipe(recipe, tmp_path / "elsewhere" / "recipe.yaml")
    again = load_recipe(tmp_path / "elsewhere" / "recipe.yaml")
    assert again.model.source == str(tmp_path / "model") and again.model.chat_template == str(tmp_path / "template.jinja")
    assert again.data.parallel[0].files == str(tmp_path / "pairs.tsv")
    assert again.extend.lexicon is not None and again.extend.lexicon.files == str(tmp_path / "words.tsv")
    assert again.evaluate.test_pairs is not None and again.evaluate.test_pairs.files == [str(tmp_path / "a.tsv"), "/b.tsv"]


def test_a_language_of_ones_own_round_trips(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("th\n", "{code: quy, name: Ayacucho Quechua, native: Chanka}\n")))
    dump_recipe(recipe, tmp_path / "copy.yaml")
    assert load_recipe(tmp_path / "copy.yaml").target == recipe.target and recipe.target.marker == "<QUY>"


def test_recipes_of_the_repository_are_in_order() -> None:
    for path in [*(Path(__file__).parents[2] / "recipes").glob("*.yaml"), *(Path(__file__).parents[2] / "benchmarks").glob("*.yaml")]:
        assert isinstance(load_recipe(path), Recipe)
        assert len(path.read_text().splitlines()) < 40


@pytest.mark.parametrize(("translator", "problem"), [
    ("deeple", "Did you mean 'deepl'?"), ("{name: deeple}", "Did you mean 'deepl'?"),
    ("ctranslate2", "the translator 'ctranslate2' needs 'model'"),
    ("{name: llm, model: m}", "the translator 'llm' needs 'url'"),
    ("{name: apertium, model: m}", "'model' is for 'ctranslate2' and 'llm', but the translator is 'apertium'"),
    ("{name: llm, model: m, url: u, prompt: translate}", "'prompt' must hold {text}"),
    ("{name: self, beam: 4}", "Did you mean 'beam_size'?"),
])
def test_what_a_translator_needs(tmp_path: Path, translator: str, problem: str) -> None:
    assert problem in only(tmp_path, GOOD + f"bridge: {{translator: {translator}}}\n")


def test_a_translator_is_a_name_or_a_section(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    bridge = "bridge: {translator: {name: ctranslate2, model: model, compute_type: int8}}\n"
    (tmp_path / "a.yaml").write_text(GOOD + bridge, encoding="utf-8")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert load_recipe(tmp_path / "a.yaml", overrides=["bridge.translator=apertium"]).bridge.translator.name == "apertium"
    dump_recipe(recipe, tmp_path / "other" / "b.yaml")
    again = load_recipe(tmp_path / "other" / "b.yaml").bridge.translator
    assert again.model == str(tmp_path / "model"), "a folder means the same wherever the recipe lies"
    assert again.compute_type == "int8" and recipe.bridge.translator.model == "model"
