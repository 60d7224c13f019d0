"""Streaming against reading everything first: rows per second, and the most memory a process had.

python benchmarks/stream.py [ROWS]        writes benchmarks/results/stream.json
"""
import json, os, platform, resource, subprocess, sys, tempfile, time
from pathlib import Path

OUT = Path(__file__).parent/'results'/'stream.json'


def write_rows(path, n):
    "The built-in exercises again and again, each with a number, so that no two rows are equal."
    from llmft.data.sources import BUILTIN_DATA_DIR
    from llmft.data.files import read_file
    rows = [row for _, row in read_file(str(BUILTIN_DATA_DIR/'python-evol-1k'/'train.jsonl.gz'))]
    with open(path, 'w') as f:
        for i in range(n):
            r = rows[i % len(rows)]
            row = {'instruction': f'{r["instruction"]} ({i})', 'input': r['input'], 'output': r['output']}
            f.write(json.dumps(row) + '\n')


class Clock:
    "Seconds since it was made, and those in which a core worked for this process: other load changes only the first."
    def __init__(self): self.start, self.cpu = time.perf_counter(), time.process_time()
    def read(self): return time.perf_counter() - self.start, time.process_time() - self.cpu


def config(path, **keys):
    from llmft.config.config import load_config
    defaults = {'base_model': os.environ['MODEL'], 'datasets': [{'path': path}], 'sequence_len': 2048, 'dedup': 'off'}
    return load_config(defaults | keys)


def streamed(path): # rows and tokens that were read
    from llmft.tokens.stream import stream_tokens
    from llmft.tokens.tokenize import load_tokenizer
    c = config(path, streaming=True, max_steps=1)
    stream, counts = stream_tokens(load_tokenizer(c), c)
    clock, packed, tokens = Clock(), 0, 0
    for row in stream:
        packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return counts.rows, packed, tokens, clock


def in_memory(path):
    from llmft.data.dedup import prepare_rows
    from llmft.tokens.packing import pack
    from llmft.tokens.tokenize import load_tokenizer, tokenize_dataset
    c = config(path)
    tokenizer = load_tokenizer(c)
    clock, packed, tokens = Clock(), 0, 0
    rows = prepare_rows(c).train
    for row in pack(tokenize_dataset(rows, tokenizer, c), c.sequence_len):
        packed, tokens = packed + 1, tokens + len(row['input_ids'])
    return len(rows), packed, tokens, clock


def measure(way, path): # in a process of its own, with an empty cache
    from llmft.hub import fetch_builtin
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {'HF_DATASETS_CACHE': f'{cache}/hf', 'LLMFT_HOME': f'{cache}/llmft',
                            'MODEL': str(fetch_builtin()), 'TQDM_DISABLE': '1'}
        done = subprocess.run([sys.executable, __file__, way, path], env=env, capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(n):
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/rows.jsonl'
        write_rows(path, n)
        machine = f'{os.cpu_count()} cores, {platform.processor() or platform.machine()}'
        result = {'machine': machine, 'load': round(os.getloadavg()[0], 1), 'rows': n,
                  'megabytes': round(os.path.getsize(path) / 1e6)}
        for way in ('streamed', 'in_memory'): result[way] = measure(way, path)
    a, b = result['in_memory'], result['streamed']
    assert a['tokens'] == b['tokens']
    result['rate_against_in_memory'] = round(a['seconds'] / b['seconds'], 2)
    result['the_same_in_cpu_seconds'] = round(a['cpu_seconds'] / b['cpu_seconds'], 2)
    print(json.dumps(result, indent=1))
    return result


def run(way, path): # in this process
    rows, packed, tokens, clock = globals()[way](path)
    seconds, cpu = clock.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 # Linux counts in KiB
    return {'rows_per_second': round(rows / seconds), 'seconds': round(seconds, 1), 'cpu_seconds': round(cpu, 1),
            'peak_rss_gb': round(peak / 1e9, 2), 'tokens': tokens, 'packed_rows': packed,
            'fill': round(tokens / (packed * 2048), 4)}


if __name__ == '__main__':
    if sys.argv[1:2] in (['streamed'], ['in_memory']): print(json.dumps(run(*sys.argv[1:3])))
    else: OUT.write_text(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000), indent=1) + '\n')
