"""Memory and seconds of the loss step alone: scores of all tokens at once against `chunked_cross_entropy`, at a
vocabulary of 128,000 and 2 x 2,048 tokens."""
import json, os, platform, resource, subprocess, sys, time
from pathlib import Path

import torch

from llmft.model.base import _cpu_name
from llmft.model.loss import chunked_cross_entropy

RESULTS = Path(__file__).parent/'results'
VOCABULARY, HIDDEN, ROWS, LENGTH = 128_000, 1024, 2, 2048


class Bare(torch.nn.Module):
    "A causal language model that is nothing but its output head, so that the loss is all there is to measure."
    def __init__(self, hidden):
        super().__init__()
        self.hidden, self.head = hidden, torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    def base_model(self, **_): return type('Output', (), {'last_hidden_state': self.hidden})
    def get_output_embeddings(self): return self.head


def plain(model, batch):
    logits = model.head(model.hidden[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch['labels'][:, 1:].flatten(), reduction='sum')


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way): # in a process of its own
    torch.manual_seed(0)
    labels = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    model, batch = Bare(torch.randn(ROWS, LENGTH, HIDDEN, requires_grad=True)), {'input_ids': labels, 'labels': labels}
    loss = plain if way == 'plain' else chunked_cross_entropy
    before, start = peak(), time.perf_counter()
    value = loss(model, batch)
    value.backward()
    print(json.dumps({'peak': peak() - before, 'seconds': time.perf_counter() - start, 'loss': value.item(),
                      'gradient': model.hidden.grad.norm().item()}))


def main():
    runs = {'plain': [], 'llmft': []}
    for _ in range(2): # in turn, so that other load on the machine hits both
        for way, measured in runs.items():
            p = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
            measured.append(json.loads(p.stdout))
    best = {way: min(measured, key=lambda r: r['seconds']) for way, measured in runs.items()}
    a, b = best['plain'], best['llmft']
    machine = {'cpu': _cpu_name(), 'cores': os.cpu_count(), 'threads': torch.get_num_threads(),
               'load': os.getloadavg()[0], 'torch': torch.__version__, 'python': platform.python_version()}
    result = {'vocabulary': VOCABULARY, 'hidden_size': HIDDEN, 'tokens': ROWS * LENGTH, 'machine': machine, **best,
              'memory_ratio': round(b['peak'] / a['peak'], 3), 'time_ratio': round(b['seconds'] / a['seconds'], 2),
              'loss_difference': abs(a['loss'] / b['loss'] - 1),
              'gradient_difference': abs(a['gradient'] / b['gradient'] - 1)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'loss_memory.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': measure(sys.argv[1]) if sys.argv[1:] else main()
