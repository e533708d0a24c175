"""Put a language SFT and a task SFT into their base and predict: `python examples/compose_and_predict.py BASE`."""

import sys

from ltsft import composed, load_base, load_sft, model_of

base = load_base(sys.argv[1])
language, task = load_sft("sfts/en"), load_sft("sfts/pos")
model = model_of(base, task)
batch = base.tokenizer(["The", "dog", "sleeps", "."], is_split_into_words=True, return_tensors="pt")
with composed(model, [(language, 1.0), (task, 1.0)], base=base.ref):
    labels = model(**batch).logits[0].argmax(-1).tolist()  # on leaving, the model is the base again, bit for bit
for subword, label in zip(batch.tokens(), labels, strict=True):
    print(subword, task.labels[label])
