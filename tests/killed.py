"""Train in a process that is killed, and see whether it ends as one that was not.

    python -m tests.killed qlora 8 0 FOLDER                      # kind, kills at random moments, seed
    python -m tests.killed qlora saving,starting,ending 0 FOLDER # kind, where it is killed each time, seed
"""
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path

import torch # before the first fork, so that a run takes a second

from llmft.config.config import load_config
from llmft.training.train import finetune
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

KINDS = {
    'qlora': {},
    'full': {'adapter': 'full', 'load_in_4bit': False, 'learning_rate': 1e-3},
    'packed': {'sample_packing': True, 'num_epochs': 3},
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


def is_running(pid): return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait_for(pid, is_there): # False if the process ended before
    while is_running(pid):
        if is_there(): return True
        time.sleep(.0005)
    return False


def sleep_up_to(seconds, randomly): time.sleep(randomly.uniform(0, seconds))


def any_moment(pid, out, seconds, randomly): time.sleep(randomly.uniform(.1, 1)*seconds)


def starting(pid, out, seconds, randomly): sleep_up_to(.1*seconds, randomly)


def saving(pid, out, seconds, randomly): # one of the next checkpoints is being written
    partial = out/'checkpoints'/'.partial'
    wait_for(pid, lambda: not partial.exists()) # what an earlier kill left
    for n in range(randomly.randint(1, 2)):
        if n: wait_for(pid, lambda: not partial.exists())
        wait_for(pid, lambda: any(partial.glob('*/*')))
    sleep_up_to(.1, randomly)


def ending(pid, out, seconds, randomly): # the adapter is being saved, or what comes after it
    def is_there(): return any(out.glob('.adapter.*')) or any(out.glob('.model.*'))
    wait_for(pid, lambda: not is_there()) # what an earlier kill left
    wait_for(pid, is_there)
    sleep_up_to(.1, randomly)


MOMENTS = {moment.__name__: moment for moment in (any_moment, starting, saving, ending)}


def state_of(out): # what a killed process left
    steps = [int(p.name.split('-')[1]) for p in out.glob('checkpoints/checkpoint-*')]
    return {'after_step': max(steps, default=0), 'partial_files': len([*out.glob('checkpoints/.partial/*/*')]),
            'partial_model': any(out.glob('.adapter.*')) or any(out.glob('.model.*'))}


def kill_once(moment, config, said, seconds, randomly): # -> dict; the process may have ended before
    out, pid = Path(config.output_dir), in_fork(config, said)
    MOMENTS[moment](pid, out, seconds, randomly)
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), said.read_text()
    killed = {'moment': moment, 'killed': code != 0} | state_of(out)
    if code == 0: shutil.rmtree(out) # it was quicker: begin again
    return killed


def kill_and_resume(kind, moments, seed, folder):
    torch.set_num_threads(1)
    config, randomly, said = make_config(kind, folder), random.Random(seed), folder/'said.txt'
    straight, start = load_config(config, output_dir=str(folder/'straight')), time.monotonic()
    assert os.waitpid(in_fork(straight, said), 0)[1] == 0, said.read_text()
    seconds = time.monotonic() - start
    kills = [kill_once(moment, config, said, seconds, randomly) for moment in moments]
    assert os.waitpid(in_fork(config, said), 0)[1] == 0, said.read_text()
    out = Path(config.output_dir)
    return {'kind': kind, 'seed': seed, 'kills': kills, 'same': result(out) == result(folder/'straight'),
            'left': [p.name for p in out.rglob('.*')]}


if __name__ == '__main__':
    kind, moments, seed, folder = sys.argv[1:]
    moments = ['any_moment']*int(moments) if moments.isdigit() else moments.split(',')
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(kill_and_resume(kind, moments, int(seed), Path(folder))))
