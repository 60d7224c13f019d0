"""Conversations to ids and a mask of what is learned: llmft, which checks every row, against the tokenizer's own
`apply_chat_template` with `return_assistant_tokens_mask`, on the same rows in one run."""
import json, os, platform, random, statistics, sys, time
from pathlib import Path

import tokenizers, transformers

from llmft.config.config import load_config
from llmft.tokens.encode import IGNORE_INDEX
from llmft.tokens.tokenize import encode_columns, load_tokenizer

RESULTS = Path(__file__).parent/'results'
WORDS = ('red blue green stone river cloud apple chair seven storm window paper garden silver horse music letter '
         'bridge candle forest').split()


def conversation(i, n_questions):
    rng = random.Random(i)
    def say(low, high): return ' '.join(rng.choices(WORDS, k=rng.randint(low, high)))
    pairs = [({'role': 'user', 'content': say(10, 40)}, {'role': 'assistant', 'content': say(20, 100)})
             for _ in range(n_questions)]
    return [message for pair in pairs for message in pair]


def timed(function):
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def same(table, reference): # share of the rows with the same ids and the same mask
    rows = zip(table['input_ids'].to_pylist(), table['labels'].to_pylist(), reference['input_ids'],
               reference['assistant_masks'])
    equal = [ids == expected and [l != IGNORE_INDEX for l in labels] == [bool(m) for m in mask]
             for ids, labels, expected, mask in rows]
    return sum(equal) / len(equal)


def measure(template, n_questions, n, repeats):
    config = load_config({'base_model': 'builtin/smollm2-135m', 'sequence_len': 8192, 'chat_template': template,
                          'datasets': [{'path': 'rows.jsonl', 'type': 'chat_template'}]})
    tokenizer, rows = load_tokenizer(config), [conversation(i, n_questions) for i in range(n)]
    columns = {'messages': rows, 'source': [0] * n, 'row': list(range(n))}
    def llmft(): return encode_columns(columns, tokenizer, config)
    def own(): return tokenizer.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
    times = [(timed(own), timed(llmft)) for _ in range(repeats)] # in turn, so that other load hits both
    ratio = statistics.median(a[0] / b[0] for a, b in times)
    return {'template': template, 'questions': n_questions, 'rows': n, 'llmft_over_transformers': round(ratio, 2),
            'transformers_rows_per_cpu_second': round(n / statistics.median(a[0] for a, _ in times)),
            'llmft_rows_per_cpu_second': round(n / statistics.median(b[0] for _, b in times)),
            'same_ids_and_mask': same(times[-1][1][1], times[-1][0][1])}


def main(n=500, repeats=5):
    machine = {'cores': os.cpu_count(), 'load': round(os.getloadavg()[0], 1), 'python': platform.python_version(),
               'tokenizers': tokenizers.__version__, 'transformers': transformers.__version__}
    cases = [measure(template, questions, n, repeats) for template in ('qwen3', 'qwen3_instruct_2507', 'lfm2')
             for questions in (1, 3, 10)]
    result = {'machine': machine, 'cases': cases}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'chat_rows.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
