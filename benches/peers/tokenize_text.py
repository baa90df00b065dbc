"""The same text through Hugging Face `datasets` and `tokenizers`, as TRL does it: a text file, mapped by several processes.

    python tokenize_text.py TEXT TOKENIZER.JSON PROCESSES

prints one line of JSON: seconds by the clock, seconds of all processors, memory in MB (of this process and the largest of the
others, times their number), and tokens.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time

# One thread in each process, as there are as many processes as processors.
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def main(text: str, tokenizer_json: str, processes: int) -> None:
    import datasets
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(tokenizer_json)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [encoding.ids for encoding in tokenizer.encode_batch(batch["text"])]}

    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        rows = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache)
        encoded = rows.map(encode, batched=True, num_proc=processes, remove_columns=["text"])
        seconds = time.perf_counter() - start
        own = resource.getrusage(resource.RUSAGE_SELF)
        others = resource.getrusage(resource.RUSAGE_CHILDREN)
        lengths = encoded.data.column("input_ids")
        tokens = sum(sum(chunk.value_lengths().to_pylist()) for chunk in lengths.chunks)
    result = {
        "seconds": seconds,
        "cpu_seconds": own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime,
        "memory_mb": (own.ru_maxrss + processes * others.ru_maxrss) / 1e3,
        "tokens": tokens,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
