"""What prompts reach where nothing is trained: how many of the 100 held-out exercises the built-in model solves when it
is asked in its own chat template, alone, behind examples, and behind examples of the very kind that is asked for.
`python -m benchmarks.prompts` writes `results/prompts.json`."""
import json, sys
from pathlib import Path

from benchmarks.book import BASE, builtin_rows, machine, opened, question, solved
from llmft.config.config import load_config
from llmft.core import write_atomic
from llmft.hub import fetch_builtin
from llmft.inference.generate import default_dataset
from llmft.tokens.tokenize import load_tokenizer

RESULTS = Path(__file__).parent/'results'
MIXED = ['sum_multiples', 'gen_down', 'replace_text', 'count_items', 'count_letter'] # kinds, of each the first row


def turns(row):
    "An exercise with its answer, as two messages."
    return [{'role': 'user', 'content': question(row)}, {'role': 'assistant', 'content': row['output']}]


def conversations(asked, rows, n=5):
    "`{way of asking: the exercises as conversations}`; of the same kind the first `n` rows are shown."
    mixed = [next(row for row in rows if row['family'] == kind) for kind in MIXED]
    same = [[row for row in rows if row['family'] == exercise['family']][:n] for exercise in asked]
    examples = {'alone': [[]]*len(asked), 'mixed': [mixed]*len(asked), 'same_kind': same}
    return {way: [exercise | {'messages': [m for row in [*shown, exercise] for m in turns(row)]}
                  for shown, exercise in zip(lists, asked)] for way, lists in examples.items()}


def main():
    import torch
    torch.set_num_threads(1)
    asked, rows = builtin_rows('heldout'), builtin_rows('train')
    model, tokenizer = opened(fetch_builtin('smollm2-135m')), load_tokenizer(load_config(BASE))
    results = {'machine': machine()}
    for way, exercises in conversations(asked, rows).items():
        found = results[way] = solved(model, tokenizer, exercises, default_dataset(tokenizer))
        print(f'{way}: {sum(found[:80])} of 80, {sum(found[80:])} of 20', file=sys.stderr)
    lines = ',\n '.join(f'{json.dumps(key)}: {json.dumps(value)}' for key, value in results.items())
    write_atomic(RESULTS/'prompts.json', f'{{{lines}}}\n')


if __name__ == '__main__': main()
