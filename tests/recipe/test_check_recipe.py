"""What types cannot tell of a recipe: contradictions and missing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.recipe import Recipe, check_recipe, load_recipe, notices, sources_of

GOOD = """
model: org/some-chat
language: th
data:
  parallel: [{hub: org/pairs, columns: [en, th]}]
"""


def checked(folder: Path, text: str = GOOD, *overrides: str) -> list[str]:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return check_recipe(load_recipe(path, overrides=overrides))


def test_a_good_recipe_has_no_problems(tmp_path: Path) -> None:
    assert checked(tmp_path) == []


@pytest.mark.parametrize("override,expected", [
    ("pretrain.micro_tokens=1000000", "pretrain.micro_tokens (1000000) is more than pretrain.batch_tokens (524288)"),
    ("bitext.sequence_length=20000", "bitext.sequence_length (20000) is more than bitext.micro_tokens (16384)"),
    ("finetune.tokens=100", "finetune.tokens (100) is less than one step"),
    ("data.held_out=0", "data.held_out is 0"),
    ("data={parallel: [{hub: a/b}], held_out: 0.6, development: 0.4}", "leave nothing to train on"),
    ("bridge={min_length_ratio: 3}", "every example would be dropped"),
    ("recover.prompts=[]", "recover.prompts is empty"),
    ("extend.init=lexicon", "extend.init is 'lexicon', but extend.lexicon is missing"),
    ("extend.head_init=lexicon", "extend.head_init is 'lexicon', but extend.lexicon is missing"),
    ("extend.lexicon={hub: a/b}", "extend.lexicon is for extend.init 'lexicon' only, but that is 'mean'"),
    ("extend={init: lexicon, lexicon: {hub: a/b, columns: [x]}}", "extend.lexicon gives single words, not pairs"),
    ("extend={init: lexicon, lexicon: {files: none.tsv}}", "none.tsv'. Mend the path"),
    ("extend={init: lexicon, lexicon: {hub: a/b, columns: [en, th]}}", ""),
    ("data.parallel=[{hub: a/b, columns: [x]}]", "data.parallel[0] gives documents, not pairs"),
    ("data.parallel=[{hub: a/b, side: english}]", "data.parallel[0] gives documents, not pairs"),
    ("data.target=[{hub: a/b, columns: [x, y]}]", "data.target[0] gives pairs, not documents. Add 'side: target'"),
    ("data.parallel.0={package: foo}", "data.parallel[0].package 'foo' does not pin"),
    ("data.parallel.0={files: 'none*.tsv'}", "none*.tsv'. Mend the path"),
    ("data.parallel.0.format=jsonl", ""),
    ("model=package:foo", "does not pin the package"),
    ("model=./nowhere", "model.source: there is no '"),
    ("model=weights.gguf", "model.source: there is no '"),
    ("model={source: a/b, chat_template: none.jinja}", "model.chat_template: there is no file"),
    ("language={code: en, name: English, native: English}", "<EN>, which the method uses itself"),
    ("language={code: Q Y, name: Quechua, native: Runasimi}", "language.code must be lower-case letters"),
    ("language={code: quy, name: '', native: Runasimi, latin: perhaps}", "language.name must be a text"),
])
def test_each_problem_is_told(tmp_path: Path, override: str, expected: str) -> None:
    found = checked(tmp_path, GOOD, override)
    if expected:
        assert any(expected in sentence for sentence in found), found
    else:
        assert found == []


def test_files_are_looked_for_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.tsv").write_text("x\ty\n")
    text = GOOD.replace("hub: org/pairs, columns: [en, th]", "files: [sub/a.tsv, 'sub/*.tsv', sub/b.tsv]")
    found = checked(tmp_path, text)
    assert len(found) == 1 and str(tmp_path / "sub" / "b.tsv") in found[0] and "data.parallel[0].files" in found[0]
    assert checked(tmp_path, text, "data.parallel.0.optional=true") == []


def test_no_pairs(tmp_path: Path) -> None:
    found = checked(tmp_path, GOOD, "data.parallel=[]")
    assert [sentence.split(",")[0] for sentence in found] == [
        "data.parallel is empty", "data.parallel is empty", "data.target and data.parallel are empty"]
    assert "bitext.tokens" in found[0] and "translator" in found[1]
    assert checked(tmp_path, GOOD, "data={target: [{hub: a/b}]}", "bitext.tokens=0", "finetune.tokens=0") == []


def test_a_skipped_stage_is_not_checked(tmp_path: Path) -> None:
    assert checked(tmp_path, GOOD, "pretrain={tokens: 0, micro_tokens: 1000000}") == []


@pytest.mark.parametrize("settings,problem", [
    (["training.train=full", "recover.by=logits"], "training.train is 'full'"),
    (["training.embeddings=all", "recover.by=both"], "training.embeddings is 'all'"),
    (["recover.logits.own_samples=0.5"], "own_samples"),
    (["training.train=rows", "recover.by=logits", "recover.logits.own_samples=0.5"], None)])
def test_recovery_by_logits_needs_the_original_inside(tmp_path: Path, settings: list[str], problem: str | None) -> None:
    found = checked(tmp_path, GOOD, *settings)
    assert [problem in one for one in found] == ([True] if problem else [])


def test_all_problems_at_once(tmp_path: Path) -> None:
    assert len(checked(tmp_path, GOOD, "model=./nowhere", "data.held_out=0", "recover.prompts=[]", "finetune.tokens=100")) == 4


def test_sources_of_names_every_source(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD + "recover: {prompts: [seed, {hub: a/p}]}\nevaluate: {test_pairs: {files: t.tsv}, queries: {files: q.txt}}\n")
    recipe: Recipe = load_recipe(path)
    assert [(where, source.origin) for where, source in sources_of(recipe)] == [
        ("data.parallel[0]", "hub:org/pairs"), ("recover.prompts[1]", "hub:a/p"), ("evaluate.test_pairs", "files:t.tsv"),
        ("evaluate.queries", "files:q.txt")]


@pytest.mark.parametrize("override,said", [
    ("training.train=full", ["no longer inside"]), ("training.embeddings=all", ["own rows change"]),
    ("training.quantize=nf4", ["not rounded"]), ("training.train=rows", []), ("training.lora.variant=dora", [])])
def test_what_a_choice_gives_up_is_a_notice_and_no_problem(tmp_path: Path, override: str, said: list[str]) -> None:
    assert checked(tmp_path, GOOD, override) == []
    found = notices(load_recipe(tmp_path / "r.yaml", overrides=[override]))
    assert len(found) == min(1, len(said)) and all(said[-1] in notice for notice in found)


def test_ray_and_a_choice_that_measures_this_machine(tmp_path: Path) -> None:
    (found,) = checked(tmp_path, GOOD, "recover.ray.workers=2", "recover.engine=auto")
    assert "recover.engine is 'auto'" in found
    assert checked(tmp_path, GOOD, "recover.ray.workers=2") == []


def test_what_scores_translations(tmp_path: Path) -> None:
    for overrides, expected in ((["finetune.own_words=distribution", "bridge.translator=apertium"], "for the model's own translations"),
                                (["bridge.encoder=./nowhere"], "bridge.encoder: there is no folder"), (["bridge.drop_worst=1"], "is 1, so"),
                                (["bridge.drop_worst=0", "bridge.round_trip=true"], "which is 0: nothing would read it")):
        (found,) = checked(tmp_path, GOOD, *overrides)
        assert expected in found
    (tmp_path / "encoder").mkdir()
    assert checked(tmp_path, GOOD, "bridge.encoder=./encoder", "bridge.round_trip=true") == []
