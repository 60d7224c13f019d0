"""The runs behind the book. `python -m benchmarks.book` lists the grids, `python -m benchmarks.book NAME …` makes them,
one after the other, each with llmft's own sweep, and writes `benchmarks/book/NAME.json` after each run. A grid that was
stopped goes on where it was; with one thread for PyTorch the same machine makes the same numbers bit for bit."""
import json, os, platform, random, subprocess, sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llmft.config.config import load_config
from llmft.core import write_atomic
from llmft.hub import fetch_builtin

FOLDER = Path(__file__).parent/'book'
DATA = 'builtin/python-evol-1k'
GENERAL_BYTES = 12_000 # of the general text
BASE = dict(base_model='builtin/smollm2-135m', adapter='lora', lora_r=16, lora_alpha=32, lora_target_linear=True,
            datasets=[dict(path=DATA, split='train[:100]')], test_datasets=[dict(path=DATA, split='heldout[:40]')],
            sequence_len=256, sample_packing=True, micro_batch_size=1, eval_batch_size=16, num_epochs=1,
            learning_rate=1e-3, lr_scheduler='cosine', warmup_ratio=.03, gradient_checkpointing=False,
            evals_per_epoch=1, saves_per_epoch=0, logging_steps=1, sample_prompts=0, seed=42)


@dataclass
class Grid:
    question: str
    base: dict       # beside `BASE`
    runs: list       # dicts of the keys in which they differ
    measures: tuple = () # functions: run folder -> dict, after each run
    prepare: object = None # function that makes what the runs need

    def keys(self): return BASE | self.base


def product(**axes):
    "Each combination once."
    made = [{}]
    for key, values in axes.items(): made = [run | {key: value} for run in made for value in values]
    return made


def first_rows(n, part='train'):
    return [dict(path=DATA, split=f'{part}[:{n}]')]


def builtin_rows(split):
    from llmft.data.sources import load_rows
    return list(load_rows(load_config(BASE, datasets=[dict(path=DATA, split=split)])))


def write_rows(file, rows):
    "A JSONL file."
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(file), ''.join(json.dumps(row) + '\n' for row in rows))


def mean_loss(model, rows):
    "The loss in nats for each token that is learned in rows of ids and labels."
    from llmft.evaluation.losses import row_losses
    nats, counts = row_losses(model, rows)
    return sum(nats)/sum(counts)


def mean_general_loss(model, tokenizer, n_bytes=GENERAL_BYTES):
    "The loss in nats for each token of the general text."
    from llmft.evaluation.losses import general_windows
    return mean_loss(model, general_windows(tokenizer, n_bytes, model)[0])


def general_loss(folder):
    "The loss of the general text before training and after."
    from llmft.evaluation.evaluate import both_models
    from llmft.inference.load import load_run_config
    models = both_models(folder, load_run_config(folder))
    return {f'general_{name}': mean_general_loss(chat.model, chat.tokenizer) for name, chat in models}


def solved(model, tokenizer, rows=None, dataset=None):
    "For each of the 100 held-out exercises, or of `rows`, 1 or 0: whether the model solves it at the first try."
    from llmft.evaluation.scores import score_model
    rows, dataset = rows or builtin_rows('heldout'), dataset or load_config(BASE).datasets[0]
    scores, _ = score_model(model, tokenizer, rows, dataset, run_code=True)
    return [int(result.ok) for result in scores.results]


def pass_at_1(folder):
    "What the tuned model solves."
    from llmft.inference.load import load_run
    chat = load_run(folder)
    return {'passed': solved(chat.model, chat.tokenizer)}


