"""CPU seconds of `llmft check`, `llmft plan` and `fit_to_gpu` for 70 billion weights, each in a process of its own:
as they are, and with all layers planned one by one and PyTorch's compiler loaded at the start, by turns."""
import json, os, platform, resource, subprocess, sys
from pathlib import Path

RESULTS = Path(__file__).parent/'results'
REPEATS = int(os.environ.get('REPEATS', 3))
LLAMA_70B = dict(
    model_type='llama', vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False)


def slow_down():
    import torch
    from llmft.memory import plan
    from llmft.model import adapters
    adapters._compile_later, plan._pattern_of = torch.compile, lambda *_: None


def check():
    from llmft.commands.check import check_run
    check_run('smollm2-135m')


def plan():
    from llmft.memory.plan import plan_memory
    plan_memory('smollm2-135m')


def fit_70b():
    from llmft.config.config import load_config
    from llmft.memory.fit import fit_to_gpu
    guide = load_config('code-llama-7b', micro_batch_size=10, gradient_accumulation_steps=1)
    start = resource.getrusage(resource.RUSAGE_SELF)
    fit_to_gpu(guide, 'H100', LLAMA_70B, say=None)
    end = resource.getrusage(resource.RUSAGE_SELF)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime # with the libraries that it loads


def measured(name, variant): # CPU seconds of one process; of `fit_70b` only those of the call
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run([sys.executable, __file__, name, variant], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(out.splitlines()[-1]) or whole


def main():
    found = {name: {'now': [], 'all layers, compiler loaded': []} for name in ('check', 'plan', 'fit_70b')}
    for name, variants in found.items():
        for _ in range(1 if name == 'fit_70b' else REPEATS):
            for variant, seconds in variants.items(): seconds.append(round(measured(name, variant), 2))
    best = {name: {variant: min(seconds) for variant, seconds in variants.items()} for name, variants in found.items()}
    ratios = {name: round(v['now']/v['all layers, compiler loaded'], 3) for name, v in best.items()}
    result = dict(cpu_seconds=found, ratios=ratios, cores=os.cpu_count(), python=platform.python_version())
    (RESULTS/'start.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__' and not sys.argv[1:]: main()
elif __name__ == '__main__':
    if sys.argv[2] != 'now': slow_down()
    print(json.dumps({'check': check, 'plan': plan, 'fit_70b': fit_70b}[sys.argv[1]]()))
