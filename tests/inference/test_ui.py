"The chat page, used by a client of Gradio over HTTP."
import re, socket, subprocess, sys, time
from html import unescape
import pytest

from llmft.core import UserError
from llmft.inference.load import load_run
from tests.small import small_model, small_run

pytest.importorskip('gradio'), pytest.importorskip('fastapi'), pytest.importorskip('uvicorn')
from gradio_client import Client # noqa: E402
from llmft.inference.ui import chat_page, serve_page, text_html # noqa: E402

LONG = (1500, 2.0, 1, 0, 0, 1, '8') # such an answer has no end
SHORT = (12, 0, 1, 0, 0, 1, '')


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ui')
    data = {'path': str(folder/'data.jsonl'), 'type': 'chat_template'}
    return load_run(small_run(folder, datasets=[data], test_datasets=[]))


@pytest.fixture(scope='module')
def page(chat):
    page = chat_page(chat).launch()
    yield page
    page.close()


@pytest.fixture
def client(page): return Client(page.url, verbose=False) # a browser with a conversation of its own


def ask(client, text, *settings, model='run', compare=False, system='', api='/ask'):
    return client.submit(text, model, compare, False, system, *(settings or SHORT), api_name=api)


def value(part): return part.get('value') if isinstance(part, dict) else part


def said(column): # -> the texts in a column
    return [unescape(text) for text in re.findall(r'<div class="said \w+">(.*?)</div>', value(column), re.S)]


def progress(made): return value(made[2])


def wait_for(is_so, seconds=20):
    end = time.time() + seconds
    while not is_so():
        assert time.time() < end, 'it did not happen'
        time.sleep(.01)


def test_answers_come_token_by_token(page, client, chat):
    job = ask(client, 'Add 3', 40, 1.0, 1, 0, 0, 1, '3')
    expected = chat.generate(['Add 3'], max_new_tokens=40, temperature=1.0, seed=3)[0]
    assert said(job.result()[0]) == ['Add 3', expected]
    grown = [texts[1] for texts in (said(made[0]) for made in job.outputs()) if len(texts) == 2]
    assert len({*grown}) > 3 and all(expected.startswith(text) for text in grown)
    assert 'tokens/s' in progress(job.result()) and 'seed 3' in progress(job.result())


def test_the_next_question_knows_the_first(page, client, chat):
    first = said(ask(client, 'Add 3', system='Be brief.').result()[0])[1]
    made = ask(client, 'Add 4', system='Be brief.').result()
    conversation = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Add 3'},
                    {'role': 'assistant', 'content': first}, {'role': 'user', 'content': 'Add 4'}]
    expected, = chat.generate([conversation], max_new_tokens=12, details=True)
    assert said(made[0]) == ['Add 3', first, 'Add 4', expected.text]
    assert f'prompt: {len(expected.prompt_ids)} tokens' in progress(made)


def test_stop_ends_the_answer_at_once(page, client):
    job = ask(client, 'Add 3', *LONG)
    wait_for(lambda: len(job.outputs()) > 3)
    start = time.time()
    client.predict(api_name='/stop')
    made = job.result(timeout=20)
    assert time.time() - start < 5 and 'stopped' in progress(made)
    wait_for(lambda: not page.batches.requests or all(r.is_done for r in page.batches.requests))
    n = page.batches.counts['tokens']
    time.sleep(.2)
    assert page.batches.counts['tokens'] == n < 1500 and page.waiting == []
    assert said(made[0])[0] == 'Add 3' and said(made[0])[1] # what there was stays


def test_stop_is_for_those_who_said_it(page, client):
    other = Client(page.url, verbose=False)
    job = ask(client, 'Add 3', 40, 2.0, 1, 0, 0, 1, '8')
    wait_for(lambda: len(job.outputs()) > 1)
    other.predict(api_name='/stop')
    assert ' 40 tokens, the limit' in progress(job.result())


def test_compare_asks_the_base_the_same(page, client, chat):
    made = ask(client, 'Add 3', compare=True).result()
    tuned, base = said(made[0]), said(made[1])
    assert tuned[1] != base[1] and [tuned[0], base[0]] == ['Add 3'] * 2
    assert {'run': tuned[1], 'base': base[1]} == chat.use('run').compare('Add 3', max_new_tokens=12)
    made = ask(client, 'Add 4', compare=False).result() # it goes on with what the run said
    assert said(made[0])[:2] == tuned and len(said(made[1])) == 2
    alone = Client(page.url, verbose=False)
    assert said(ask(alone, 'Add 3', model='base').result()[0]) == base


def test_retry_undo_clear(page, client):
    first = ask(client, 'Add 3').result()
    ask(client, 'Add 4').result()
    again = ask(client, 'being typed', 12, 2.0, 1, 0, 0, 1, '5', api='/retry').result()
    texts = said(again[0])
    assert texts[:2] == said(first[0]) and texts[2] == 'Add 4' and len(texts) == 4
    undone = client.predict('run', False, False, api_name='/undo')
    assert said(undone[0]) == said(first[0]) and value(undone[3]) == 'Add 4'
    assert said(client.predict('run', False, False, api_name='/clear')[0]) == []
    assert 'Nothing was asked' in progress(client.predict('run', False, False, api_name='/undo'))


@pytest.mark.parametrize('question, settings, message', [
    ('word ' * 3000, SHORT, 'the prompt has'),
    ('Add 3', (12, 0, 1, 0, 0, 1, 'seven'), 'seed: a whole number'),
])
def test_what_cannot_be_done_is_said_and_nothing_is_lost(page, client, question, settings, message):
    kept = said(ask(client, 'Add 4').result()[0])
    made = ask(client, question, *settings).result()
    assert message in progress(made) and value(made[3]) == question and said(made[0]) == kept
    assert len(said(ask(client, 'Add 5').result()[0])) == 4


@pytest.mark.parametrize('text', ['2 < 3 & 4', '<b>bold</b>', 'def f():\n    return 1\n\n', '${1} {{value}} `x`'])
def test_letters_stay_as_they_are(text):
    assert unescape(text_html(text, is_markdown=False)) == text


@pytest.mark.parametrize('text', ['<script>x()</script>', '![x](http://example.org/x.png)', '<img src=x onerror=x()>'])
def test_markdown_fetches_and_runs_nothing(text):
    assert not re.search('<(script|img)', text_html(f'**so** {text}', is_markdown=True))


def test_it_listens_on_this_machine_alone(page):
    assert page.url.startswith('http://127.0.0.1:')
    with pytest.raises(OSError): socket.create_connection(('127.0.0.2', int(page.url.rpartition(':')[2])), timeout=2)


def test_the_page_fetches_nothing_from_elsewhere(page):
    import httpx
    text = httpx.get(page.url).text + httpx.get(f'{page.url}/theme.css').text
    assert not re.search(r'(?:src|href)="https?:|url\([\'"]?https?:|"analytics_enabled":true|@import', text)


def test_no_base(tmp_path):
    with pytest.raises(UserError, match='without a base to compare with'):
        chat_page(small_model(tmp_path/'model'), compare=True)
    with pytest.raises(UserError, match='there is no such folder'): serve_page(tmp_path/'nowhere', port=0)


def test_port_is_taken(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        with pytest.raises(UserError, match='cannot be taken'): serve_page(tmp_path, port=taken.getsockname()[1])


def test_without_gradio():
    code = 'import sys; sys.modules["gradio"] = None; from llmft.inference.ui import chat_page; chat_page("x")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "pip install 'llmft[ui]'" in done.stderr.splitlines()[-1]
