"""Seconds of a training step on this machine's CPU: two ways to compute the loss, three ways to lay out the same
1,024 tokens."""
import json, os, platform, statistics, sys, tempfile, time
from pathlib import Path

import torch
from trl import SFTTrainer

from llmft.config.config import load_config
from llmft.model.loss import chunked_cross_entropy
from llmft.model.adapters import add_adapter
from llmft.model.base import detect_hardware, load_base
from llmft.tokens.packing import pack
from llmft.tokens.report import prepare_data
from llmft.training.train import Collator, make_trainer

RESULTS = Path(__file__).parent/'results'


def layouts(tokens): # name -> batch; rows packed to 4 x 256 and 1 x 1024, and as many padded rows as 1,024 tokens hold
    collate = Collator(0)
    padded, n = [], 0
    for row in tokens:
        n += len(row['input_ids'])
        if n > 1024: break
        padded.append(row)
    return {'4 x 256 packed': collate(list(pack(tokens, 256).select(range(4)))),
            '1 x 1024 packed': collate([pack(tokens, 1024)[0]]), 'padded rows': collate(padded)}


def seconds(model, loss, batch): # of one step, forward and backward
    start = time.perf_counter()
    bf16 = detect_hardware().dtype == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16, enabled=bf16): loss(batch).backward()
    model.zero_grad()
    return time.perf_counter() - start


def step_result(layout, loss, times, batch):
    return {'layout': layout, 'loss': loss, 'seconds': round(statistics.median(times), 2),
            'fastest': round(min(times), 2), 'tokens': batch['input_ids'].numel(),
            'learned_tokens': int((batch['labels'] != -100).sum())}


def ratio(times, others): return round(statistics.median(a / b for a, b in zip(times, others)), 2)


def machine():
    hw = detect_hardware()
    return {'cpu': hw.name, 'cores': os.cpu_count(), 'threads': torch.get_num_threads(), 'load': os.getloadavg()[0],
            'dtype': str(hw.dtype), 'python': platform.python_version(), 'torch': torch.__version__}


def main(repeats=5):
    config = load_config('smollm2-135m', sample_packing=False, output_dir=tempfile.mkdtemp() + '/run')
    data = prepare_data(config)
    model = add_adapter(load_base(config), config)
    trainer = make_trainer(config, model, data, config.output_dir)
    model.train()
    losses = {
        'llmft': lambda batch: chunked_cross_entropy(model, batch),
        'trl': lambda batch: SFTTrainer.compute_loss(trainer, model, dict(batch), num_items_in_batch=torch.tensor(1))}
    batches, times = layouts(data.train), {}
    # in turn, so that other load on the machine hits all of them; the first round only warms up
    for repeat in range(repeats + 1):
        for layout, batch in batches.items():
            for name, loss in losses.items():
                t = seconds(model, loss, batch)
                if repeat: times.setdefault((layout, name), []).append(t)
    steps = [step_result(layout, name, t, batches[layout]) for (layout, name), t in times.items()]
    ratios = {layout: ratio(times[layout, 'trl'], times[layout, 'llmft']) for layout in batches}
    result = {'machine': machine(), 'steps': steps, 'trl_over_llmft': ratios}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'loss_cpu.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
