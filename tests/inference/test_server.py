"The server, asked by the real client of OpenAI and by clients that behave badly."
import json, socket, threading, time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmft.core import UserError
from llmft.inference.load import load_run
from tests.bad_data import ask
from tests.small import small_run

pytest.importorskip('fastapi'), pytest.importorskip('uvicorn')
openai = pytest.importorskip('openai')
httpx = pytest.importorskip('httpx')

from llmft.inference.server import make_app, serve, serve_app, take_port # noqa: E402


class Served:
    "A server in a thread."
    def __init__(self, chat, **limits):
        self.app, place = make_app(chat, **limits), take_port('127.0.0.1', 0)
        self.port = place.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self.thread = threading.Thread(target=serve_app, args=(self.app, place))
        self.thread.start()
        self.batches = self.app.batches
        wait_for(lambda: httpx.get(f'{self.url}/health').status_code == 200)

    def client(self, key='any', **kwargs):
        return openai.OpenAI(base_url=f'{self.url}/v1', api_key=key, max_retries=0, timeout=60, **kwargs)

    def stop(self):
        self.app.server.should_exit = True
        self.thread.join()


def wait_for(is_so, seconds=20):
    end = time.time() + seconds
    while time.time() < end:
        try:
            if is_so(): return
        except httpx.HTTPError: pass
        time.sleep(.01)
    raise AssertionError('it did not happen')


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('server')
    run, other = small_run(folder), small_run(folder/'other', base_model=str(folder/'model'), lora_r=4)
    return load_run(run, also={'second': other})


@pytest.fixture(scope='module')
def served(chat):
    served = Served(chat, max_tokens=1500)
    yield served
    served.stop()


def messages(text): return [{'role': 'user', 'content': text}]


def ask_chat(served, text, model='run', **settings):
    settings = {'max_tokens': 12} | settings
    return served.client().chat.completions.create(model=model, messages=messages(text), **settings)


LONG = {'max_tokens': 700, 'temperature': 2.0, 'seed': 8} # such an answer has no end


def test_models(served):
    client = served.client()
    assert [model.id for model in client.models.list()] == ['run', 'second', 'base']
    assert client.models.retrieve('second').owned_by == 'llmft'
    with pytest.raises(openai.NotFoundError): client.models.retrieve('third')


def test_chat(served, chat):
    for name in ('run', 'second', 'base'):
        made = ask_chat(served, 'Add 3', name)
        expected, = chat.use(name).generate(['Add 3'], max_new_tokens=12, details=True)
        choice = made.choices[0]
        assert (choice.message.role, choice.message.content) == ('assistant', expected.text)
        assert (choice.finish_reason, made.model) == (expected.reason, name)
        usage = (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens)
        n_prompt, n = len(expected.prompt_ids), len(expected.ids)
        assert usage == (n_prompt, n, n_prompt + n)


def test_streaming(served):
    settings = {'temperature': 1.0, 'seed': 2, 'max_tokens': 30, 'n': 2}
    whole = ask_chat(served, 'Add 3', **settings)
    chunks = [*ask_chat(served, 'Add 3', stream=True, stream_options={'include_usage': True}, **settings)]
    for i, choice in enumerate(whole.choices):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == i]
        assert ''.join(c.delta.content or '' for c in mine) == choice.message.content
        assert mine[0].delta.role == 'assistant' and mine[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage == whole.usage and len({c.id for c in chunks}) == 1
    assert len({choice.message.content for choice in whole.choices}) == 2


def test_completions(served, chat):
    client = served.client()
    made = client.completions.create(model='base', prompt=['Add', 'def add'], max_tokens=6, logprobs=2)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert len(made.choices[1].logprobs.tokens) == len(made.choices[1].logprobs.token_logprobs)
    ids = chat.tokenizer('def add')['input_ids']
    again = client.completions.create(model='base', prompt=ids, max_tokens=6)
    assert again.choices[0].text == made.choices[1].text
    pieces = client.completions.create(model='base', prompt='def add', max_tokens=6, stream=True)
    assert ''.join(piece.choices[0].text for piece in pieces) == again.choices[0].text


def test_probabilities(served):
    made = ask_chat(served, 'Add 3', logprobs=True, top_logprobs=3, temperature=1.0, seed=1)
    content = made.choices[0].logprobs.content
    assert content and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)


