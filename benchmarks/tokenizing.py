"""Rows a second from text to ids and labels: llmft and TRL's `SFTTrainer`, both against the bare tokenizer on the
same texts."""
import json, os, platform, statistics, sys, tempfile, time
from pathlib import Path

import tokenizers
from datasets import Dataset, disable_caching

from llmft.config.config import load_config
from llmft.data.sources import load_rows
from llmft.prompts.turns import row_to_turns
from llmft.tokens.tokenize import load_tokenizer, tokenize_dataset

RESULTS = Path(__file__).parent/'results'


def make_rows(n): # the built-in exercises over and over, each time with another number in front
    rows = load_rows(load_config('smollm2-135m')).select_columns(['instruction', 'input', 'output'])
    rows = [rows[i] for i in range(len(rows))]
    def numbered(row, i): return row | {'instruction': f'{i}. {row["instruction"]}', 'source': 0, 'row': i}
    return [numbered(rows[i % len(rows)], i) for i in range(n)]


def trl_seconds(data, tokenizer): # what `SFTTrainer` does with the data before it trains
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer
    seconds = []

    class Trainer(SFTTrainer):
        def _prepare_dataset(self, *args, **kwargs):
            start = time.perf_counter()
            try: return super()._prepare_dataset(*args, **kwargs)
            finally: seconds.append(time.perf_counter() - start)

    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                                         num_hidden_layers=1, num_attention_heads=1))
    args = SFTConfig(output_dir=tempfile.mkdtemp(), max_length=2048, report_to='none', use_cpu=True)
    Trainer(model, args, train_dataset=data, processing_class=tokenizer)
    return seconds[0]


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(n=20_000, repeats=3):
    disable_caching()
    config = load_config({'base_model': 'builtin/smollm2-135m', 'sequence_len': 2048,
                          'datasets': [{'path': 'rows.jsonl', 'type': 'alpaca'}]})
    tokenizer, rows = load_tokenizer(config), make_rows(n)
    turns = [row_to_turns(row, config.datasets[0], tokenizer) for row in rows]
    texts, data = [''.join(t.text for t in ts) for ts in turns], Dataset.from_list(rows)
    pairs = Dataset.from_list([{'prompt': ts[0].text, 'completion': ts[1].text} for ts in turns])
    def bare(): return tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    def llmft(): return tokenize_dataset(data, tokenizer, config)
    def trl(): return trl_seconds(pairs, tokenizer)
    ways = {'tokenizer': lambda: timed(bare), 'llmft': lambda: timed(llmft), 'trl': trl}
    times = {way: [] for way in ways}
    for _ in range(repeats): # in turn, so that other load on the machine hits all of them
        for way, measure in ways.items(): times[way].append(measure())
    tokens = sum(map(len, llmft()['input_ids']))
    def ratio(a, b): return round(statistics.median(x / y for x, y in zip(times[a], times[b])), 2)
    def way_result(way):
        seconds = statistics.median(times[way])
        return {'by': way, 'seconds': round(seconds, 2), 'rows/s': round(n / seconds),
                'share of the bare tokenizer': ratio('tokenizer', way)}
    machine = {'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 1), 'python': platform.python_version(),
               'tokenizers': tokenizers.__version__}
    result = {'machine': machine, 'rows': n, 'tokens': tokens, 'ways': [way_result(way) for way in ways],
              'llmft_over_trl': ratio('trl', 'llmft')}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'tokenizing.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
