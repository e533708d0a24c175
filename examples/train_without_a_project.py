"""Learn a language SFT from texts and a task SFT from sentences: `python examples/train_without_a_project.py BASE`."""

import sys
from pathlib import Path

from ltsft import (
    PhaseSettings,
    Recipe,
    TokenClassification,
    Training,
    TrainingData,
    language_training,
    load_base,
    save_sft,
    train_sft,
)

texts = ["The cat sleeps on the table.", "A dog sees the cat."] * 100  # an empty line would end a document
sentences = [(["The", "cat", "sleeps", "."], ["DET", "NOUN", "VERB", "PUNCT"])] * 40

base, work = load_base(sys.argv[1]), Path("work")  # checkpoints go there: started again, a training goes on
phase = PhaseSettings(min_steps=2, max_steps=2, learning_rate=1e-4)
recipe = Recipe(density=0.08, full=phase, sparse=phase, batch_size=8, max_length=24)

of_texts = language_training(base, texts, language="en", recipe=recipe, folder=work / "en")
language = train_sft(base, of_texts, folder=work / "en")
save_sft(language, "sfts/en")

tagging = TokenClassification(base.tokenizer, labels=("DET", "NOUN", "VERB", "PUNCT"), max_length=24)
examples = tagging.encode(sentences)
data = TrainingData(examples[8:], held_out=examples[:8])
of_sentences = Training(
    objective=tagging,
    kind="task",
    subject="pos",
    recipe=recipe,
    data=data,
    applied=[language],  # the task SFT is learnt over base + this
    source_languages=("en",),
)
save_sft(train_sft(base, of_sentences, folder=work / "pos"), "sfts/pos")
