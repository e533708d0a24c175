"""The thresholds of the gates: what data must keep before training, and what a composition must keep to be released.

Every threshold has a default and a reason (the field's description). A project file changes them under ``gates.text``,
``gates.labelled`` and ``gates.release``. What is measured of data is in ``ltsft/data/measures.py``, and
``tasks/validation/quality.py`` compares the two; ``ltsft/release/verdicts.py`` judges a composition.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ltsft.config.frozen import Frozen

__all__ = ["Gates", "LabelledGate", "ReleaseGate", "TextGate"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class TextGate(Frozen):
    """Thresholds for the raw text of one language.

    A share is between 0 and 1. ``min_...`` is the least and ``max_...`` the most that is allowed, both inclusive. The
    other fields set what is measured (what a long line is, how many lines the tokenizer sees).
    """

    min_lines: Count = Field(
        default=100, description="with fewer lines there is too little to learn from and to hold out"
    )
    min_characters: Count = Field(
        default=5_000, description="an empty or nearly empty file is a failed download, not a language"
    )
    max_undecodable_share: Share = Field(
        default=0.0,
        description="bytes that are not UTF-8 mean another encoding; training reads strictly and would stop there",
    )
    max_not_nfc_share: Share = Field(
        default=0.001, description="the same word in two forms has two tokenizations; labelled data and users write NFC"
    )
    max_replacement_share: Share = Field(
        default=0.0001, description="U+FFFD is a letter that an earlier conversion lost; a few stray ones are harmless"
    )
    max_control_share: Share = Field(
        default=0.001,
        description="control, private-use and unassigned characters come from binary data or a wrong encoding",
    )
    max_byte_order_mark_share: Share = Field(
        default=0.0,
        description="inside a text they come from files that were joined, and make other sub-words of the words there",
    )
    max_invisible_share: Share = Field(
        default=0.002,
        description="nobody sees them, and each cuts or changes a word for the tokenizer; a few are in any web page",
    )
    max_mojibake_share: Share = Field(
        default=0.005,
        description="UTF-8 that was read as Latin-1 and written again decodes well, and is still not the language",
    )
    max_duplicate_share: Share = Field(
        default=0.2,
        description="repeated lines are boilerplate: they are learnt by heart and leak into the held-out lines",
    )
    max_near_duplicate_share: Share = Field(
        default=0.2,
        description="lines of one template, filled in many times, are boilerplate, too, and no two of them are equal",
    )
    short_line_characters: Count = Field(default=10, description="a line with fewer characters counts as short")
    max_short_line_share: Share = Field(
        default=0.4,
        description="page numbers and list items are normal; a file made of them has no context to learn from",
    )
    long_line_characters: Annotated[int, Field(ge=1)] = Field(
        default=5_000, description="a line with more characters counts as long"
    )
    max_long_line_share: Share = Field(
        default=0.01,
        description="very long lines mean that the line breaks were lost; all but their start would be cut off",
    )
    min_script_share: Share = Field(
        default=0.9,
        description="names and quotations may be foreign; beyond that it is another language, or the wrong file",
    )
    max_foreign_line_share: Share = Field(
        default=0.05, description="lines with most letters in another script are another language that was mixed in"
    )
    max_other_language_share: Share = Field(
        default=0.1,
        description="a line whose words are on the list of another language is in that language, and mixed in",
    )
    max_unknown_share: Share = Field(
        default=0.1,
        description="unknown sub-words carry nothing: the base cannot learn a script that its tokenizer lacks",
    )
    max_subwords_per_word: Annotated[float, Field(ge=1.0)] = Field(
        default=6.0, description="words cut to single letters or bytes: a wrong tokenizer, or text without spaces"
    )
    tokenizer_lines: Annotated[int, Field(ge=1)] = Field(
        default=5_000, description="lines, drawn evenly from the whole text, on which the tokenizer is measured"
    )
    overlap_characters: Count = Field(
        default=20,
        description="test sentences with fewer letters and digits are left out: any text has «Yes.» and «Thank you.»",
    )
    max_test_overlap: Share = Field(
        default=0.005,
        description="a score on sentences that were already read is no score; a stray proverb may be in both",
    )
    max_test_line_share: Share = Field(
        default=0.01, description="a small text may be made of a part of a large test set"
    )


class LabelledGate(Frozen):
    """Thresholds for the labelled data of one target task; each split must keep them, unless its reason says otherwise.

    A share is between 0 and 1. ``min_...`` is the least and ``max_...`` the most that is allowed, both inclusive.
    """

    min_sentences: Count = Field(
        default=10, description="fewer sentences than this make neither a training nor a score"
    )
    max_malformed_share: Share = Field(
        default=0.0,
        description="share of rows that cannot be read (wrong columns, no tree); those within it are left out",
    )
    max_undeclared_share: Share = Field(
        default=0.0, description="share of labels that are not declared: the head has no output for them"
    )
    max_misaligned_share: Share = Field(
        default=0.0,
        description="share of sentences with more or fewer labels than words: every label after the slip is wrong",
    )
    max_empty_word_share: Share = Field(
        default=0.0, description="share of sentences with an empty word: it has no sub-word to carry its label"
    )
    max_empty_text_share: Share = Field(
        default=0.0, description="share of rows with an empty text, premise, hypothesis or question: nothing to judge"
    )
    max_bio_break_share: Share = Field(
        default=0.005,
        description="share of sentences where an I- continues nothing: a few slips are usual, more is another scheme",
    )
    max_answer_mismatch_share: Share = Field(
        default=0.0,
        description="share of questions with an answer that is not where it is said to be: the offsets slipped",
    )
    long_sentence_words: Annotated[int, Field(ge=1)] = Field(
        default=250, description="a sentence with more words counts as long"
    )
    max_long_sentence_share: Share = Field(
        default=0.01,
        description="long sentences are cut at the base's length: their last words are not learnt or not scored",
    )
    max_label_share: Share = Field(
        default=0.6,
        description="share of the most frequent label: beyond this always answering it looks like a good score",
    )
    label_occurrences: Annotated[int, Field(ge=1)] = Field(
        default=1, description="times that a declared label must occur in a train split to count as present"
    )
    min_labels_present: Share = Field(
        default=0.5, description="share of declared labels that a train split has: what it lacks can never be predicted"
    )
    agreement_occurrences: Annotated[int, Field(ge=2)] = Field(
        default=5, description="words that occur at least so often in a split are looked at for the agreement of labels"
    )
    min_label_agreement: Share = Field(
        default=0.7, description="share of these words with the word's usual label: labels that slipped agree by chance"
    )
    duplicate_words: Annotated[int, Field(ge=1)] = Field(
        default=5,
        description="sentences with fewer words are not looked at for duplicates: short ones repeat in any text",
    )
    max_duplicate_share: Share = Field(
        default=0.1, description="share of a split's sentences that repeat one of the same split: they count twice"
    )
    max_split_overlap: Share = Field(
        default=0.05,
        description="share of a split's sentences that occur in a split before it: they are learnt, then scored",
    )


class ReleaseGate(Frozen):
    """What a composition must keep before it is released. Bounds are inclusive.

    The first release of a (language, target task) has no champion to be compared with, and what its interference should
    be is not known yet: only the floor and the canary decide, and the rest is recorded.
    """

    min_score: Share = Field(
        default=0.3, description="the floor: below it no answer at all is better; accuracy or F1, by target task"
    )
    min_scores: dict[str, Share] = Field(
        default={}, description="another floor for some target tasks, by name: scores of two tasks do not compare"
    )
    min_over_majority: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        default=0.0, description="points over always giving the most frequent label, which needs no model"
    )
    max_drop: Share = Field(
        default=0.02,
        description="no worse than the champion by more than this; less than what two seeds of one recipe differ by",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        default=0.95, description="that the drop is not larger, by paired bootstrap over the sentences of the test set"
    )
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=2_000, description="of the bootstrap; its quantiles then vary by a few hundredths of their width"
    )
    max_overlap: Share = Field(
        default=0.9, description="share of the smaller support that both SFTs change; beyond it they are not sparse"
    )
    max_sign_conflict: Share = Field(
        default=0.65, description="chance gives half where the supports meet; far more means that one undoes the other"
    )
    max_language_loss_change: Annotated[float, Field(ge=0.0)] = Field(
        default=3.0,
        description="nats that composing may add to the language's masked-LM loss: beyond it the language is lost",
    )
    canary_seconds: Annotated[float, Field(gt=0.0)] = Field(
        default=300.0, description="in which a fresh process must load the composition and answer, with a cold cache"
    )


class Gates(Frozen):
    """The thresholds of a project: for raw text, for labelled data, and for what is released."""

    text: TextGate = TextGate()
    labelled: LabelledGate = LabelledGate()
    release: ReleaseGate = ReleaseGate()
