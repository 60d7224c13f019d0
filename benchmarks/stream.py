"""Streaming against reading everything first: rows per second, and the most memory a process had.

python benchmarks/stream.py [ROWS]        writes benchmarks/results/stream.json
"""
import json, os, platform, resource, subprocess, sys, tempfile, time
from pathlib import Path

OUT = Path(__file__).parent/'results'/'stream.json'


def write_rows(path, n):
    "The built-in exercises again and again, each with a number, so that no two rows are equal."
    from llmft.data import BUILTIN
    from llmft.files import read_file
    rows = [row for _, row in read_file(str(BUILTIN/'python-evol-1k'/'train.jsonl.gz'))]
    with open(path, 'w') as f:
        for i in range(n):
            r = rows[i % len(rows)]
            f.write(json.dumps({'instruction': f'{r["instruction"]} ({i})', 'input': r['input'], 'output': r['output']}) + '\n')


def config(path, **more):
    from llmft.config import load_config
    return load_config({'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': path}], 'sequence_len': 2048, 'dedup': 'off'} | more)


def streamed(path): # rows and tokens that were read
    from llmft.stream import stream_tokens
    from llmft.tokens import load_tokenizer
    c = config(path, streaming=True, max_steps=1)
    stream, counts = stream_tokens(load_tokenizer(c), c)
    start, packed, tokens = time.perf_counter(), 0, 0
    for row in stream: packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return counts.rows, packed, tokens, time.perf_counter() - start


def in_memory(path):
    from llmft.dedup import prepare_rows
    from llmft.packing import pack
    from llmft.tokens import load_tokenizer, tokenize_dataset
    c = config(path)
    tokenizer = load_tokenizer(c)
    start, packed, tokens = time.perf_counter(), 0, 0
    rows = prepare_rows(c).train
    for row in pack(tokenize_dataset(rows, tokenizer, c), c.sequence_len): packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return len(rows), packed, tokens, time.perf_counter() - start


def measure(how, path): # in a process of its own, with an empty cache
    with tempfile.TemporaryDirectory() as cache:
        Path(cache, 'llmft').mkdir()
        env = os.environ | {'HF_DATASETS_CACHE': f'{cache}/hf', 'LLMFT_ROWS_CACHE': f'{cache}/llmft', 'TQDM_DISABLE': '1'}
        done = subprocess.run([sys.executable, __file__, how, path], env=env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(n):
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/rows.jsonl'
        write_rows(path, n)
        found = {'machine': f'{os.cpu_count()} cores, {platform.processor() or platform.machine()}', 'rows': n, 'megabytes': round(os.path.getsize(path) / 1e6)}
        for how in ('streamed', 'in_memory'): found[how] = measure(how, path)
    assert found['streamed']['tokens'] == found['in_memory']['tokens']
    found['rate against in memory'] = round(found['streamed']['rows_per_second'] / found['in_memory']['rows_per_second'], 2)
    print(json.dumps(found, indent=1))
    return found


if __name__ == '__main__':
    if sys.argv[1:2] in (['streamed'], ['in_memory']):
        rows, packed, tokens, seconds = globals()[sys.argv[1]](sys.argv[2])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 # Linux counts in KiB
        print(json.dumps({'rows_per_second': round(rows / seconds), 'seconds': round(seconds, 1), 'peak_rss_gb': round(peak / 1e9, 2), 'tokens': tokens,
            'packed_rows': packed, 'fill': round(tokens / (packed * 2048), 4)}))
    else: OUT.write_text(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), indent=1) + '\n')
