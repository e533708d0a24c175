"""Raw text to packed training batches: how fast on one core, and in how much memory; the limit is the tokenizer alone.

The text is generated, and so is the tokenizer: WordPiece as mBERT's, trained on the text. Where LTSFT_SHARED names real
data, a real text and the tokenizer of the real base are measured too.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.figures import Report, main
from benchmarks.timing import Timings, peak_memory
from ltsft.config import Source
from ltsft.data import read_text
from ltsft.objectives import LINES_AT_ONCE, MaskedLM, pack_text

MB = 1e6
LENGTH, BATCH = 256, 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
REAL_BASE, REAL_TEXT = "models/mini-multilingual-6x384", "data/text/fo.txt.gz"


def generate_text(characters: int) -> Iterator[str]:
    """Give lines of words that follow Zipf's law, an empty line after every twenty."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxzøåðáíæ"
    often = range(len(letters), 0, -1)
    words = ["".join(rng.choices(letters, weights=often, k=rng.randint(1, 9))) for _ in range(40_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    written = 0
    while written < characters:
        for chosen in (rng.choices(words, cum_weights=weights, k=18 * 20)[i : i + 18] for i in range(0, 18 * 20, 18)):
            line = " ".join(chosen).capitalize() + rng.choice(".?!,")
            written += len(line)
            yield line
        yield ""


def train_tokenizer(file: Path, *, lines: int) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer on the first lines of a file."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with file.open(encoding="utf-8") as text:
        trainer = trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=list(SPECIAL), show_progress=False)
        backend.train_from_iterator(islice(text, lines), trainer)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def pack_and_batch(source: Source, tokenizer: PreTrainedTokenizerBase, file: Path) -> int:
    """Do all that stands between raw text and the training step; give the number of batches."""
    packed = pack_text(read_text([source], documents=True), tokenizer, max_length=LENGTH, file=file)
    objective = MaskedLM(tokenizer)
    starts = range(0, len(packed), BATCH)
    for start in starts:
        rows = [packed[i] for i in range(start, min(start + BATCH, len(packed)))]
        objective.collate(rows, torch.Generator().manual_seed(start))
    file.unlink()
    return len(starts)


def tokenize_alone(blocks: list[list[str]], tokenizer: Any) -> None:
    """Run the tokenizer on lines that are in memory already, and drop what it gives."""
    for block in blocks:
        tokenizer.backend_tokenizer.encode_batch_fast(block, add_special_tokens=False)


def prepare_peak(text: str, tokenizer_folder: str) -> Callable[[], int]:
    """Set up one packing for the measurement of memory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    source = Source(scheme="text", location=text)
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.txt"
        few.write_text("\n".join(islice(generate_text(500_000), 5000)), encoding="utf-8")
        pack_and_batch(Source(scheme="text", location=str(few)), tokenizer, Path(folder) / "few.tokens")
    return lambda: pack_and_batch(source, tokenizer, Path(text).with_suffix(".tokens"))


def measure(text: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, rounds: int) -> tuple[float, float]:
    """Give characters a second of one core: all of it, and the tokenizer alone."""
    source = Source(scheme="text", location=str(text))
    lines = list(read_text([source]))
    characters = sum(map(len, lines))
    blocks = [lines[i : i + LINES_AT_ONCE] for i in range(0, len(lines), LINES_AT_ONCE)]
    seconds: dict[str, list[float]] = {"all": [], "tokenizer": []}
    for _ in range(rounds):
        began = time.process_time()  # of the core: whoever else runs does not count
        pack_and_batch(source, tokenizer, folder / "timed.tokens")
        between = time.process_time()
        tokenize_alone(blocks, tokenizer)
        seconds["all"].append(between - began)
        seconds["tokenizer"].append(time.process_time() - between)
    timings = Timings(seconds)
    return characters / timings.median("all"), characters / timings.median("tokenizer")


def run(quick: bool = False) -> Report:
    """Measure generated text, and real text where it is at hand."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a second and a core: one core
    torch.set_num_threads(1)
    characters = 300_000 if quick else 3_000_000
    rounds = 1 if quick else 5
    report = Report("corpus", f"{characters / 1e6:g} M characters to {BATCH} x {LENGTH} masked sub-words, one core")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [folder / "text.txt", folder / "longer.txt"]
        for factor, text in zip((1, 4), texts, strict=True):
            text.write_text("\n".join(generate_text(factor * characters)), encoding="utf-8")
        tokenizer = train_tokenizer(texts[0], lines=20_000)
        tokenizer.save_pretrained(folder / "tokenizer")
        speed, alone = measure(texts[0], tokenizer, folder, rounds)
        report.at_least("characters_a_second", speed, "1/s", 1_500_000, limit=alone)
        grown = [peak_memory(prepare_peak, str(text), str(folder / "tokenizer")).extra_bytes for text in texts]
        report.at_most("memory_for_4x_the_text", grown[1] - grown[0], "B", 32e6)
        report.note("memory beyond the tokenizer", grown[0] / MB, "MB")
        report.note("memory beyond the tokenizer, 4 x the text", grown[1] / MB, "MB")
        report.note("speed of the tokenizer alone", speed / alone, "x")
        shared = os.environ.get("LTSFT_SHARED", "")
        if shared and not quick and (Path(shared) / REAL_BASE).is_dir():
            real = AutoTokenizer.from_pretrained(Path(shared) / REAL_BASE)
            of_real, real_alone = measure(Path(shared) / REAL_TEXT, real, folder, 2)
            report.note("real text, real tokenizer (Unigram): characters a second", of_real, "1/s")
            report.note("real text, that tokenizer alone: characters a second", real_alone, "1/s")
    return report


if __name__ == "__main__":
    main("corpus", run)
