"""The recipe that ``transllm init`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from transllm.errors import RecipeError, RunError
from transllm.languages import LANGUAGES
from transllm.recipe import check_recipe, load_recipe, write_recipe


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_it_loads_and_is_in_order_for_every_language(tmp_path: Path, language: str) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", model="org/some-chat", language=language))
    assert check_recipe(recipe) == [] and recipe.target == LANGUAGES[language]
    assert recipe.data.parallel[0].columns == ["translation.en", f"translation.{language}"]


@pytest.mark.parametrize("model", ["org/some-chat", "package:llm-x==0.1.2", "./folder", "C: odd # name", "7b", "true"])
def test_the_model_is_written_as_it_is(tmp_path: Path, model: str) -> None:
    assert load_recipe(write_recipe(tmp_path / "r.yaml", model=model, language="th")).model.source == model


def test_it_is_short_and_commented(tmp_path: Path) -> None:
    lines = write_recipe(tmp_path / "r.yaml", model="org/some-chat", language="th").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 30 and sum("#" in line for line in lines) >= 8 and max(map(len, lines)) <= 140


def test_files_of_ones_own_are_named_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "pairs.tsv").write_text("Hello\thola\n")
    (tmp_path / "texts" / "mono.txt").write_text("hola\n")
    path = write_recipe(tmp_path / "sub" / "r.yaml", model="org/some-chat", language="es", parallel=[str(tmp_path / "texts/pairs.tsv")],
                        target=[str(tmp_path / "texts/mono.txt")])
    assert check_recipe(load_recipe(path)) == []


def test_relative_files_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text("Hello\thola\n")
    recipe = load_recipe(write_recipe(Path("sub/r.yaml"), model="org/some-chat", language="es", parallel=["pairs.tsv"]))
    assert recipe.data.parallel[0].files == "../pairs.tsv" and check_recipe(recipe) == []


def test_a_language_that_is_not_in_the_table(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", model="m", language="quy", name="Ayacucho Quechua", native="Chanka: runasimi"))
    assert (recipe.target.code, recipe.target.name, recipe.target.native) == ("quy", "Ayacucho Quechua", "Chanka: runasimi")


def test_an_unknown_language_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no language 'Spanish'.*Did you mean 'es'"):
        write_recipe(tmp_path / "r.yaml", model="m", language="Spanish")
    assert not (tmp_path / "r.yaml").exists()


def test_it_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        write_recipe(path, model="m", language="th")
    assert path.read_text() == "mine"
    assert write_recipe(path, model="m", language="th", force=True).read_text() != "mine"
