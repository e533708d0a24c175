"""Learn a task SFT with a Trainer of your own: `python examples/train_with_your_trainer.py BASE`."""

import sys

from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from ltsft import PhasedModel, load_base, save_sft

labels = ("good", "bad")
base = load_base(sys.argv[1])
texts = [("What a good day.", 0), ("This is bad.", 1)] * 16
rows = [{**base.tokenizer(text), "labels": label} for text, label in texts]
arguments = TrainingArguments("work/trainer", max_steps=2, remove_unused_columns=False, save_strategy="no")

phased = PhasedModel(base, base.sequence_classifier(labels, seed=0))
collator = DataCollatorWithPadding(base.tokenizer)
Trainer(phased, arguments, train_dataset=rows, data_collator=collator).train()  # the full phase
phased.select(density=0.08)  # keep the K weights that moved furthest, and rewind
Trainer(phased, arguments, train_dataset=rows, data_collator=collator).train()  # the sparse phase
save_sft(phased.sft("task", "mood", labels=labels, objective="classification"), "sfts/mood")
