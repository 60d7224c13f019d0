"""Tokens per second of CPU time that a 4-bit model generates: with bitsandbytes' own product, and with the layout that
can be trained. Where the CPU has no bfloat16 instructions there is no such product, and both are the same way."""
import json, os, time
from pathlib import Path
from unittest import mock

from bitsandbytes.functional import has_avx512bf16

from llmft import load_base, load_config, load_tokenizer
from llmft.inference import generate
from llmft.model.base import keep_layout

RESULTS = Path(__file__).parent/'results'


def tokens_per_second(model, tokenizer, prompts, n): # of CPU time, the same number of tokens for each prompt
    start = time.process_time()
    ids = generate.generate_ids(model, tokenizer, prompts, max_new_tokens=n)
    return sum(map(len, ids)) / (time.process_time() - start)


def main(rounds=3):
    config = load_config('smollm2-135m')
    model, tokenizer = load_base(config), load_tokenizer(config)
    prompts = [generate.prompt_ids(f'Count from {i} to 1000.', tokenizer, config.datasets[0]) for i in range(4)]
    ways = {'own product': [], 'layout for training': []}
    for _ in range(rounds):
        ways['own product'].append(tokens_per_second(model, tokenizer, prompts, 48))
        keep_layout(model)
        with mock.patch.object(generate, 'allow_quick_layout', lambda model: model):
            ways['layout for training'].append(tokens_per_second(model, tokenizer, prompts, 48))
    best = {way: round(max(speeds), 1) for way, speeds in ways.items()}
    result = {'has the instructions': bool(has_avx512bf16()), 'cores': os.cpu_count(), 'tokens per CPU second': best,
              'ratio': round(best['own product'] / best['layout for training'], 2)}
    print(json.dumps(result, indent=1))
    (RESULTS/'generate_cpu.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': main()
