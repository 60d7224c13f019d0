"""What a GPU does with llmft, in 15 minutes at most, without a network: random weights, made-up rows.

    python benchmarks/gpu.py                       # all parts; a line of JSON for each result, as it comes
    python benchmarks/gpu.py matrix out_of_memory  # some of them
    python benchmarks/gpu.py --small               # the same with tiny shapes, to see on a CPU that it runs

Each part is a process of its own with a limit, so that one that hangs or runs out of memory costs no other.
The lines also go to `benchmarks/results/gpu_NAME.jsonl`; 20 GB of disk are needed for a model of 7 billion weights."""
import argparse, json, os, re, shutil, subprocess, sys, tempfile, threading, time, traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT/'benchmarks'/'results'
LIMITS = { # part -> seconds
    'matrix': 170, 'processes': 60, 'memory_after': 40, 'optimizers': 70, 'packed': 70, 'layout': 80,
    'out_of_memory': 50, 'plan': 130, 'code_llama': 280}
TOTAL = 15*60
PRECISIONS = {'bf16': {'bf16': True}, 'fp16': {'fp16': True, 'bf16': False}}
ADAPTERS = {
    'qlora': {'adapter': 'qlora'}, 'lora': {'adapter': 'lora', 'load_in_4bit': False},
    'full': {'adapter': 'full', 'load_in_4bit': False, 'learning_rate': 1e-3},
    '8-bit': {'adapter': 'lora', 'load_in_4bit': False, 'load_in_8bit': True}}
SHAPE_1B = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                num_key_value_heads=4, vocab_size=32000)


def tell(**values): print(json.dumps(values), flush=True)


def device():
    import torch
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def gib(n): return round(n/2**30, 3)


def peak_gib(reset=False): # of the GPU, as the allocator reserved it
    import torch
    if device() == 'cpu': return None
    if reset: torch.cuda.reset_peak_memory_stats()
    return gib(torch.cuda.max_memory_reserved())


def make_config(folder, model, **keys):
    from tests.tiny import alpaca_rows, save_rows, tiny_config
    rows = save_rows(folder/'rows.jsonl', alpaca_rows(200))
    return tiny_config(model, rows, folder/'run', **{'max_steps': 10, 'logging_steps': 1, 'val_set_size': 8} | keys)


def small_model(folder):
    from tests.tiny import save_tiny, small_tokenizer
    return save_tiny(folder/'model', tokenizer=small_tokenizer())


def losses(run): return [round(m['loss'], 4) for m in run.metrics if 'loss' in m]


def matrix(folder, small):
    "Each number format with each kind of adapter: train, measure, save, go on, ask, merge; against 32 bits on the CPU."
    from llmft.config.config import load_config
    from llmft.export.merge import merge_adapter
    from llmft.inference.load import load_run
    from llmft.training.train import finetune
    model, reference = small_model(folder), {}
    for kind, adapter in ADAPTERS.items():
        for precision, keys in ({'fp32': {'bf16': False}} if device() == 'cpu' else PRECISIONS).items():
            out = folder/f'{kind}_{precision}'
            try:
                config = make_config(folder, model, output_dir=str(out), save_steps=5, **adapter, **keys)
                run = finetune(config, say=None)
                first = losses(run)
                longer = finetune(load_config(config, max_steps=12), resume=True, say=None)
                answer = load_run(out)('Add 1', max_new_tokens=4)
                if kind != 'full': merge_adapter(out, folder/f'merged_{kind}_{precision}')
                tell(part='matrix', kind=kind, precision=precision, losses=first, after=losses(longer)[-2:],
                     eval_loss=round(run.last('eval_loss'), 4), answered=isinstance(answer, str))
            except Exception as e: tell(part='matrix', kind=kind, precision=precision, error=f'{type(e).__name__}: {e}')


def code_llama(folder, small):
    "The Code Llama recipe at full shape: seconds per step, tokens per second, peak against plan."
    from llmft.config.config import load_config
    from llmft.memory.plan import plan_memory
    from llmft.training.train import finetune
    from tests.tiny import alpaca_rows, save_rows
    from tests.training.test_gpu import save_llama_7b
    model = small_model(folder) if small else save_llama_7b(folder/'model')
    rows = save_rows(folder/'long.jsonl', [r | {'output': r['output']*40} for r in alpaca_rows(400 if small else 2000)])
    for precision, keys in ({'fp32': {'bf16': False}} if device() == 'cpu' else PRECISIONS).items():
        config = load_config('code-llama-7b', base_model=str(model), datasets=[{'path': rows, 'type': 'alpaca'}],
            output_dir=str(folder/f'run_{precision}'), max_steps=3 if small else 12, evals_per_epoch=None,
            save_strategy='no', logging_steps=1, val_set_size=0, **keys)
        planned = plan_memory(config).peak_bytes
        peak_gib(reset=True)
        run = finetune(config, say=None, force=True)
        lines = [m for m in run.metrics if 'loss' in m][1:] # the first step warms up
        seconds = (lines[-1]['seconds'] - lines[0]['seconds'])/max(len(lines) - 1, 1)
        tell(part='code_llama', precision=precision, seconds_per_step=round(seconds, 3), planned_gib=gib(planned),
             tokens_per_second=round(sum(m['tokens_per_second'] for m in lines)/len(lines), 1), peak_gib=peak_gib(),
             losses=losses(run))
        shutil.rmtree(run.path)


