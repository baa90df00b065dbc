"""Trains the tokenizer of the demo: byte-level BPE, on the demo's own text.

The result is part of the repository (model/tokenizer.json), so nobody needs to run this. To run it all the same:

    pip install tokenizers
    python demo/train_tokenizer.py
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 4096  # config.json states it too
END_OF_TEXT = "<|endoftext|>"

demo = Path(__file__).parent
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY_SIZE,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be encoded, not only this one
    show_progress=False,
)
tokenizer.train([str(path) for path in sorted((demo / "data").glob("*.txt"))], trainer)
assert tokenizer.get_vocab_size() == VOCABULARY_SIZE

tokenizer.save(str(demo / "model" / "tokenizer.json"))
settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": END_OF_TEXT,
    "pad_token": END_OF_TEXT,
    "model_max_length": 1024,
}
(demo / "model" / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
