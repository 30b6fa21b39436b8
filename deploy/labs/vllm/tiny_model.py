"""Makes the lab's small model: a random two-layer Llama with a tokenizer and a chat template, as a hub's cache has it.

    python tiny_model.py HF_HOME TEXT…    prints the commit

Runs with the lab's own interpreter (torch, tokenizers, transformers), offline, in seconds. The same texts and versions
give the same files, and the commit is a digest of them. Nothing was trained: what it writes is noise, and says so here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = "tenantry/tiny"
VOCABULARY = 1024
CONTEXT = 2048
SEED = 20260601
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|begin|>' + message['role'] + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\\n' }}{% endif %}"
)


def tokenizer_into(folder: Path, texts: list[Path]) -> int:
    """Train a byte-level BPE on `texts`, write it; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator((text.read_text(encoding="utf-8") for text in texts), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def model_into(folder: Path, vocabulary: int) -> None:
    """Write random weights as safetensors, with their config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, safe_serialization=True)


def commit_of(folder: Path) -> str:
    """Return forty hex digits that stand for all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:40]


def main(home: Path, texts: list[Path]) -> str:
    """Make the model below `home` and return its commit; one that is there already is left alone."""
    repository = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (repository / "snapshots").mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository) as scratch:
        folder = Path(scratch) / "snapshot"
        folder.mkdir()
        model_into(folder, tokenizer_into(folder, texts))
        commit = commit_of(folder)
        target = repository / "snapshots" / commit
        if not target.exists():
            shutil.move(folder, target)
    (repository / "refs" / "main").write_text(commit)
    (repository / "tenantry.json").write_text(json.dumps({"repository": REPOSITORY, "commit": commit}) + "\n")
    return commit


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), [Path(text) for text in sys.argv[2:]]))
