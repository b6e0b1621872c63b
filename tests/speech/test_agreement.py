"""Words become firm when two hypotheses agree, are never taken back, and come once each."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.speech.agreement import Agreement, matching_prefix, plain, sureness
from edgellm.speech.results import Word


def spoken(text: str, start: float = 0.0) -> list[Word]:
    """Half a second a word."""
    return [Word(start + i / 2, start + i / 2 + 0.4, f" {word}", 0.9) for i, word in enumerate(text.split())]


def said(words: list[Word]) -> str:
    return "".join(word.text for word in words).strip()


def test_what_two_hypotheses_begin_with_is_firm() -> None:
    agreement = Agreement()
    assert agreement.update(spoken("ask not what"), 99) == []
    assert said(agreement.update(spoken("Ask not, why your country"), 99)) == "Ask not,"
    assert said(agreement.partial) == "why your country"
    assert said(agreement.update(spoken("ask not why your country can"), 99)) == "why your country"
    assert said(agreement.finish(spoken("ask not why your country can do"))) == "can do"
    assert said(agreement.firm) == "Ask not, why your country can do"
    assert agreement.partial == []


def test_words_at_the_end_of_the_sound_may_go_on() -> None:
    agreement = Agreement()
    agreement.update(spoken("one two"), 0.9)
    assert said(agreement.update(spoken("one two"), 0.6)) == "one"
    assert said(agreement.update(spoken("one two"), 2.0)) == "two"


def test_an_unsure_word_holds_back_what_follows_it() -> None:
    def words(*probabilities: float) -> list[Word]:
        return [Word(i, i + 0.5, f" w{i}", probability) for i, probability in enumerate(probabilities)]

    agreement = Agreement(sure=0.3)
    agreement.update(words(0.9, 0.2, 0.9), 99)
    assert said(agreement.update(words(0.9, 0.2, 0.9), 99)) == "w0"
    assert agreement.update(words(0.9, 0.2, 0.9, 0.9), 99, waited_until=1.4) == []
    assert said(agreement.update(words(0.9, 0.2, 0.9, 0.9), 99, waited_until=1.5)) == "w1 w2 w3"
    agreement.update(words(0.9, 0.2, 0.9, 0.9, 0.1, 0.9), 99)
    assert agreement.wait(4.4) == []
    assert said(agreement.wait(4.5)) == "w4"
    assert said(agreement.partial) == "w5"
    assert said(agreement.wait(float("inf"))) == "w5"


def test_where_it_is_hurried_less_is_enough() -> None:
    words = [Word(i, i + 0.5, f" w{i}", probability) for i, probability in enumerate((0.9, 0.9, 0.22, 0.9, 0.1))]
    patient, hurried = Agreement(3, sure=0.25), Agreement(3, sure=0.25)
    for agreement in (patient, hurried):
        for _ in range(2):
            assert agreement.update(words, 99, hurried=agreement is hurried) == []
    assert said(patient.update(words, 99)) == "w0 w1"  # w2 has 0.22 * 0.9
    assert said(hurried.update(words, 99, hurried=True)) == "w0 w1 w2 w3"


def test_an_overdue_word_must_be_surer() -> None:
    words = [Word(i, i + 0.5, f" w{i}", probability) for i, probability in enumerate((0.9, 0.5, 0.9, 0.5, 0.9))]
    agreement = Agreement(sure=0.3, surer=0.8)
    agreement.update(words, 99)
    assert said(agreement.update(words, 99, overdue_until=1.5)) == ""  # w0 stands before an unsure one
    agreement = Agreement(sure=0.3, surer=0.5)
    agreement.update(words, 99)
    assert said(agreement.update(words, 99, overdue_until=1.5)) == "w0"
    assert said(agreement.update(words, 99, overdue_until=1.4)) == "w1 w2 w3 w4"
    for overdue in (True, False):  # what is overdue needs no less than the others
        agreement = Agreement(sure=0.6, surer=0.5)
        agreement.update(words, 99)
        assert said(agreement.update(words, 99, overdue_until=99 if overdue else 0)) == "w0"
    hurried = Agreement(sure=0.3, surer=0.8)
    hurried.update(words, 99)
    assert len(hurried.update(words, 99, overdue_until=99, hurried=True)) == 5


def test_neighbours_count_for_how_sure_a_word_is() -> None:
    assert sureness(1, 0.5, 1) == 0.5
    assert sureness(0.25, 0.8, 1) == pytest.approx(0.4)
    assert sureness(0.5, 0, 0.5) == 0


def test_what_turned_out_to_be_noise_is_forgotten() -> None:
    agreement = Agreement(sure=0.95)
    agreement.update(spoken("one two"), 99)
    agreement.update(spoken("one two"), 99, waited_until=0.5)
    agreement.update(spoken("one two three"), 99)
    agreement.restore(spoken("one two"))
    assert said(agreement.partial) == "two"
    assert said(agreement.finish(spoken("one two"))) == "two"


def test_firm_words_stay_though_hypotheses_change_their_mind() -> None:
    agreement = Agreement()
    agreement.update(spoken("I scream for it"), 99)
    agreement.update(spoken("I scream for it"), 99)
    assert agreement.update(spoken("ice cream for it now"), 99) == []
    assert said(agreement.update(spoken("ice cream for it now please"), 99)) == "now"
    assert said(agreement.firm) == "I scream for it now"


def test_repeated_words_are_counted_right() -> None:
    agreement = Agreement()
    for count in (2, 3, 4, 5):
        agreement.update(spoken(" ".join(["very"] * count)), 99)
    assert said(agreement.firm) == "very very very very"
    assert said(agreement.finish(spoken("very very very very very good"))) == "very good"


def test_sound_may_be_dropped() -> None:
    agreement = Agreement()
    agreement.update(spoken("one two three four five"), 99)
    agreement.update(spoken("one two three four five"), 99)
    assert said(agreement.drop_before(0.95)) == "one two"
    agreement.update(spoken("three four five six", start=1.0), 99)
    assert said(agreement.update(spoken("three four five six seven", start=1.0), 99)) == "six"
    assert said(agreement.firm) == "one two three four five six"


def test_times_do_not_run_backwards() -> None:
    agreement = Agreement()
    agreement.finish([Word(0, 2.0, " a", 1), Word(1.5, 1.8, " b", 1), Word(2.5, 3.0, " c", 1)])
    times = [time for word in agreement.firm for time in (word.start, word.end)]
    assert times == sorted(times)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=6))
def test_the_prefix_that_matches(known: list[str], more: list[str]) -> None:
    """With nothing changed it is the known words themselves."""
    assert matching_prefix(spoken(" ".join(known)), spoken(" ".join(known + more))) == len(known)


@given(st.integers(0, 10**6))
def test_a_noisy_listener_loses_and_doubles_little(seed: int) -> None:
    """Hypotheses with errors at their ends, as recognizers make them: hardly any word is lost or doubled."""
    rng = random.Random(seed)
    truth = [rng.choice(["the", "of", "and", "to", "in", "is", "you", "that", "it", "he"]) for _ in range(30)]
    agreement = Agreement()
    for heard in range(1, 31):
        words = truth[:heard]
        if rng.random() < 0.5:
            words = [*words[:-1], "uh"]
        agreement.update(spoken(" ".join(words)), 99)
    agreement.finish(spoken(" ".join(truth)))
    assert abs(len(agreement.firm) - 30) <= 2
    assert sum(a == b.text.strip() for a, b in zip(truth, agreement.firm, strict=False)) >= 20


def test_words_as_they_sound() -> None:
    assert [plain(text) for text in (" Don't,", "don’t", " U.S.", " —")] == ["dont", "dont", "us", ""]
