"Seconds of a training step on this machine's CPU: two ways to compute the loss, three ways to lay out the same 1,024 tokens."
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
    return {'4 x 256 packed': collate(list(pack(tokens, 256).select(range(4)))), '1 x 1024 packed': collate([pack(tokens, 1024)[0]]), 'padded rows': collate(padded)}


def seconds(model, loss, batch): # of one step, forward and backward
    start = time.perf_counter()
    with torch.autocast('cpu', torch.bfloat16, enabled=detect_hardware().dtype == torch.bfloat16): loss(batch).backward()
    model.zero_grad()
    return time.perf_counter() - start


def main(repeats=5):
    config = load_config('smollm2-135m', sample_packing=False, output_dir=tempfile.mkdtemp() + '/run')
    data = prepare_data(config)
    model = add_adapter(load_base(config), config)
    trainer = make_trainer(config, model, data, config.output_dir)
    model.train()
    ways = {'llmft': lambda b: chunked_cross_entropy(model, b), 'trl': lambda b: SFTTrainer.compute_loss(trainer, model, dict(b), num_items_in_batch=torch.tensor(1))}
    batches, times = layouts(data.train), {}
    for repeat in range(repeats + 1): # in turn, so that other load on the machine hits all of them; the first round only warms up
        for layout, batch in batches.items():
            for way, loss in ways.items():
                t = seconds(model, loss, batch)
                if repeat: times.setdefault((layout, way), []).append(t)
    rows = [{'layout': l, 'loss': w, 'seconds': round(statistics.median(t), 2), 'fastest': round(min(t), 2), 'tokens': batches[l]['input_ids'].numel(),
             'learned_tokens': int((batches[l]['labels'] != -100).sum())} for (l, w), t in times.items()]
    hw = detect_hardware()
    result = {'machine': {'cpu': hw.name, 'cores': os.cpu_count(), 'threads': torch.get_num_threads(), 'load': os.getloadavg()[0], 'dtype': str(hw.dtype), 'python': platform.python_version(), 'torch': torch.__version__}, 'steps': rows,
        'trl_over_llmft': {l: round(statistics.median(t / o for t, o in zip(times[l, 'trl'], times[l, 'llmft'])), 2) for l in batches}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'loss_cpu.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
