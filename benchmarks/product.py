"""What is left when a run is finished, and what each step costs: evaluate, merge, GGUF, and serving the built-in model.

    python -m benchmarks.product FOLDER

trains one QLoRA run, makes each form of it that can be handed over, and asks each of them the same in a process of its
own. All seconds are those of one core, so that other work on the machine does not count.
"""
import json, os, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.book import BASE, child, machine, mean_general_loss, mean_loss

RESULTS = Path(__file__).parent/'results'
GGUF = ('f16', 'q8_0', 'q4_0')
OPENED = { # form -> (what is opened below the folder, how)
    '4-bit base + adapter': ('run', {}),
    'unrounded base + adapter': ('run', {'quantized': False}),
    'merged': ('merged', {}),
    'merged, on the rounded weights': ('dequantized', {})}
USERS, TOKENS, GENERAL = (1, 2, 4, 8, 16), 32, 4000 # the last: bytes of the general text
WRITE = 'Write a Python function `f{}(x)` that returns x plus {}, and explain each line of it.'


def timed(fn, *args, **kwargs): # (seconds of one core, what it returns)
    start = time.process_time()
    found = fn(*args, **kwargs)
    return round(time.process_time() - start, 2), found


def size(path): # millions of bytes
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return round(sum(file.stat().st_size for file in files)/1e6, 1)


def make(folder):
    "The run and its forms: seconds and sizes."
    from llmft import evaluate, export_gguf, finetune, load_config, merge_adapter, model_card
    keys = BASE | dict(adapter='qlora', load_in_4bit=True, output_dir=str(folder/'run'))
    seconds, sizes = {}, {}
    if not (folder/'run'/'adapter').is_dir(): finetune(load_config(keys), say=None)
    seconds['evaluate'], table = timed(evaluate, folder/'run', run_code=True, max_rows=16, max_new_tokens=48,
        general_bytes=GENERAL, progress=False)
    print(table)
    seconds['merge'], _ = timed(merge_adapter, folder/'run', folder/'merged', overwrite=True, say=print)
    timed(merge_adapter, folder/'run', folder/'dequantized', overwrite=True, dequantized=True, say=print)
    for type in GGUF:
        file = folder/f'{type}.gguf'
        seconds[f'gguf {type}'], _ = timed(export_gguf, folder/'merged', file, type, overwrite=True, say=None)
        sizes[f'GGUF {type}'] = size(file)
    seconds['card'], _ = timed(model_card, folder/'run', 'first')
    sizes |= {'adapter': size(folder/'run'/'adapter'), 'merged': size(folder/'merged')}
    shown = table.table()
    return {'seconds': seconds, 'megabytes': sizes, 'evaluation': {'header': shown.header, 'rows': shown.rows}}


def opened(folder, form): # a `Chat`
    from llmft import load_run
    if not form.startswith('GGUF'):
        path, how = OPENED[form]
        return load_run(folder/path, **how)
    import torch
    from transformers import AutoModelForCausalLM
    chat = load_run(folder/'merged')
    name = f'{form.split()[1]}.gguf'
    chat.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    return chat


def formats(model): # of its weights
    return sorted({str(weight.dtype).split('.')[1] for weight in model.parameters()})


def heldout_tokens(folder, chat): # rows with ids and labels
    from llmft.evaluation.heldout import read_heldout
    return read_heldout(chat.config, chat.tokenizer, folder/'run').tokens


def ask(folder, form):
    "Losses, memory and speed of one form, in this process."
    import torch
    torch.set_num_threads(1)
    seconds, chat = timed(opened, folder, form)
    opened_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    found = {'seconds to open': seconds, 'peak GiB when opened': round(opened_gib, 2), 'formats': formats(chat.model)}
    found['held-out loss'] = round(mean_loss(chat.model, heldout_tokens(folder, chat)), 4)
    found['general loss'] = round(mean_general_loss(chat.model, chat.tokenizer, GENERAL), 4)
    # of the GGUF files only the weights are looked at, for llama.cpp computes with them in its own way
    if form.startswith(('GGUF', 'merged,')): return found
    return found | {'tokens per second': {n: speed(chat, n) for n in (1, 16)}}


def speed(chat, batch_size, n=16): # tokens a second
    from llmft.inference.generate import generate_ids
    n = n if batch_size > 1 else 2
    ids = [chat.prompt_ids(WRITE.format(i, i)) for i in range(n)]
    generate_ids(chat.model, chat.tokenizer, ids[:1], max_new_tokens=4) # warm
    how = dict(batch_size=batch_size, max_new_tokens=TOKENS)
    seconds, answers = timed(generate_ids, chat.model, chat.tokenizer, ids, **how)
    return round(sum(map(len, answers))/seconds, 1)


def serve(folder):
    "Tokens a second of one core for so many users at once, who all ask at the same moment."
    import threading, torch
    from openai import OpenAI
    from llmft import load_run
    from llmft.inference.server import make_app, serve_app, take_port
    torch.set_num_threads(1)
    app, place = make_app(load_run(folder/'merged')), take_port('127.0.0.1', 0)
    thread = threading.Thread(target=serve_app, args=(app, place))
    thread.start()
    client = OpenAI(base_url=f'http://127.0.0.1:{place.getsockname()[1]}/v1', api_key='any', timeout=600)
    def one(i): # number of tokens
        question = {'role': 'user', 'content': WRITE.format(i, i)}
        made = client.chat.completions.create(model='merged', max_tokens=TOKENS, messages=[question])
        return made.usage.completion_tokens
    one(0) # warm
    found = []
    for users in USERS:
        with ThreadPoolExecutor(users) as pool: seconds, tokens = timed(lambda: list(pool.map(one, range(users))))
        found.append({'users': users, 'tokens': sum(tokens), 'seconds': seconds})
        print(found[-1], flush=True)
    app.server.should_exit = True
    thread.join()
    return found


def main(folder, *args):
    folder = Path(folder)
    if args: return print(json.dumps({'make': make, 'ask': ask, 'serve': serve}[args[0]](folder, *args[1:])))
    folder.mkdir(parents=True, exist_ok=True)
    def part_of(*args): return child('benchmarks.product', folder, *args)
    found = {'machine': machine() | {'cores': os.cpu_count()}, 'date': time.strftime('%Y-%m-%d'), 'forms': {}}
    for part in ('make', *OPENED, *(f'GGUF {type}' for type in GGUF), 'serve'):
        if part == 'make': found |= part_of('make')
        elif part == 'serve': found['server'] = part_of('serve')
        else: found['forms'][part] = part_of('ask', part)
        text = json.dumps(found, indent=1)
        (RESULTS/'product.json').write_text(text + '\n')
    print(text)


if __name__ == '__main__': main(*sys.argv[1:])
