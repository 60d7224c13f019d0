"""How many tokens a second a server gives to sixteen clients: one after the other, and all at once; and `generate`
alone and batched. Real time, with the built-in model on the CPU, both ways in one go."""
import json, os, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI

from llmft import load_base, load_config, load_tokenizer
from llmft.inference.chat import Chat
from llmft.inference.generate import generate_ids, prompt_ids
from llmft.inference.server import make_app, serve_app, take_port

RESULTS = Path(__file__).parent/'results'
N, TOKENS = 16, 32


def rate(call): # tokens per second; `call` gives their number
    start = time.perf_counter()
    return call() / (time.perf_counter() - start)


def generated(chat, batch_size): # number of tokens
    ids = [prompt_ids(f'Count from {i} to 1000.', chat.tokenizer, chat.dataset) for i in range(N)]
    return sum(map(len, generate_ids(chat.model, chat.tokenizer, ids, batch_size=batch_size, max_new_tokens=TOKENS)))


def served(url, threads): # number of tokens
    client = OpenAI(base_url=url, api_key='any', timeout=600)
    model = client.models.list().data[0].id
    def one(i):
        question = {'role': 'user', 'content': f'Count from {i} to 1000.'}
        made = client.chat.completions.create(model=model, messages=[question], max_tokens=TOKENS)
        return made.usage.completion_tokens
    with ThreadPoolExecutor(threads) as pool: return sum(pool.map(one, range(N)))


def main():
    config = load_config({'base_model': 'builtin/smollm2-135m', 'bf16': False,
                          'datasets': [{'path': 'any.jsonl', 'type': 'chat_template'}]})
    chat = Chat(load_base(config), load_tokenizer(config), config)
    app, place = make_app(chat), take_port('127.0.0.1', 0)
    url = f'http://127.0.0.1:{place.getsockname()[1]}/v1'
    generated(chat, N) # warm
    speeds = {'generate, one by one': rate(lambda: generated(chat, 1)),
              'generate, in a batch': rate(lambda: generated(chat, N))}
    thread = threading.Thread(target=serve_app, args=(app, place))
    thread.start()
    speeds['server, one after the other'] = rate(lambda: served(url, 1))
    speeds['server, all at once'] = rate(lambda: served(url, N))
    app.server.should_exit = True
    thread.join()
    alone, batched, one_by_one, at_once = speeds.values()
    result = {'requests': N, 'tokens each': TOKENS, 'cores': os.cpu_count(),
              'tokens per second': {name: round(speed, 1) for name, speed in speeds.items()},
              'ratio of generate': round(batched / alone, 2), 'ratio of the server': round(at_once / one_by_one, 2)}
    print(json.dumps(result, indent=1))
    (RESULTS/'serve_cpu.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__': main()
