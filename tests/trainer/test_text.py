"""Corpus, tokenizer and their cache, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.data.corpus import load_corpus, load_sample, split_paragraphs
from trainer.data.masking import Masking, mask_for_evaluation
from trainer.data.token_cache import load_rows
from trainer.data.tokenizer import load_tokenizer
from trainer.errors import BadInput

SAMPLE_SHA256 = "facb596af7431577a33f4ad1edb9d0662aeb31256347a40e6127bec500506971"
TOKENIZER_SHA256 = "005c38140e1d1aa660b408adddb4294c0addf75147d1264e41b4fafdfab53eef"


def test_the_sample_is_split_by_novel():
    """The last novel is validation and test, half each; the other five are for training."""
    corpus = load_sample()

    assert corpus.sha256 == SAMPLE_SHA256
    assert corpus.splits["train"][0] == "EMMA"
    assert corpus.splits["validation"][0] == "SENSE AND SENSIBILITY"
    assert corpus.splits["test"][-1] == "THE END"
    assert len(corpus.splits["validation"]) == len(corpus.splits["test"])
    assert not any("Dashwood" in paragraph for paragraph in corpus.splits["train"])


def test_paragraphs_are_what_blank_lines_separate():
    """Line breaks within a paragraph are not part of it."""
    text = "One\ntwo.\n\n \n\nThree.\n"

    assert split_paragraphs(text) == ["One two.", "Three."]


def test_a_dataset_out_of_reach_is_an_error_with_a_way_out():
    """Text is never substituted."""
    said: list[str] = []

    with pytest.raises(BadInput, match=r"wikitext-2-v1 cannot be loaded.*--dataset sample"):
        load_corpus("wikitext-2-v1", said.append)

    assert "Loading Salesforce/wikitext wikitext-2-v1" in said[0]


def test_wikitexts_marks_are_read_as_what_they_stand_for(monkeypatch):
    """A hyphen is a hyphen, and a word that is not there is no word to be predicted."""
    lines = ["", " A role @-@ playing <unk> of 1 @,@ 024 in 3 @.@ 5 days . \n"]
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *names: {split: {"text": lines} for split in ("train", "validation", "test")},
    )
    corpus = load_corpus("wikitext-2-v1", lambda text: None)
    tokenizer = load_tokenizer("shipped", "wikitext-2-v1", lambda text: None)
    [text] = corpus.splits["train"]

    [ids] = tokenizer.encode([text])

    assert text == "A role-playing <unk> of 1,024 in 3.5 days ."
    unknown = tokenizer.backend.unk_token_id
    assert ids.tolist().count(unknown) == 1
    assert unknown in tokenizer.special_ids
    assert "@" not in tokenizer.backend.decode(ids)
    masking = Masking.of(8192, tokenizer.special_ids, tokenizer.mask_id, tokenizer.pad_id, 1.0)
    batch = mask_for_evaluation(torch.from_numpy(ids)[None], masking)
    assert len(batch.predicted) == len(ids) - 1


def test_the_default_tokenizer_out_of_reach_is_replaced_aloud():
    """First what is being tried, then what takes its place."""
    said: list[str] = []

    tokenizer = load_tokenizer("bert-base-uncased", "wikitext-2-v1", said.append)

    assert tokenizer.name == "shipped"
    assert len(said) == 2
    assert said[0].startswith("Loading the tokenizer bert-base-uncased")
    assert "the shipped one" in said[1]


@pytest.mark.parametrize("dataset", ["sample", "wikitext-2-v1"])
@pytest.mark.parametrize("name", ["no/such", "bert-base-uncased"])
def test_a_chosen_tokenizer_out_of_reach_is_an_error(name, dataset):
    """Only the default has a stand-in, and not where somebody chose it by its name."""
    with pytest.raises(BadInput, match=rf"{name} cannot .*--tokenizer shipped"):
        load_tokenizer(name, dataset, lambda text: None, is_chosen=True)


def test_a_tokenizer_that_is_not_the_default_has_no_stand_in():
    """Nor has one that a checkpoint names."""
    with pytest.raises(BadInput, match=r"no/such.*--tokenizer shipped"):
        load_tokenizer("no/such", "sample", lambda text: None)


def test_the_sample_has_its_own_tokenizer_without_asking_the_hub():
    """One line says so; the shipped file is the one that was trained once."""
    said: list[str] = []

    tokenizer = load_tokenizer("bert-base-uncased", "sample", said.append)

    assert (tokenizer.name, tokenizer.sha256) == ("shipped", TOKENIZER_SHA256)
    assert tokenizer.vocabulary_size == 8192
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert len(said) == 1
    assert not said[0].startswith("Loading")


def test_text_survives_the_shipped_tokenizer():
    """No token of ordinary prose is unknown, and no special token is put in."""
    tokenizer = load_tokenizer("shipped", "sample", lambda text: None)

    [ids] = tokenizer.encode(["It is a truth universally acknowledged, that Zebras exist."])

    assert not set(ids.tolist()) & set(tokenizer.special_ids)


def test_for_use_text_has_the_ends_that_it_has_in_a_row():
    """Whoever fills masks gives text as the model knows it, with [CLS] and [SEP]."""
    tokenizer = load_tokenizer("shipped", "sample", lambda text: None)

    [first, *_, last] = tokenizer.backend("It is a truth.")["input_ids"]

    assert (first, last) == (tokenizer.cls_id, tokenizer.sep_id)


def test_the_cache_is_used_where_it_fits_and_made_again_where_it_is_damaged(
    tmp_path: Path,
):
    """Another length is another file; a damaged one is said and replaced."""
    sample = load_sample()
    short = {split: texts[:20] for split, texts in sample.splits.items()}
    corpus = type(sample)("sample", short, "a" * 64)
    tokenizer = load_tokenizer("shipped", "sample", lambda text: None)
    said: list[str] = []

    first = load_rows(corpus, tokenizer, 16, tmp_path, said.append)
    load_rows(corpus, tokenizer, 32, tmp_path, said.append)
    again = load_rows(corpus, tokenizer, 16, tmp_path, said.append)
    assert len(list(tmp_path.iterdir())) == 2
    assert [text.split()[0] for text in said] == ["Tokenizing", "Tokenizing"]
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    repaired = load_rows(corpus, tokenizer, 16, tmp_path, said.append)

    assert "is damaged" in said[2]
    assert all(torch.equal(first[s], again[s]) for s in first)
    assert all(torch.equal(first[s], repaired[s]) for s in first)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path):
    """The rows are there all the same, and the user knows."""
    sample = load_sample()
    corpus = type(sample)("sample", {"train": ["A short text."]}, "a" * 64)
    tokenizer = load_tokenizer("shipped", "sample", lambda text: None)
    said: list[str] = []
    (tmp_path / "file").touch()

    rows = load_rows(corpus, tokenizer, 16, tmp_path / "file" / "cache", said.append)

    assert rows["train"].shape == (1, 16)
    assert "cannot be written" in said[-1]
