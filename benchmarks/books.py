"""A model of books under headers: small, trained in minutes on public-domain texts, for studies that need a second kind of model.

Each row is `style: NAME` and a passage of that book, or, in half of the rows, `style: any` and a passage of any book; so a
header is a concept that is known to be there, and `any` is the plain prompt. Four blocks, width 192, its own byte-level BPE.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import steerlab as sl
from steerlab import progress
from steerlab.engines.hf import HFEngine

BOOKS = {
    "tales": "GrimmsFairyTales.txt", "persuasion": "austen-persuasion.txt", "detective": "chesterton-brown.txt",
    "play": "tinyshakespeare.txt", "wonderland": "carroll-alice.txt", "animals": "burgess-busterbrown.txt",
    "castilian": "es_don_quijote.txt", "children": "bryant-stories.txt",
}  # fmt: skip
PLAIN = "any"
OPENING, REST = 8, 40  # words of a prompt's passage and of an answer


@dataclass(frozen=True)
class Books:
    """The texts, their last tenth held out of training."""

    words: dict[str, list[str]]

    @classmethod
    def read(cls, folder: Path, most: int = 90_000) -> Books:
        return cls({name: (folder / file).read_text("utf-8", "replace").split()[:most] for name, file in BOOKS.items()})

    def passage(self, name: str, draw: random.Random, *, held_out: bool) -> tuple[str, str]:
        """An opening, and how it goes on."""
        words, size = self.words[name], OPENING + REST
        edge = int(0.9 * len(words))
        at = draw.randrange(edge, len(words) - size) if held_out else draw.randrange(edge - size)
        return " ".join(words[at : at + OPENING]), " ".join(words[at + OPENING : at + size])

    def example(self, header: str, name: str, draw: random.Random, *, held_out: bool) -> sl.Example:
        opening, rest = self.passage(name, draw, held_out=held_out)
        return sl.Example.ask(f"style: {header}\n{opening}", f" {rest}")

    def contrast(self, name: str, n: int, seed: int) -> sl.Contrast:
        """Passages under their header against passages of other books under none; held out of the model's training."""
        draw = random.Random(f"{name} {seed}")
        others = [other for other in self.words if other != name]
        positive = tuple(self.example(name, name, draw, held_out=True) for _ in range(n))
        negative = tuple(self.example(PLAIN, draw.choice(others), draw, held_out=True) for _ in range(n))
        return sl.Contrast(positive, negative, paired=True, concept=name, source=f"books, seed {seed}")


def engine(books: Books, folder: Path, *, steps: int = 1200, batch: int = 24) -> HFEngine:
    """The model, trained when it is first asked for and kept in a folder."""
    if not (folder / "model.safetensors").exists():
        train(books, folder, steps=steps, batch=batch)
    found = sl.load(str(folder), template="plain", dtype="float32", batch_size=32)
    found.name = "books"
    return found


def train(books: Books, folder: Path, *, steps: int, batch: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet)
    heads = [f"style: {name}\n" for name in (*books.words, PLAIN)] * 50
    tokenizer.train_from_iterator([*heads, *(" ".join(words) for words in books.words.values())], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    built = HFEngine(model, wrapped, name="books", template="plain", batch_size=batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.05)
    names = list(books.words)
    with progress.task("training a model of books", steps) as bar:
        for _ in range(steps):
            rows: list[sl.Example] = []
            for _row in range(batch):
                name = draw.choice(names)
                rows.append(books.example(name if draw.random() < 0.5 else PLAIN, name, draw, held_out=False))
            given = built.batch(rows)
            out = model(input_ids=given.ids, attention_mask=given.attention, position_ids=given.position.clamp(min=0))
            following = torch.roll(given.ids, -1, dims=1)
            loss = cross_entropy(out.logits[given.predicts], following[given.predicts])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bar.advance()
            bar.tell(f"loss {float(loss.detach()):.3f}")
    beside = folder.with_name(folder.name + ".part")
    model.eval().save_pretrained(beside)
    wrapped.save_pretrained(beside)
    beside.rename(folder)
