"""A sweep of four ranks and three learning rates on the built-in model and data: killed once while a run is trained,
gone on with by the same command. Its numbers go to `results/sweep_4x3.json`, its picture to `results/sweep_4x3.png`."""
import json, os, platform, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

from llmft.training.run import Run
from llmft.training.sweep import Sweep

RESULTS = Path(__file__).parent/'results'
YAML = '''
base_model: builtin/smollm2-135m
adapter: lora
datasets: [{path: builtin/python-evol-1k, split: 'train[:120]'}]
test_datasets: [{path: builtin/python-evol-1k, split: 'heldout[:24]'}]
sequence_len: 256
micro_batch_size: 2
eval_batch_size: 8
gradient_checkpointing: false
save_steps: 5
'''
SWEEP = ['--set', 'lora_r=2,8,32,128', '--set', 'learning_rate=1e-4,1e-3,1e-2']


def start(folder): # the command
    command = [sys.executable, '-m', 'llmft', 'sweep', str(folder/'run.yml'), *SWEEP, '--out', str(folder/'sweep')]
    return subprocess.Popen(command, env=os.environ | {'TQDM_DISABLE': '1'}, stdout=subprocess.PIPE, text=True)


def kill_in_run(process, sweep, number): # once this run has a checkpoint; its name and its step
    while process.poll() is None:
        time.sleep(.2)
        if not (sweep/'sweep.json').is_file(): continue
        name = Sweep(sweep).entries[number - 1]['name']
        if not [*(sweep/name).glob('checkpoints/checkpoint-*/trainer_state.json')]: continue
        time.sleep(3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return name, Run(sweep/name).last('step')
    raise SystemExit('the sweep ended before it could be killed')


def main():
    folder = Path(tempfile.mkdtemp())
    (folder/'run.yml').write_text(YAML)
    began = time.time()
    name, step = kill_in_run(start(folder), folder/'sweep', 6)
    print(f'killed in {name} at step {step}', flush=True)
    process = start(folder)
    lines = [line.rstrip() for line in process.stdout if print(line, end='', flush=True) is None]
    sweep = Sweep(folder/'sweep')
    runs = [{**entry['values'], 'held_out': loss, 'before': sweep.run(entry).first('eval_loss'),
             'steps': sweep.run(entry).last('step'), 'seconds': sweep.run(entry).last('seconds')}
            for entry, loss in zip(sweep.entries, sweep.losses())]
    result = {'machine': platform.processor() or platform.machine(), 'threads': os.environ.get('OMP_NUM_THREADS'),
              'yaml': YAML, 'command': ' '.join(['llmft', 'sweep', 'run.yml', *SWEEP]),
              'killed': {'run': name, 'step': step}, 'went_on': [line for line in lines if 'run' in line],
              'seconds': round(time.time() - began), 'runs': runs}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'sweep_4x3.json').write_text(json.dumps(result, indent=1) + '\n')
    shutil.copy(folder/'sweep'/'sweep.png', RESULTS/'sweep_4x3.png')
    shutil.rmtree(folder)


if __name__ == '__main__': main()
