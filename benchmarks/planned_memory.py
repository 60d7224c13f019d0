"""The memory plan against the most memory that a run had, on this machine: each run two steps long, in a process of
its own. `python -m benchmarks.planned_memory` writes `results/planned_memory.json`."""
import importlib, json, os, sys, tempfile, time
from pathlib import Path

from benchmarks.book import BASE, child, machine

RESULTS = Path(__file__).parent/'results'
SHORT = BASE | dict(max_steps=2, test_datasets=None, evals_per_epoch=0)
RUNS = { # name -> the keys in which it differs from the grid of the book
    'LoRA, rank 16': {},
    'LoRA, rank 64': dict(lora_r=64),
    'QLoRA, rank 16': dict(adapter='qlora', load_in_4bit=True),
    'with checkpointing': dict(gradient_checkpointing=True),
    '4 rows at a time': dict(micro_batch_size=4),
    'all weights': dict(adapter='full', learning_rate=1e-4)}


def gib_of_libraries():
    "What Python and the libraries of a run take, in this process."
    for name in ('bitsandbytes', 'datasets', 'llmft.training.train', 'peft', 'trl'): importlib.import_module(name)
    from llmft.training.watch import peak_memory_gib
    return round(peak_memory_gib(), 3)


def measured(name):
    "One run, in this process."
    import torch
    from llmft import finetune, load_config
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = finetune(load_config(SHORT | RUNS[name], output_dir=f'{folder}/run'), say=None)
        record = json.loads((run.path/'memory.json').read_text())
    return {'planned': round(record['planned_gib'], 3), 'measured': record['peak_gib']}


def main(*args):
    if args: return print(json.dumps(gib_of_libraries() if args[0] == 'libraries' else measured(args[0])))
    found = {'machine': machine() | {'cores': os.cpu_count()}, 'date': time.strftime('%Y-%m-%d'), 'keys': SHORT,
             'libraries': child('benchmarks.planned_memory', 'libraries'), 'runs': {}}
    for name, keys in RUNS.items():
        found['runs'][name] = child('benchmarks.planned_memory', name) | {'differs': keys}
        print(name, found['runs'][name], flush=True)
        (RESULTS/'planned_memory.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__': main(*sys.argv[1:])
