"""llmft against plain TRL: the same model, rows, LoRA and batch, each in a process of its own, in turn.

    python benchmarks/train_speed.py            # five pairs, unpacked and packed; half an hour on two cores
    python benchmarks/train_speed.py --pairs 1

Reported are ratios of learned tokens per second and of peak memory, and the losses, which must be the same unpacked.
TRL runs as its defaults are (chunked loss, packing `bfd`), with the tokens that llmft made. Both train in float32 on a
CPU and in bfloat16 on a GPU. The machine must do nothing else."""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT/'benchmarks'/'results'/'train_speed.json'
SETTINGS = {'sequence_len': 256, 'micro_batch_size': 4, 'gradient_accumulation_steps': 1, 'lora_r': 16, 'seed': 0,
            'learning_rate': 2e-4, 'gradient_checkpointing': False, 'lora_dropout': 0., 'val_set_size': 0}


def config_for(out, packed, steps):
    import torch
    from llmft.config.config import load_config
    precision = {'bf16': True} if torch.cuda.is_available() else {'bf16': False}
    return load_config({
        'base_model': 'builtin/smollm2-135m', 'datasets': [{'path': 'builtin/python-evol-1k', 'type': 'alpaca'}],
        'adapter': 'lora', 'load_in_4bit': False, 'sample_packing': packed, 'max_steps': steps, 'logging_steps': 1,
        'save_strategy': 'no', 'output_dir': str(out)} | SETTINGS | precision)


def counting(base):
    "A trainer that counts learned tokens and seconds after its second step, when everything is warm."
    class Counted(base):
        n_learned, start = 0, None
        def training_step(self, model, inputs, *args, **kwargs):
            if self.state.global_step == 2 and self.start is None: self.start = time.perf_counter()
            if self.start is not None: self.n_learned += int((inputs['labels'][:, 1:] != -100).sum())
            return super().training_step(model, inputs, *args, **kwargs)
    return Counted


def make_llmft(config, out):
    from llmft.model.adapters import add_adapter
    from llmft.model.base import load_base
    from llmft.tokens.report import prepare_data
    from llmft.training import train
    original = train.trainer_class
    train.trainer_class = lambda config: counting(original(config))
    return train.make_trainer(config, add_adapter(load_base(config), config), prepare_data(config), out)


def make_trl(config, out):
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer
    from llmft.config.config import load_config
    from llmft.hub import resolve_model
    from llmft.tokens.report import prepare_data
    data = prepare_data(load_config(config, sample_packing=False))
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model(config.base_model), dtype=torch.bfloat16 if on_gpu else torch.float32)
    args = SFTConfig(
        output_dir=str(out), max_length=config.sequence_len, packing=config.sample_packing, max_steps=config.max_steps,
        per_device_train_batch_size=config.micro_batch_size, learning_rate=config.learning_rate, seed=config.seed,
        gradient_checkpointing=False, logging_steps=1, save_strategy='no', report_to='none', bf16=on_gpu,
        use_cpu=not on_gpu, data_seed=config.seed, warmup_steps=0.03, lr_scheduler_type=config.lr_scheduler)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0., target_modules='all-linear')
    rows = data.train.select_columns(['input_ids', 'labels'])
    return counting(SFTTrainer)(model, args, train_dataset=rows, processing_class=data.tokenizer, peft_config=lora)


def peak_gib():
    import resource, torch
    if torch.cuda.is_available(): return torch.cuda.max_memory_reserved()/2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20


def run_side(side, packed, steps):
    with tempfile.TemporaryDirectory() as folder:
        trainer = {'llmft': make_llmft, 'trl': make_trl}[side](config_for(folder, packed, steps), folder)
        trainer.train()
        seconds = time.perf_counter() - trainer.start
        print(json.dumps({
            'learned_per_second': trainer.n_learned/seconds, 'peak_gib': round(peak_gib(), 3),
            'losses': [round(line['loss'], 4) for line in trainer.state.log_history if 'loss' in line]}))


def in_process(side, packed, steps):
    command = [sys.executable, __file__, '--side', side, '--steps', str(steps), *(['--packed'] if packed else [])]
    environment = os.environ | {'TQDM_DISABLE': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode: sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(packed, pairs, steps):
    speed, memory, differences = [], [], []
    for n in range(pairs):
        sides = ['llmft', 'trl'] if n % 2 == 0 else ['trl', 'llmft']
        found = {side: in_process(side, packed, steps) for side in sides}
        ours, theirs = found['llmft'], found['trl']
        speed.append(round(ours['learned_per_second']/theirs['learned_per_second'], 3))
        memory.append(round(ours['peak_gib']/theirs['peak_gib'], 3))
        differences.append(max(abs(a - b) for a, b in zip(ours['losses'], theirs['losses'])))
        print('packed' if packed else 'unpacked', speed[-1], memory[-1], found, flush=True)
    return {'speed': speed, 'median_speed': statistics.median(speed), 'memory': memory,
            'median_memory': statistics.median(memory),
            'largest_difference_of_losses': None if packed else round(max(differences), 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--steps', type=int, default=14)
    parser.add_argument('--side', choices=['llmft', 'trl'], help=argparse.SUPPRESS)
    parser.add_argument('--packed', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side: return run_side(args.side, args.packed, args.steps)
    results = {'pairs': args.pairs, 'steps': args.steps, 'settings': SETTINGS}
    for name, packed in (('unpacked', False), ('packed', True)):
        results[name] = compare(packed, args.pairs, args.steps)
    RESULTS.write_text(json.dumps(results, indent=1) + '\n')
    print(json.dumps(results, indent=1))


if __name__ == '__main__': main()