def opened(path):
    "A model in 32 bits, an adapter on its base."
    import torch
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def share_moved(base, model):
    "How far the linear layers are from where they began: the norm of the change, as a share of that of the weights."
    import torch
    from peft.tuners.lora import LoraLayer
    start, now = (dict(each.model.layers.named_modules()) for each in (base, model))
    def change(name):
        lora = isinstance(now[name], LoraLayer)
        return now[name].get_delta_weight('default') if lora else now[name].weight - start[name].weight
    linear = [name for name, layer in start.items() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        moved = sum(change(name).square().sum().item() for name in linear)
        return (moved/sum(start[name].weight.square().sum().item() for name in linear))**.5


def distance(folder):
    "How far the finished model has moved."
    from llmft.inference.load import weights_folder
    return {'moved': share_moved(opened(fetch_builtin('smollm2-135m')), opened(weights_folder(folder)))}


def after_epochs(folder, epochs=(1, 2, 4, 8)):
    "What the checkpoints at the end of these epochs have learned and forgotten, and how far they moved."
    from transformers import AutoTokenizer
    from llmft.training.checkpoints import checkpoint_folders
    name = fetch_builtin('smollm2-135m')
    base, tokenizer, found = opened(name), AutoTokenizer.from_pretrained(name), []
    for checkpoint in checkpoint_folders(folder/'checkpoints'):
        epoch = json.loads((checkpoint/'trainer_state.json').read_text())['epoch']
        if epoch not in epochs: continue
        model = opened(checkpoint)
        found.append({'epoch': int(epoch), 'general': mean_general_loss(model, tokenizer),
                      'passed': solved(model, tokenizer), 'moved': share_moved(base, model)})
    return {'general_base': mean_general_loss(base, tokenizer), 'passed_base': solved(base, tokenizer), 'epochs': found}


FRESH = 'heldout[12:36]' # rows that no run of `curves` has learned or was measured on while it ran
CHAT_ROWS = {'train[:60]': 'runs/book/chats-60.jsonl', 'heldout[:12]': 'runs/book/chats-held-out.jsonl'}


def question(row):
    return '\n'.join(part for part in (row['instruction'], row['input']) if part)


def write_chats():
    "Some of the exercises as conversations, in files."
    for split, file in CHAT_ROWS.items():
        chats = [[{'role': 'user', 'content': question(row)}, {'role': 'assistant', 'content': row['output']}]
                 for row in builtin_rows(split)]
        write_rows(file, [{'messages': chat} for chat in chats])


def chat_rows(split, **keys):
    return [dict(path=CHAT_ROWS[split], type='chat_template', chat_template='alpaca', **keys)]


def fresh_loss(folder):
    "The loss on rows that nothing was decided by."
    from llmft.inference.load import load_run
    from llmft.tokens.report import prepare_data
    rows = prepare_data(load_config(BASE, datasets=[dict(path=DATA, split=FRESH)], test_datasets=None,
                                    sample_packing=False)).train
    return {'fresh_loss': mean_loss(load_run(folder).model, rows)}


def three_forms(folder, longest=96):
    "The answers to 12 held-out exercises, asked as in training, in the model's own chat template, and without any."
    from llmft.config.keys import DatasetConfig
    from llmft.evaluation.sandbox import run_code_batch
    from llmft.evaluation.scores import row_program
    from llmft.inference.generate import generate
    from llmft.inference.load import load_run
    from llmft.tokens.tokenize import load_tokenizer
    chat, rows = load_run(folder), builtin_rows('heldout[:12]')
    own = load_tokenizer(load_config(BASE)) # with the template that came with the model
    forms = {'trained': (chat.tokenizer, chat.dataset),
             'other': (own, DatasetConfig(path='-', type='chat_template')),
             'plain': (own, DatasetConfig(path='-', type='completion'))}
    found = {}
    for name, (tokenizer, dataset) in forms.items():
        answers = generate(chat.model, tokenizer, [question(row) for row in rows], dataset, max_new_tokens=longest,
                           batch_size=12, progress=None, details=True)
        results = run_code_batch([row_program(row, a.text) for row, a in zip(rows, answers)], progress=False)
        found[f'{name}_form'] = {'lengths': [len(a.ids) for a in answers],
                                 'ended': [int(a.reason == 'stop') for a in answers],
                                 'passed': [int(result.ok) for result in results],
                                 'answers': [a.text for a in answers[:3]]}
    return found


def even_grid(weight, block=64):
    "A weight rounded to 15 even steps between minus and plus the largest number of each block of 64."
    import torch
    blocks = weight.float().reshape(-1, block)
    step = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)/7
    return (torch.round(blocks/step)*step).reshape(weight.shape).to(weight.dtype)


