"""Train in a process that is killed at random moments, and see whether it ends as one that was not.

    python -m tests.killed qlora 8 0 FOLDER     # kind, kills, seed
"""
import hashlib, json, os, random, signal, sys, time
from pathlib import Path

import torch # before the first fork, so that a run takes a second

from llmft.config.config import load_config
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

KINDS = {
    'qlora': {},
    'full': {'adapter': 'full', 'load_in_4bit': False, 'learning_rate': 1e-3},
    'packed': {'sample_packing': True},
    'group_by_length': {'group_by_length': True, 'num_epochs': 2},
    'streaming': {'streaming': True, 'max_steps': 20, 'val_set_size': 0, 'test_datasets': []},
}


def make_config(kind, folder):
    if not (folder/'model').exists(): save_tiny(folder/'model', tokenizer=small_tokenizer())
    rows = save_rows(folder/'rows.jsonl', alpaca_rows(40))
    keys = {'sample_packing': False, 'lora_dropout': .1, 'val_set_size': 4, 'gradient_accumulation_steps': 2,
            'save_steps': 2, 'save_total_limit': 2, 'logging_steps': 1, 'bf16': False}
    return tiny_config(folder/'model', rows, folder/'run', **keys | KINDS[kind])


def in_fork(config, said): # -> process id; the process trains as the command line would
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        with open(said, 'a') as f:
            os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
            finetune(config)
            code = 0
    except BaseException as e: print(repr(e))
    finally:
        sys.stdout.flush()
        os._exit(code)


def result(out): # all that must be the same
    weights = next((out/name for name in ('adapter', 'model') if (out/name).is_dir()))
    digest = hashlib.sha256(b''.join(p.read_bytes() for p in sorted(weights.glob('*.safetensors')))).hexdigest()
    lines = [json.loads(line) for line in (out/'metrics.jsonl').read_text().splitlines()]
    measured = [(m['step'], m.get('loss'), m.get('eval_loss')) for m in lines if 'loss' in m or 'eval_loss' in m]
    return [digest, measured]


def kill_and_resume(kind, kills, seed, folder):
    torch.set_num_threads(1)
    config, randomly = make_config(kind, folder), random.Random(seed)
    straight, said = load_config(config, output_dir=str(folder/'straight')), folder/'said.txt'
    start = time.monotonic()
    assert os.waitpid(in_fork(straight, said), 0)[1] == 0, said.read_text()
    seconds, moments = time.monotonic() - start, []
    for _ in range(kills):
        pid, wait = in_fork(config, said), randomly.uniform(.1, 1)*seconds
        time.sleep(wait)
        out = Path(config.output_dir)
        newest = max((int(p.name.split('-')[1]) for p in out.glob('checkpoints/checkpoint-*')), default=0)
        writing = (out/'checkpoints'/'.partial').exists()
        os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended in (0, -signal.SIGKILL), said.read_text()
        moments.append({'after_step': newest, 'while_saving': writing, 'had_ended': ended == 0})
        if ended == 0: # it was quicker than the first one: begin again
            import shutil
            shutil.rmtree(out)
    assert os.waitpid(in_fork(config, said), 0)[1] == 0, said.read_text()
    left = [p.name for p in out.rglob('.*')]
    return {'kind': kind, 'kills': moments, 'same': result(out) == result(folder/'straight'), 'left': left}


if __name__ == '__main__':
    kind, kills, seed, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(kill_and_resume(kind, int(kills), int(seed), Path(folder))))