def plan(folder, small):
    "Planned against measured peak on a shape of 1.1 billion weights, in 16 configurations."
    import torch
    from llmft.core import free_memory
    from llmft.memory.plan import plan_memory
    from llmft.training.train import finetune
    from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer
    model = small_model(folder) if small else save_tiny(folder/'model', tokenizer=small_tokenizer(), **SHAPE_1B)
    rows = save_rows(folder/'long.jsonl', [r | {'output': r['output']*40} for r in alpaca_rows(200)])
    settings = [(kind, rows_at_once, length, checkpointing) for kind in ('qlora', 'lora') for rows_at_once in (1, 4)
                for length in (512, 2048) for checkpointing in (True, False)]
    for kind, rows_at_once, length, checkpointing in settings[:4] if small else settings:
        name = f'{kind}, {rows_at_once} x {length}' + (', checkpointing' if checkpointing else '')
        try:
            config = make_config(folder, model, datasets=[{'path': rows}], sequence_len=length, max_steps=2,
                micro_batch_size=rows_at_once, gradient_checkpointing=checkpointing, save_strategy='no',
                val_set_size=0, output_dir=str(folder/'run'), **ADAPTERS[kind])
            planned = plan_memory(config).peak_bytes
            free_memory()
            peak_gib(reset=True)
            finetune(config, say=None, overwrite=True, force=True)
            tell(part='plan', settings=name, planned_gib=gib(planned), peak_gib=peak_gib(),
                 allocated_gib=None if device() == 'cpu' else gib(torch.cuda.max_memory_allocated()))
        except Exception as e: tell(part='plan', settings=name, error=f'{type(e).__name__}: {e}')


def memory_after(folder, small):
    "What is left on the GPU after `finetune`, and after one that failed."
    import torch
    from llmft.training.train import finetune
    config = make_config(folder, small_model(folder), max_steps=2)
    for n in range(3):
        finetune(config, say=None, overwrite=True)
        allocated = None if device() == 'cpu' else torch.cuda.memory_allocated()
        tell(part='memory_after', run=n + 1, allocated_bytes=allocated)


def optimizers(folder, small):
    "Each optimizer that llmft knows by name: three steps."
    from llmft.training.train import finetune
    model = small_model(folder)
    for name in ('adamw_torch', 'adamw_torch_fused', 'adamw_8bit', 'paged_adamw_8bit', 'paged_adamw_32bit', 'lion_8bit',
                 'adafactor', 'sgd', 'rmsprop', 'ademamix', 'adagrad', 'muon'):
        try:
            config = make_config(folder, model, optimizer=name, max_steps=3, save_strategy='no')
            tell(part='optimizers', optimizer=name, losses=losses(finetune(config, say=None, overwrite=True)))
        except Exception as e: tell(part='optimizers', optimizer=name, error=f'{type(e).__name__}: {e}'[:300])


def packed(folder, small):
    "The held-out loss of packed rows and of single rows, with each attention."
    from llmft.training.train import finetune
    model = small_model(folder)
    for attention in ('eager', 'sdpa', 'flash_attention_2'):
        for is_packed in (True, False):
            try:
                config = make_config(folder, model, attn_implementation=attention, sample_packing=is_packed,
                    save_strategy='no', max_steps=4, learning_rate=1e-6, eval_steps=1)
                run = finetune(config, say=None, overwrite=True)
                tell(part='packed', attention=attention, packed=is_packed, first=run.first('eval_loss'),
                     last=run.last('eval_loss'))
            except Exception as e:
                tell(part='packed', attention=attention, packed=is_packed, error=f'{type(e).__name__}: {e}'[:300])