def even_model(folder=Path('runs/book/even-4-bit')):
    "The built-in model with each linear weight on an even 4-bit grid, as a folder."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    if not (folder/'tokenizer.json').is_file():
        base = fetch_builtin('smollm2-135m')
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        for layer in model.model.layers.modules():
            if isinstance(layer, torch.nn.Linear): layer.weight.data = even_grid(layer.weight.data)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def roman(number):
    "A number below 4,000 as the Romans wrote it."
    signs = zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), 'M CM D CD C XC L XL X IX V IV I'.split())
    text = ''
    for value, sign in signs:
        text, number = text + sign*(number//value), number % value
    return text


def roman_rows(folder=Path('runs/book/roman')):
    "200 numbers to learn and 40 to be held out, with their Roman numerals, below `folder`."
    numbers = random.Random(0).sample(range(1, 4000), 240)
    rows = [{'instruction': f'Write {n} in Roman numerals.', 'output': roman(n)} for n in numbers]
    write_rows(folder/'train.jsonl', rows[:200])
    write_rows(folder/'heldout.jsonl', rows[200:])


ROMAN = dict(datasets=[dict(path='runs/book/roman/train.jsonl', type='alpaca')],
             test_datasets=[dict(path='runs/book/roman/heldout.jsonl', type='alpaca')])


def four_bit(**kwargs):
    return dict(adapter='qlora', load_in_4bit=True, bnb_config_kwargs=kwargs)


RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
SEEDS = [{'seed': 1}, {'seed': 2}]

OLD_AND_NEW = [{'learning_rate': 2e-4}, {'learning_rate': 1.3e-3},
               {'adapter': 'full', 'learning_rate': 2e-5}, {'adapter': 'full', 'learning_rate': 1.3e-4}]

GRIDS = {
    'rate_and_rank': Grid(
        'Which learning rate for which rank?', {},
        product(lora_r=[1, 4, 16, 64], learning_rate=RATES) +
        [run | seed for run in product(lora_r=[1, 64], learning_rate=[1e-3, 3e-3]) for seed in SEEDS]),
    'full': Grid(
        'Which learning rate when all weights are trained?', dict(adapter='full'),
        product(learning_rate=[1e-5, 3e-5, 1e-4, 3e-4, 1e-3]) +
        [run | seed for run in product(learning_rate=[1e-4, 3e-4]) for seed in SEEDS]),
    'forgetting': Grid(
        'What do more epochs cost elsewhere?',
        dict(datasets=first_rows(50), num_epochs=8, lr_scheduler='constant_with_warmup', saves_per_epoch=1,
             save_total_limit=8, save_only_model=True),
        [{'lora_r': 16}, {'adapter': 'full', 'learning_rate': 1e-4}, {'lora_r': 256}] +
        [run | seed for seed in SEEDS for run in ({'lora_r': 16}, {'adapter': 'full', 'learning_rate': 1e-4})],
        (after_epochs,)),
    'defaults': Grid('What does the default learning rate change?', {}, OLD_AND_NEW, (general_loss, distance)),
    'roman': Grid('What does the default learning rate change on other data?', ROMAN, OLD_AND_NEW, prepare=roman_rows),
    'rows': Grid(
        'How many rows?', {},
        [{'datasets': first_rows(n), 'seed': 42} for n in (30, 100, 300, 1000)] +
        [{'datasets': first_rows(n)} | seed for seed in SEEDS for n in (30, 100, 300)],
        (pass_at_1,)),
    'bits': Grid(
        'What do four bits cost?', {},
        [bits | seed for seed in [{'seed': 42}, *SEEDS] for bits in (
            {}, four_bit(bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=False),
            four_bit(bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True),
            four_bit(bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant=False),
            {'base_model': 'runs/book/even-4-bit'})],
        (general_loss,), even_model),
    'layers': Grid(
        'Attention alone, or all layers, with as many trained weights?', {}, # 4.84, 4.94 million; rank 16 on all 4.88
        [layers | {'lora_target_linear': False, 'learning_rate': rate} for rate in (1e-3, 3e-3) for layers in (
            {'lora_target_modules': ['q_proj', 'k_proj', 'v_proj', 'o_proj'], 'lora_r': 42},
            {'lora_target_modules': ['gate_proj', 'up_proj', 'down_proj'], 'lora_r': 26})]),
    'batch': Grid(
        'How many packed rows in a step?', {}, # one: in `rate_and_rank`
        product(gradient_accumulation_steps=[2, 4, 8], learning_rate=[1e-3, 3e-3]) +
        product(adapter=['full'], gradient_accumulation_steps=[8], learning_rate=[1e-4, 3e-4])),
    'curves': Grid(
        'What do few rows and a leak look like while a run goes on?',
        dict(test_datasets=first_rows(12, 'heldout'), lr_scheduler='constant', evals_per_epoch=None,
             eval_steps=.125),
        [{'datasets': first_rows(12), 'num_epochs': 8}, {'datasets': first_rows(96)},
         {'datasets': first_rows(24) + first_rows(12, 'heldout'), 'num_epochs': 3, 'leakage': 'keep'},
         {'datasets': first_rows(24) + first_rows(12, 'heldout'), 'num_epochs': 3}],
        (fresh_loss,)),
    'ends': Grid(
        'What if the end of an answer is not learned, or the template is another one when the model is asked?',
        dict(test_datasets=chat_rows('heldout[:12]'), evals_per_epoch=None, eval_steps=.25,
             ignore_findings=['no_end_token']),
        [{'datasets': chat_rows('train[:60]', train_on_eos=learned)} for learned in ('none', 'turn')],
        (three_forms,), write_chats),
}


def thinned(curve, most=60):
    "At most so many points of a curve, the first and the last among them."
    if len(curve) <= most: return curve
    return [curve[round(i*(len(curve) - 1)/(most - 1))] for i in range(most)]


def curve(run, name):
    "`[[step, value], …]` of a number in `metrics.jsonl`."
    return [[line['step'], line[name]] for line in run.metrics if line.get(name) is not None]


def facts(sweep, entry, measures):
    "What the book needs to know of a run."
    run, folder = sweep.run(entry), sweep.path/entry['name']
    losses = [[step, round(loss, 4)] for step, loss in thinned(curve(run, 'loss'))]
    found = entry | {'eval_loss': curve(run, 'eval_loss'), 'loss': losses, 'steps': run.last('step'),
                     'seconds': run.last('seconds'), 'machine': machine()}
    if entry['status'] != 'finished': return found
    file = folder/'book.json' # what was measured after training, so that it is measured once
    if not file.is_file(): write_atomic(file, json.dumps({k: v for f in measures for k, v in f(folder).items()}))
    return found | json.loads(file.read_text())


def child(module, *args):
    "What `python -m MODULE ARGS` prints last, as JSON: memory and time of a process of its own."
    command = [sys.executable, '-m', module, *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine():
    "What decides whether numbers come out the same bit for bit."
    from llmft.model.base import _cpu_name
    packages = {name: version(name) for name in ('torch', 'transformers', 'peft', 'trl', 'datasets', 'bitsandbytes')}
    return {'processor': _cpu_name(), 'threads': 1, 'python': platform.python_version(), **packages}


def stored(name, grid):
    "The runs in `book/NAME.json`; none of them if they were made with other settings."
    file = FOLDER/f'{name}.json'
    if not file.is_file(): return []
    found = json.loads(file.read_text())
    return found['runs'] if found['keys'] == grid.keys() else []


def write(name, grid, path, kept):
    "The runs that were kept and the finished ones of the sweep in `path`, in the order of the grid."
    from llmft.training.sweep import Sweep
    done = Sweep(path)
    runs = kept + [facts(done, entry, grid.measures) for entry in done.entries if entry['status'] != 'waiting']
    runs.sort(key=lambda run: grid.runs.index(run['values']))
    hours = round(sum(run['seconds'] or 0 for run in runs)/3600, 2)
    head = {'question': grid.question, 'keys': grid.keys(), 'hours': hours}
    lines = ',\n'.join(json.dumps(run) for run in runs)
    FOLDER.mkdir(exist_ok=True)
    write_atomic(FOLDER/f'{name}.json', f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n]}}\n')


def make(name, grid, work):
    "Make the runs of `grid` below the folder `work`, or what is left of them."
    import torch
    from llmft.training.sweep import Sweep, sweep
    torch.set_num_threads(1)
    if grid.prepare: grid.prepare()
    path = work/name
    begun = [entry['values'] for entry in Sweep(path).entries] if (path/'sweep.json').is_file() else []
    kept = [run for run in stored(name, grid) if run['values'] not in begun and run['values'] in grid.runs]
    left = [run for run in grid.runs if run not in [run['values'] for run in kept]]
    if not left: return print(f'{name}: all {len(kept)} runs were made before')
    def tell(text):
        print(text, flush=True)
        if (path/'sweep.json').is_file(): write(name, grid, path, kept)
    sweep(load_config(grid.keys(), sweep=left), path, say=tell)


def main(args):
    if not args:
        for name, grid in GRIDS.items(): print(f'{name:16} {len(grid.runs):3} runs: {grid.question}')
        return
    work = Path(os.environ.get('BOOK_RUNS', 'runs/book'))
    for name in args: make(name, GRIDS[name], work)


if __name__ == '__main__': main(sys.argv[1:])