def test_stop_and_seed(served):
    settings = {'temperature': 1.0, 'seed': 5, 'max_tokens': 40}
    text = ask_chat(served, 'Add 3', **settings).choices[0].message.content
    assert ask_chat(served, 'Add 3', **settings).choices[0].message.content == text != ''
    stopped = ask_chat(served, 'Add 3', stop=[text[4:6]], **settings).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (text[:text.find(text[4:6])], 'stop')
    assert ask_chat(served, 'Add 3', max_tokens=1).choices[0].finish_reason == 'length'


@pytest.mark.parametrize('settings, param', [
    ({'temperature': -1}, 'temperature'), ({'top_p': 0}, 'top_p'), ({'max_tokens': 0}, 'max_tokens'),
    ({'max_tokens': 2000}, 'max_tokens'), ({'n': 17}, 'n'), ({'stop': ['']}, 'stop'),
    ({'top_logprobs': 2}, 'top_logprobs'), ({'presence_penalty': 1}, 'presence_penalty'),
    ({'tools': [{'type': 'function', 'function': {'name': 'f'}}]}, 'tools'),
    ({'response_format': {'type': 'json_object'}}, 'response_format'),
    ({'extra_body': {'temprature': 1}}, 'temprature'), ({'extra_body': {'min_p': 2}}, 'min_p'),
    ({'logprobs': True, 'stream': True}, 'logprobs')], ids=str)
def test_a_wrong_setting_is_named(settings, param, served):
    with pytest.raises(openai.BadRequestError) as e: ask_chat(served, 'Add 3', **settings)
    assert e.value.param == param and e.value.type == 'invalid_request_error' and param in e.value.message


@pytest.mark.parametrize('body, status', [
    (b'{', 400), (b'[]', 400), (b'', 400), (b'\xff', 400), (b'{"messages": []}', 400), (b'{"messages": [3]}', 400),
    (b'{"model": "x"}', 404), (b'{"model": 3}', 404), (b'{"messages": [{"role": "user", "content": [{}]}]}', 400),
    (b'{"messages": [{"role": "user", "content": "' + b'word ' * 3000 + b'"}]}', 400),
    (b'{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}', 400), (b'[' * 100_000, 400)],
    ids=lambda v: repr(v)[:50])
def test_a_wrong_body_is_an_error_in_their_form(body, status, served):
    made = httpx.post(f'{served.url}/v1/chat/completions', content=body)
    assert made.status_code == status and {'message', 'type', 'param', 'code'} == made.json()['error'].keys()


def test_other_pages(served):
    for path, status in [('/v1/embeddings', 404), ('/v1/completions', 405), ('/docs', 404)]:
        made = httpx.get(served.url + path)
        assert made.status_code == status and made.json()['error']['message']


def test_fifty_at_once(served):
    texts = [f'Add {i}' for i in range(50)]
    names = ['run', 'second', 'base']
    def one(i): return ask_chat(served, texts[i], names[i % 3], max_tokens=6).choices[0].message.content
    with ThreadPoolExecutor(50) as pool: together = [*pool.map(one, range(50))]
    assert served.batches.counts['largest'] > 4
    assert [one(i) for i in range(0, 50, 5)] == together[::5]


def test_fifty_megabytes(served):
    body = json.dumps({'messages': messages('x' * 50_000_000)}).encode()
    n_before = served.batches.counts['batches']
    def pieces():
        for start in range(0, len(body), 1 << 16): yield body[start:start + (1 << 16)]
    for content in (body, pieces()): # with its length in front, and without
        made = httpx.post(f'{served.url}/v1/chat/completions', content=content, timeout=60)
        assert made.status_code == 413 and '4,194,304 bytes' in made.json()['error']['message']
    with pytest.raises(openai.APIStatusError) as e: ask_chat(served, 'x' * 50_000_000)
    assert e.value.status_code == 413 and served.batches.counts['batches'] == n_before