def layout(folder, small):
    "Packed rows of 2,048: texts apart or under a mask, adapters in one piece or as peft has them."
    from llmft.core import free_memory
    from llmft.model.adapters import add_adapter
    from llmft.model.attention import keep_texts_together
    from llmft.model.base import load_base
    from llmft.model.fused import undo_fusing
    from llmft.tokens.report import prepare_data
    from llmft.training.train import make_trainer
    from tests.tiny import save_tiny, small_tokenizer
    model = small_model(folder) if small else save_tiny(folder/'model', tokenizer=small_tokenizer(), **SHAPE_1B)
    config = make_config(folder, model, adapter='lora', load_in_4bit=False, attn_implementation='sdpa', max_steps=8,
        sequence_len=256 if small else 2048, micro_batch_size=2, sample_packing=True, val_set_size=0,
        save_strategy='no', gradient_checkpointing=False)
    data = prepare_data(config)
    for apart, fused in ((True, True), (True, False), (False, True), (False, False)):
        trainer = make_trainer(config, add_adapter(load_base(config), config), data, folder/'checkpoints')
        if not apart: keep_texts_together(trainer.model)
        trainer.data_collator.one_line = apart
        if not fused: undo_fusing(trainer.model)
        peak_gib(reset=True)
        trainer.train()
        logs = [line for line in trainer.state.log_history if 'loss' in line]
        tell(part='layout', texts_apart=apart, fused=fused, losses=[round(line['loss'], 4) for line in logs],
             tokens_per_second=[line['tokens_per_second'] for line in logs][2:], peak_gib=peak_gib())
        del trainer
        free_memory()


def out_of_memory(folder, small):
    "A batch that cannot fit: what is said, and how long it takes."
    from llmft.training.train import finetune
    from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer
    model = small_model(folder) if small else save_tiny(folder/'model', tokenizer=small_tokenizer(), **SHAPE_1B)
    rows = save_rows(folder/'long.jsonl', [r | {'output': r['output']*40} for r in alpaca_rows(200)])
    config = make_config(folder, model, datasets=[{'path': rows}], sequence_len=2048, sample_packing=False,
        micro_batch_size=2 if small else 64, max_steps=2, gradient_checkpointing=False, val_set_size=0)
    start, said = time.monotonic(), []
    try:
        run = finetune(config, say=lambda line: said.append(str(line)), force=True)
        tell(part='out_of_memory', steps=run.last('step'), said=[line for line in said if 'emory' in line][-3:],
             seconds=round(time.monotonic() - start, 1))
    except Exception as e:
        tell(part='out_of_memory', error=f'{type(e).__name__}: {e}'[:400], seconds=round(time.monotonic() - start, 1))


def processes(folder, small):
    "Two processes with gloo on the CPU, as `torchrun` starts them."
    from llmft.config.config import save_config
    config = make_config(folder, small_model(folder), max_steps=4, adapter='lora', load_in_4bit=False, bf16=False)
    file = save_config(config, folder/'run.yml')
    start = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command = [*start, '-m', 'llmft', 'train', str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'CUDA_VISIBLE_DEVICES': ''})
    lines = (folder/'run'/'metrics.jsonl').read_text().splitlines() if not done.returncode else []
    tell(part='processes', status=done.returncode, losses=[json.loads(line).get('loss') for line in lines],
         error=done.stderr[-300:] if done.returncode else None)


def run_part(name, small):
    with tempfile.TemporaryDirectory() as folder:
        try: globals()[name](Path(folder), small)
        except Exception:
            tell(part=name, error=traceback.format_exc()[-600:])


def gpu_name(): # asked in a process of its own, so that this one holds no memory of the GPU
    code = 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu")'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() or 'unknown'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('parts', nargs='*', choices=[[], *LIMITS])
    parser.add_argument('--small', action='store_true')
    parser.add_argument('--part', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part: return run_part(args.part, args.small)
    name, start = gpu_name(), time.monotonic()
    file = RESULTS/f'gpu_{re.sub("[^A-Za-z0-9]+", "_", name)}.jsonl'
    with open(file if not args.small else os.devnull, 'a', encoding='utf-8') as out:
        def note(line):
            print(line, flush=True)
            out.write(line.rstrip() + '\n')
            out.flush()
        note(json.dumps({'part': 'start', 'gpu': name, 'date': time.strftime('%Y-%m-%d %H:%M')}))
        for part in args.parts or LIMITS:
            limit = min(LIMITS[part], TOTAL - (time.monotonic() - start))
            if limit < 10: note(json.dumps({'part': part, 'error': 'no time was left'})); continue
            run_limited(part, limit, args.small, note)
        note(json.dumps({'part': 'end', 'seconds': round(time.monotonic() - start)}))


def run_limited(part, limit, small, note): # what it printed until the limit counts
    command = [sys.executable, __file__, '--part', part, *(['--small'] if small else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               env=os.environ | {'TQDM_DISABLE': '1', 'PYTHONPATH': str(ROOT)})
    timer = threading.Timer(limit, process.kill)
    timer.start()
    for line in process.stdout:
        if line.startswith('{'): note(line.rstrip())
    timer.cancel()
    if not process.wait(): return
    note(json.dumps({'part': part, 'error': f'ended with {process.returncode} (limit {limit:.0f} s)'}))


if __name__ == '__main__': main()