def test_keys(chat, capfd):
    served = Served(chat, api_key='s3cr3t')
    try:
        assert served.client('s3cr3t').models.list().data
        for key in ('s3cr3', 's3cr3t2', 'S3CR3T', 'any'):
            with pytest.raises(openai.AuthenticationError) as e: served.client(key).models.list()
            assert e.value.code == 'invalid_api_key'
        assert httpx.get(f'{served.url}/v1/models').status_code == 401
        assert httpx.get(f'{served.url}/health').status_code == 200
    finally: served.stop()
    assert 's3cr3t' not in ''.join(capfd.readouterr())


def raw_request(served, **settings): # a socket on which a stream begins
    body = json.dumps({'model': 'run', 'messages': messages('Add 3'), 'stream': True} | settings).encode()
    made = socket.create_connection(('127.0.0.1', served.port))
    made.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
    return made


def test_a_slow_reader_holds_up_nobody(served):
    slow = [raw_request(served, **LONG) for _ in range(3)] # nobody reads from these
    start = time.time()
    for i in range(3): ask_chat(served, f'Add {i}')
    assert time.time() - start < 20
    wait_for(lambda: not served.batches.requests, 60) # their answers are ready all the same
    for one in slow:
        data = b''
        while not data.endswith(b'0\r\n\r\n') and (part := one.recv(1 << 16)): data += part
        assert b'[DONE]' in data
        one.close()


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_goes_away_is_dropped(stream, served):
    gone, stays = raw_request(served, **LONG | {'stream': stream}), raw_request(served, max_tokens=100)
    wait_for(lambda: any(r.answer.sampling.max_new_tokens == 700 and r.answer.ids for r in served.batches.requests))
    request = next(r for r in served.batches.requests if r.answer.sampling.max_new_tokens == 700)
    gone.close()
    wait_for(lambda: request.is_dropped)
    wait_for(lambda: request not in served.batches.requests)
    assert len(request.answer.ids) < 700
    data = b''
    while b'[DONE]' not in data: data += stays.recv(1 << 16)
    stays.close()


def test_too_many_wait(chat):
    served = Served(chat, max_requests=2)
    try:
        waiting = [raw_request(served, **LONG) for _ in range(2)]
        wait_for(lambda: len(served.batches.requests) == 2)
        with pytest.raises(openai.RateLimitError): ask_chat(served, 'Add 3')
        for one in waiting: one.close()
        wait_for(lambda: not served.batches.requests)
        assert ask_chat(served, 'Add 3').choices
    finally: served.stop()


def test_a_failure_of_the_model_is_told_and_the_next_one_answered(served, monkeypatch):
    from llmft.inference import batches
    true_grow, calls = batches.grow, []
    def grow(*args):
        calls.append(len(args[1]))
        if len(calls) == 1: raise RuntimeError('too bad')
        return true_grow(*args)
    monkeypatch.setattr(batches, 'grow', grow)
    with pytest.raises(openai.InternalServerError, match='too bad'): ask_chat(served, 'Add 3')
    assert ask_chat(served, 'Add 3').choices


def test_without_memory_the_batch_becomes_smaller(served, monkeypatch):
    from llmft.inference import batches
    true_grow, sizes = batches.grow, []
    def grow(model, answers, *rest):
        sizes.append(len(answers))
        if len(answers) > 2: raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return true_grow(model, answers, *rest)
    monkeypatch.setattr(batches, 'grow', grow)
    monkeypatch.setattr(served.batches, 'max_batch', 16)
    with ThreadPoolExecutor(8) as pool: made = [*pool.map(lambda i: ask_chat(served, f'Add {i}'), range(8))]
    assert all(m.choices for m in made) and max(sizes) > 2 and served.batches.max_batch <= 8
    served.batches.max_batch = 16


def test_the_command_refuses(tmp_path):
    taken = take_port('127.0.0.1', 0)
    for arguments, message in [
        (['--port', str(taken.getsockname()[1])], 'cannot be taken'),
        (['--host', 'no.such.host.invalid'], 'no address'),
        (['--engine', 'tgi'], 'auto, vllm or llmft'), (['--engine', 'vllm'], 'vLLM is not installed'),
        (['--also', 'second', '--port', '0'], 'not NAME=RUN'), (['--port', '0'], 'no such folder')]:
        status, _, err = ask('serve', str(tmp_path/'none'), *arguments)
        assert status == 2 and message in err.replace('\n', ' '), (arguments, err)
    with pytest.raises(UserError): serve(tmp_path/'none', port=0)
